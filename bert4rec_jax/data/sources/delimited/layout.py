# SPDX-License-Identifier: Apache-2.0
"""The layout of a delimited text file: separator and columns; and a slow, exact reader."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from bert4rec_jax.data.sources import text
from bert4rec_jax.errors import UserError
from bert4rec_jax.terminal import shortened

_SEPARATORS = ("\t", "::", ",", ";", "|", " ")
_BY_EXTENSION = {".csv": ",", ".tsv": "\t"}
_SAMPLE_LINES = 50
_NUMBER = re.compile(r"-?\d+([.,]\d*)?")
# Usual names of the user column, in lower case and without signs.
_USER_NAMES = re.compile(r"(user|customer|session|visitor|reviewer|u)(id|name|idtoken)|user")
# Fields may be long texts, such as reviews.
csv.field_size_limit(1 << 24)


@dataclass(frozen=True)
class TextFile:
    """A delimited file and its layout.

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
        """Yields (number of the first line, fields) of each row except the header and blank rows.

        This is slow: use it for small files and for diagnosis.

        Raises:
          UserError: the file cannot be decoded, or is not delimited text.
        """
        try:
            with text.lines_of(self.path, self.encoding) as file:
                is_header = self.header
                for number, row in self._numbered(file):
                    if self._is_blank(row):
                        continue
                    if not is_header:
                        yield number, row
                    is_header = False
        except UnicodeDecodeError:
            encoding = self.encoding.upper()
            raise UserError(
                f"{self.path} is not {encoding} text; convert it, for example with iconv."
            ) from None
        except csv.Error as error:
            raise UserError(
                f"{self.path} cannot be read as delimited text ({error}); is it the right file?"
            ) from None

    def _is_blank(self, row: list[str]) -> bool:
        if not row:
            return True
        # Separators without values are a row of empty fields, unless they are white space.
        return not "".join(row).strip() and (len(row) == 1 or self.separator.isspace())

    def _numbered(self, file: TextIO) -> Iterator[tuple[int, list[str]]]:
        if not self.quotes or len(self.separator) > 1:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n").split(self.separator)
            return
        lines_before = 0
        reader = csv.reader(file, delimiter=self.separator)
        for row in reader:
            yield lines_before + 1, row
            lines_before = reader.line_num


def sniff(path: str, separator: str, wanted: list[str]) -> TextFile:
    """Detects the separator and the column names from the first line.

    Args:
      path: of the file.
      separator: used if not empty. Otherwise, the separator that gives the most wanted columns is
        used; if several do, the separator of the file's extension is preferred.
      wanted: column names that the file should have; if all are numbers, they are positions
        (from 1), and the file lacks a header.

    Raises:
      UserError: the file cannot be read.
    """
    line = text.first_line(path)
    header = not all(name.isdigit() for name in wanted)
    candidates = [separator]
    if not separator and not header:
        separator = _consistent_separator(path, max(map(int, wanted)))
        candidates = [separator]
    if not separator:
        extension = os.path.splitext(text.plain_name(path))[1]
        preferred = [_BY_EXTENSION[extension]] if extension in _BY_EXTENSION else []
        candidates = [*preferred, *_SEPARATORS]
    best = ""
    best_names: list[str] = []
    best_score = (-1, False)
    for candidate in candidates:
        names = _column_names(line, candidate, header)
        score = (sum(name in names for name in wanted), len(names) > 1)
        if score > best_score:
            best = candidate
            best_names = names
            best_score = score
    has_quotes = len(best) == 1 and any(map(is_quoted, line.split(best)))
    quotes = best in (",", ";") or has_quotes
    if not header:
        reject_header(path, best, "name the columns as this line does, or remove it")
    return TextFile(path, best, tuple(best_names), header, quotes)


