# SPDX-License-Identifier: Apache-2.0
"""Sentences with derived numbers, and numbers that no such sentence covers."""

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bert4rec_jax.errors import UserError
from experiments.citing import blocks
from experiments.citing.sources import RESULTS, derive
from experiments.reporting.records import CHECKOUT

FILE = CHECKOUT / "experiments" / "cited.toml"
DOCUMENTS = ("README.md", "docs/**/*.md", "configs/*.py")
_HOLE = re.compile(r"\{(\w+)\}")
_NUMBER = r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
# A number looks measured if it is a metric or has a unit of time, memory, speed or ratio. Numbers
# in flags and names do not count.
_MEASURED = re.compile(
    r"(?<![\w.,=/\[-])(?:0?\.\d{3,5}(?!\w|\.\d)|(?<!\| )0?\.\d{2}(?!\w|\.\d)"
    r"|\d[\d,]*(?:\.\d+)?\s?(?:s|ms|µs|min|h|[KMGT]i?B|[KMGT]i?B/s"
    r"|tokens/s|users/s|steps/s|rows/s|GFLOP/s|TFLOP/s|%"
    r"|seconds?|minutes?|hours?|days?|percent|times)(?![\w/(])|\d+(?:\.\d+)?x\b)"
)


@dataclass(frozen=True)
class Citation:
    """A sentence with numbers in one or more documents.

    Attributes:
      documents: paths of the documents that contain it, once each.
      text: the sentence or a part of it, with `{name}` for each number;
        all white space is equivalent.
      source: default source of its numbers.
      numbers: name -> how to derive it; empty if the numbers in `text` are not measurements.
      why: for numbers that are not measurements, their meaning.
    """

    documents: tuple[str, ...]
    text: str
    source: str
    numbers: dict[str, str]
    why: str = ""

    def pattern(self) -> re.Pattern:
        """Returns a pattern that matches the sentence with any numbers."""
        parts = []
        for part in re.split(r"(\{\w+\}|\s+)", self.text.strip()):
            hole = _HOLE.fullmatch(part)
            if hole:
                parts.append(f"(?P<{hole[1]}>{_NUMBER})")
            else:
                parts.append(r"\s+" if part.isspace() else re.escape(part))
        return re.compile("".join(parts))


def load(file: Path = FILE) -> list[Citation]:
    """Reads the file of citations.

    Raises:
      UserError: the file cannot be read, or an entry is invalid.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}.") from None
    found = []
    for entry in content.get("cite", []):
        numbers = {k: v for k, v in entry.items() if k not in ("in", "text", "from")}
        holes = _HOLE.findall(entry.get("text", ""))
        if not entry.get("in") or sorted(holes) != sorted(numbers):
            raise UserError(
                f"{file}: {entry} needs `in`, `text`, and for each {{name}} in the text how to "
                "derive it."
            )
        found.append(Citation(tuple(entry["in"]), entry["text"], entry.get("from", ""), numbers))
    for entry in content.get("said", []):
        if not all(entry.get(key) for key in ("in", "text", "why")):
            raise UserError(
                f"{file}: {entry} needs `in`, `text`, and `why` (why its numbers are not "
                "measurements)."
            )
        found.append(Citation(tuple(entry["in"]), entry["text"], "", {}, entry["why"]))
    return found


def documents(checkout: Path = CHECKOUT) -> list[str]:
    """Returns the documents that may contain numbers, as paths relative to the checkout."""
    return sorted(
        path.relative_to(checkout).as_posix() for one in DOCUMENTS for path in checkout.glob(one)
    )


def check(
    document: str, citations: Sequence[Citation], checkout: Path = CHECKOUT, root: Path = RESULTS
) -> tuple[list[str], str]:
    """Derives the numbers of a document.

    Args:
      document: path from the checkout's root.
      citations: all.
      checkout: root of the checkout.
      root: folder of the records.

    Returns:
      The problems, one sentence each, and the text with all derivable numbers replaced by those
      of the records.
    """
    text = (checkout / document).read_text(encoding="utf-8")
    problems, written = blocks.write(text, root)
    problems += ["a generated table differs from the records"] * (written != text and not problems)
    changes: list[tuple[int, int, str]] = []
    covered = list(blocks.spans(written))
    for citation in citations:
        if document not in citation.documents:
            continue
        matches = list(citation.pattern().finditer(written))
        if len(matches) != 1:
            problems.append(
                f"the sentence occurs {len(matches)} times instead of once: {citation.text!r}"
            )
            continue
        covered.append(matches[0].span())
        for name, spec in citation.numbers.items():
            try:
                derived = derive(spec, citation.source, root)
            except UserError as error:
                problems.append(f"{_line(written, matches[0].start(name))}{error}")
                continue
            says = matches[0][name]
            if says != derived:
                changes.append((*matches[0].span(name), derived))
                line = _line(written, matches[0].start(name))
                problems.append(f"{line}the document has {says}, the record has {derived} ({spec})")
    problems += [
        f"{_line(written, begin)}{number!r} lacks a citation; add its sentence to "
        "experiments/cited.toml"
        for begin, number in _measured(document, written)
        if not any(a <= begin < b for a, b in covered)
    ]
    for begin, end, derived in sorted(changes, reverse=True):
        written = written[:begin] + derived + written[end:]
    return problems, written


def _measured(document: str, text: str) -> Iterator[tuple[int, str]]:
    """Yields (position, text) of numbers that look measured; in Python files only in docstrings."""
    end = len(text)
    if document.endswith(".py"):
        docstring = ast.parse(text).body[0]
        end = sum(len(line) + 1 for line in text.split("\n")[: docstring.end_lineno])
    for match in _MEASURED.finditer(text, 0, end):
        yield match.start(), match[0]


def _line(text: str, place: int) -> str:
    return f"line {text.count(chr(10), 0, place) + 1}: "
