# SPDX-License-Identifier: Apache-2.0
"""Text for users: messages on stderr, colours, and lines that fit the terminal.

In a terminal, text is wrapped to the width and coloured, unless NO_COLOR is set. In a log or a
pipe, a message is one line without colours.
"""

import os
import shutil
import sys
import textwrap
from typing import TextIO

from tqdm import tqdm

_COLOURS = {"bold": "1", "error": "1;31", "note": "33"}
_LONGEST_VALUE = 60  # characters of a user's value in a message


def columns() -> int:
    """Returns the width of the terminal, between 60 and 120; 100 without a terminal."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Returns the text in a colour, or unchanged if the stream does not show colours.

    Args:
      text: the text.
      colour: bold, error or note.
      stream: where the text will be printed; None: stdout.
    """
    stream = stream or sys.stdout
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{_COLOURS[colour]}m{text}\033[0m"


def fitted(line: str) -> str:
    """Returns a line of a table, cut to the width if stdout is a terminal."""
    width = columns()
    if len(line) <= width or not sys.stdout.isatty():
        return line
    return line[: width - 1] + "…"


def wrapped(text: str) -> str:
    """Returns text with its paragraphs wrapped to the width; indented paragraphs are unchanged."""
    paragraphs = text.strip("\n").split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else _wrap(part) for part in paragraphs)


def shortened(text: str, longest: int = _LONGEST_VALUE) -> str:
    """Returns a text for a message, cut to `longest` characters."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}... ({len(text):,} characters)"


def say(text: str) -> None:
    """Prints a message on stderr; a leading `error:` or `note:` is coloured."""
    if sys.stderr.isatty():
        text = _wrap(text, "  ")
        for kind in ("error", "note"):
            prefix = f"{kind}:"
            if text.startswith(prefix):
                text = coloured(prefix, kind, sys.stderr) + text.removeprefix(prefix)
    tqdm.write(text, file=sys.stderr)  # keeps progress bars below the text
    sys.stderr.flush()


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