def _consistent_separator(path: str, columns: int) -> str:
    """Returns the separator that splits the first lines into equally many fields, or "".

    Args:
      path: of a file without a header.
      columns: the least number of fields.

    Raises:
      UserError: several separators do.
    """
    lines = text.first_lines(path, _SAMPLE_LINES)
    found = []
    for candidate in _SEPARATORS:
        counts = {len(_fields(line, candidate)) for line in lines}
        if len(counts) == 1 and max(counts) >= max(columns, 2):
            found.append(candidate)
    # Texts and dates contain spaces, but hardly ever tabs or double colons.
    for decisive in ("\t", "::"):
        if decisive in found:
            return decisive
    if len(found) > 1 and " " in found:
        found.remove(" ")
    if len(found) > 1 and "," in found and not any(re.search(r",\S", line) for line in lines):
        # In `u1|Heat, The`, the comma belongs to the title.
        found.remove(",")
    if len(found) > 1:
        shown = " or ".join(map(repr, found))
        raise UserError(
            f"{path} can be split at {shown} (line 1 is {shortened(lines[0])!r}); set "
            f"config.data.separator, as in --config.data.separator={found[-1]!r}."
        )
    return found[0] if found else ""


def reject_header(path: str, separator: str, remedy: str) -> None:
    """Rejects a file that should lack a header if its first line looks like one.

    That is a line without numbers whose first field is a usual name of the user column, or above
    a column of numbers.

    Raises:
      UserError: with the line and `remedy`.
    """
    lines = text.first_lines(path, _SAMPLE_LINES)
    rows = [[field.strip() for field in _fields(line, separator)] for line in lines]
    names = rows[0] if rows else []
    if len(names) < 2 or not all(names) or any(map(_NUMBER.fullmatch, names)):
        return
    rest = [row for row in rows[1:] if len(row) == len(names)]
    numeric = len(rest) > 1 and any(all(map(_NUMBER.fullmatch, column)) for column in zip(*rest))
    plain = re.sub(r"[^a-z0-9]", "", names[0].lower())
    if numeric or _USER_NAMES.fullmatch(plain):
        raise UserError(f"{path} line 1 is {shortened(lines[0])!r}, which is a header; {remedy}.")


def _column_names(line: str, separator: str, header: bool) -> list[str]:
    """Returns the names in a header, or the numbers of the columns without a header."""
    fields = _fields(line, separator)
    if header:
        return [name.strip() for name in fields]
    return [str(number) for number in range(1, len(fields) + 1)]


def _fields(line: str, separator: str) -> list[str]:
    """Splits a line; a separator in quotation marks does not separate."""
    if len(separator) == 1 and '"' in line:
        return next(csv.reader([line], delimiter=separator))
    return line.split(separator)


def is_quoted(value: str) -> bool:
    """Whether a value is in quotation marks."""
    return len(value) > 1 and value[0] == value[-1] == '"'


def require_columns(path: str, names: Sequence[str], wanted: dict[str, str]) -> None:
    """Checks that a file has each wanted column once.

    Args:
      path: of the file, for the message.
      names: columns of the file.
      wanted: {role: column}; `role` is the part of the config field's name before `_column`.

    Raises:
      UserError: a column is missing, or its name is not unique.
    """
    for role, name in wanted.items():
        count = list(names).count(name)
        if count > 1:
            raise UserError(
                f"{path} has {count} columns with the name {name!r}; rename all except the one "
                f"that config.data.{role}_column means."
            )
        if not count:
            remedy = "" if role in ("user", "item", "key") else " (to '' if the file lacks it)"
            shown = shortened(", ".join(map(str, names)), 400)
            raise UserError(
                f"{path} lacks the column {name!r}; its columns are: {shown}. "
                f"Set config.data.{role}_column{remedy}."
            )


def reject_missing_header(file: TextFile, wanted: dict[str, str]) -> None:
    """Rejects a file whose first line should be a header but looks like an event.

    Raises:
      UserError: the first line has numbers in it and none of the wanted names.
    """
    numbers = [name for name in file.names if re.fullmatch(r"-?\d+(\.\d*)?", name)]
    if not file.header or not numbers or not set(file.names).isdisjoint(wanted.values()):
        return
    flags = []
    for place, role in enumerate(wanted, 1):
        position = str(place) if place <= len(file.names) else "''"
        if role not in ("user", "item") and len(file.names) > len(wanted):
            # It is unclear which of the other columns is the time.
            position = "N"
        flags.append(f"--config.data.{role}_column={position}")
    line = shortened(file.separator.join(file.names))
    raise UserError(
        f"{file.path} lacks the column {wanted['user']!r}: its first line is {line!r}, which "
        "looks like data, not a header. Without a header, name columns by number, starting at 1, "
        f"as in {' '.join(flags)}."
    )
