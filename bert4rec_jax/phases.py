# SPDX-License-Identifier: Apache-2.0
"""What people see while a command works: progress of long phases, sentences, colours.

In a terminal there are bars, lines that fit its width, and colours, if it has them and NO_COLOR is not set. In a log or
a pipe there is an occasional line, and a sentence is one line, whole and without colours.
"""

import contextlib
import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm

QUIET_SECONDS = 2  # shorter phases say nothing
LINE_SECONDS = 15  # between two lines where stderr is no terminal
_COLOURS = {"bold": "1", "error": "1;31", "note": "33"}


def columns() -> int:
    """Returns the width for text: the terminal's, at least 60 and at most 120; 100 where there is none."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Returns text in `bold`, `error` or `note` for a stream (stdout) that shows colours, else as it is."""
    stream = stream or sys.stdout
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{_COLOURS[colour]}m{text}\033[0m"


def fitted(line: str) -> str:
    """Returns a line of a table, cut to the width of the terminal on stdout, if that is one."""
    width = columns()
    return line if len(line) <= width or not sys.stdout.isatty() else line[: width - 1] + "…"


def wrapped(text: str) -> str:
    """Returns text with its paragraphs wrapped to the width; what is indented keeps its lines."""
    paragraphs = text.strip("\n").split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else _filled(part) for part in paragraphs)


def say(text: str) -> None:
    """Prints a sentence on stderr; `error:` and `note:` in front of it are coloured."""
    if sys.stderr.isatty():
        text = re.sub(
            r"^(error|note):",
            lambda match: coloured(match[0], match[1], sys.stderr),
            _filled(text, "  "),
        )
    tqdm.write(text, file=sys.stderr)  # above bars that are there
    sys.stderr.flush()


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


class Phase:
    """One phase of a command; a context manager. Only the process that writes the run's files speaks."""

    def __init__(self, title: str, total: int, unit: str, speaks: bool = True):
        """Names the phase.

        Args:
          title: what is done, as in "ranking test users".
          total: how many `unit`s there are to do; 0: unknown.
          unit: plural, as in "users".
          speaks: False on all processes of a job but one.
        """
        self._title, self._total, self._unit, self._speaks = title, total, unit, speaks
        self._done, self._begin, self._bar, self._last = 0, time.monotonic(), None, None

    def __enter__(self) -> "Phase":
        return self

    def __exit__(self, kind, *_) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._last is not None and kind is None:
            print(
                f"{self._title}: done in {time.monotonic() - self._begin:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    def advance(self, count: int = 1) -> None:
        """Notes that `count` more units are done."""
        self._done += count
        if not self._speaks:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)
        elif now - self._begin > QUIET_SECONDS and sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total or None,
                initial=self._done,
                desc=self._title,
                unit=f" {self._unit}",
                dynamic_ncols=True,
                leave=False,
            )
        elif now - (self._last or self._begin) > (LINE_SECONDS if self._last else QUIET_SECONDS):
            self._last = now
            seconds = now - self._begin
            left = f" of {self._total:,}" if self._total else ""
            rest = (
                f", {seconds * (self._total / self._done - 1):.0f} s left"
                if self._total and self._done
                else ""
            )
            print(
                f"{self._title}: {self._done:,}{left} {self._unit}{rest}",
                file=sys.stderr,
                flush=True,
            )


@contextlib.contextmanager
def waiting(title: str, speaks: bool = True) -> Iterator[None]:
    """Reports the elapsed time of work whose progress is unknown, such as a compilation."""
    begin, over = time.monotonic(), threading.Event()

    def report() -> None:
        pause = QUIET_SECONDS
        while not over.wait(pause):
            say(f"{title}: {time.monotonic() - begin:.0f} s so far")
            pause = LINE_SECONDS

    reporter = threading.Thread(target=report, name="waiting", daemon=True)
    if speaks:
        reporter.start()
    try:
        yield
    finally:
        over.set()
