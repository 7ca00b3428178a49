# SPDX-License-Identifier: Apache-2.0
"""What tests need of a page: its blocks of code, and the changes that it shows."""

import pathlib
import re
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent
_FENCE = re.compile(r"^```+ *(?P<info>[^\n]*)\n(?P<text>.*?)^```+ *$", re.M | re.S)
_CAPTION = re.compile(r":caption: (.*)\n\n?")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      document: path from the checkout's root.
      line: number of its fence.
      kind: language, or "" where none is given.
      caption: of a `{code-block}`, or "".
      text: what it holds.
      before: the page up to it.
    """

    document: str
    line: int
    kind: str
    caption: str
    text: str
    before: str


def blocks(document: str) -> list[Block]:
    """Returns the fenced blocks of a page."""
    page = (ROOT / document).read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(page):
        kind, text, caption = match["info"].strip(), match["text"], ""
        if kind.startswith("{code-block}"):
            kind = kind.removeprefix("{code-block}").strip()
            caption = _CAPTION.match(text)[1]
            text = _CAPTION.sub("", text, count=1)
        found.append(
            Block(
                document,
                page.count("\n", 0, match.start()) + 1,
                kind,
                caption,
                text,
                page[: match.start()],
            )
        )
    return found


def apply(diff: str, folder: pathlib.Path) -> None:
    """Makes the changes of a unified diff below a folder; every hunk must fit exactly once."""
    for part in re.split(r"^--- a/", diff, flags=re.M)[1:]:
        head, *hunks = re.split(r"^@@.*\n", part, flags=re.M)
        file = folder / head.split("\n")[0]
        text = file.read_text()
        for hunk in hunks:
            lines = hunk.rstrip("\n").split("\n")
            old = "".join(line[1:] + "\n" for line in lines if not line.startswith("+"))
            new = "".join(line[1:] + "\n" for line in lines if not line.startswith("-"))
            assert text.count(old) == 1, (
                f"{file.name} has not once, but {text.count(old)} times:\n{old}"
            )
            text = text.replace(old, new)
        file.write_text(text)
