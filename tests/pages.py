# SPDX-License-Identifier: Apache-2.0
"""Reads the documentation: fenced blocks of a page, and diffs to apply."""

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
      document: path relative to the checkout.
      line: number of the line with the opening fence.
      kind: language, or "".
      caption: caption of a `{code-block}`, or "".
      text: content of the block.
      before: content of the page before the block.
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
        kind = match["info"].strip()
        text = match["text"]
        caption = ""
        if kind.startswith("{code-block}"):
            kind = kind.removeprefix("{code-block}").strip()
            caption = _CAPTION.match(text)[1]
            text = _CAPTION.sub("", text, count=1)
        before = page[: match.start()]
        line = before.count("\n") + 1
        found.append(Block(document, line, kind, caption, text, before))
    return found


def apply(diff: str, folder: pathlib.Path) -> None:
    """Applies a unified diff to the files in a folder; every hunk must match exactly once."""
    for part in re.split(r"^--- a/", diff, flags=re.M)[1:]:
        head, *hunks = re.split(r"^@@.*\n", part, flags=re.M)
        file = folder / head.split("\n")[0]
        text = file.read_text()
        for hunk in hunks:
            lines = hunk.rstrip("\n").split("\n")
            old = "".join(line[1:] + "\n" for line in lines if not line.startswith("+"))
            new = "".join(line[1:] + "\n" for line in lines if not line.startswith("-"))
            assert text.count(old) == 1, (
                f"{file.name} contains this hunk {text.count(old)} times instead of once:\n{old}"
            )
            text = text.replace(old, new)
        file.write_text(text)
