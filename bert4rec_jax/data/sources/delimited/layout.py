# SPDX-License-Identifier: Apache-2.0
"""Delimited text files: how one is laid out, whether it has the columns that are wanted, and a slow, exact reader."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from bert4rec_jax.data.sources import text
from bert4rec_jax.errors import UserError
from bert4rec_jax.terminal import shortened

_SEPARATORS = ("\t", "::", ",", ";", "|", " ")
_BY_EXTENSION = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class TextFile:
    """A delimited file and how it is laid out.

    Attributes:
      path: of the file.
      separator: one or more characters.
      names: of the columns, in order.
      header: whether the first line is a header.
      quotes: whether fields may be quoted (and then contain the separator or a line break).
      encoding: of the text.
    """

    path: str
    separator: str
    names: tuple[str, ...]
    header: bool = True
    quotes: bool = True
    encoding: str = "utf-8"

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yields (number of its first line, fields) of each row that is not blank; slow: for small files and
        diagnosis."""
        try:
            with text.lines_of(self.path, self.encoding) as file:
                header = self.header
                for number, row in self._numbered(file):
                    if not row or (
                        not "".join(row).strip() and (len(row) == 1 or self.separator.isspace())
                    ):
                        continue
                    if not header:
                        yield number, row
                    header = False
        except UnicodeDecodeError:
            raise UserError(
                f"{self.path} is not {self.encoding.upper()} text; convert it, for example with iconv."
            ) from None
        except csv.Error as error:
            raise UserError(
                f"{self.path} cannot be read as delimited text ({error}); is it the right file?"
            ) from None

    def _numbered(self, file) -> Iterator[tuple[int, list[str]]]:
        if self.quotes and len(self.separator) == 1:
            before, reader = 0, csv.reader(file, delimiter=self.separator)
            for row in reader:
                yield before + 1, row
                before = reader.line_num
        else:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n").split(self.separator)


def sniff(path: str, separator: str, wanted: list[str]) -> TextFile:
    """Finds separator and column names from the first line.

    Args:
      path: of the file.
      separator: to be used; empty: the one that yields the wanted columns, the extension's first.
      wanted: column names that the file should have; if all are numbers, they are positions counted from 1
        and the file has no header.

    Raises:
      UserError: the file cannot be read.
    """
    line = text.first_line(path)
    by_extension = _BY_EXTENSION.get(os.path.splitext(text.plain_name(path))[1])
    candidates = (
        [separator] if separator else [by_extension] * bool(by_extension) + list(_SEPARATORS)
    )
    header = not all(name.isdigit() for name in wanted)

    def names_of(candidate: str) -> list[str]:
        quoted = len(candidate) == 1 and '"' in line
        fields = next(csv.reader([line], delimiter=candidate)) if quoted else line.split(candidate)
        return (
            [name.strip() for name in fields]
            if header
            else [str(i + 1) for i in range(len(fields))]
        )

    options = [(candidate, names_of(candidate)) for candidate in candidates]
    # max() keeps the first of equals, so the order of candidates decides ties.
    found = max(
        options, key=lambda option: (sum(name in option[1] for name in wanted), len(option[1]) > 1)
    )
    quotes = found[0] in (",", ";") or (
        len(found[0]) == 1 and any(map(is_quoted, line.split(found[0])))
    )
    return TextFile(path, found[0], tuple(found[1]), header, quotes)


def is_quoted(value: str) -> bool:
    """Whether a value stands in quotation marks."""
    return len(value) > 1 and value[0] == value[-1] == '"'


def require_columns(path: str, names, wanted: dict[str, str]) -> None:
    """Refuses a file without a wanted column.

    Args:
      path: of the file, for the message.
      names: columns that there are.
      wanted: {role: column}; `role` is the part of the config field's name before `_column`.
    """
    for role, name in wanted.items():
        if list(names).count(name) > 1:
            raise UserError(
                f"{path} has {list(names).count(name)} columns with the name {name!r}; rename all but the one that "
                f"config.data.{role}_column means."
            )
        if name not in names:
            remedy = "" if role in ("user", "item", "key") else " (to '' if there is none)"
            raise UserError(
                f"{path} has no column {name!r}; its columns are: {shortened(', '.join(map(str, names)), 400)}. "
                f"Set config.data.{role}_column{remedy}."
            )


def refuse_headless(file: TextFile, wanted: dict[str, str]) -> None:
    """Refuses a file that should have a header when its first line has numbers in it and none of the wanted names."""
    numbers = [name for name in file.names if re.fullmatch(r"-?\d+(\.\d*)?", name)]
    if not file.header or not numbers or not set(file.names).isdisjoint(wanted.values()):
        return

    def number(place: int, role: str) -> str:
        if role not in ("user", "item") and len(file.names) > len(wanted):
            return "N"  # which of them is the time is anyone's guess
        return str(place) if place <= len(file.names) else "''"

    places = " ".join(
        f"--config.data.{role}_column={number(place, role)}" for place, role in enumerate(wanted, 1)
    )
    raise UserError(
        f"{file.path} has no column {wanted['user']!r}: its first line is {shortened(file.separator.join(file.names))!r}, "
        f"which looks like an event and no header. Without a header columns go by number, from 1 on, as in {places}."
    )
