# SPDX-License-Identifier: Apache-2.0
"""Delimited text: a fast multi-threaded reader, and a slow one that finds the line it failed on."""

from __future__ import annotations

import csv
import datetime
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from bert4rec_jax.errors import UserError

_SEPARATORS = ("\t", "::", ",", ";", "|", " ")
_BY_EXTENSION = {".csv": ",", ".tsv": "\t"}
# Larger blocks than Arrow's 1 MiB: fewer dictionaries of ids to unify, about a third less time.
_BLOCK_BYTES = 1 << 24
_STAND_IN = "\x1f"  # replaces separators of more than one character, which Arrow does not know
_IDS = pa.dictionary(pa.int32(), pa.string())
_ZONE = re.compile(r"\d[ T]?\d\d:\d\d.*(Z|[+-]\d\d(:?\d\d)?)$")


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
        """Yields (line number, fields) of each row that is not blank; slow: for small files and diagnosis."""
        try:
            with open(
                self.path, encoding="utf-8-sig" if self.encoding == "utf-8" else self.encoding, newline=""
            ) as file:
                if self.quotes and len(self.separator) == 1:
                    reader = csv.reader(file, delimiter=self.separator)
                    numbered = ((reader.line_num, row) for row in reader)
                else:
                    numbered = ((n, line.rstrip("\r\n").split(self.separator)) for n, line in enumerate(file, 1))
                for index, (number, row) in enumerate(numbered):
                    if row and row != [""] and not (self.header and index == 0):
                        yield number, row
        except UnicodeDecodeError:
            raise UserError(
                f"{self.path} is not {self.encoding.upper()} text; convert it, for example with iconv."
            ) from None
        except csv.Error as error:
            raise UserError(f"{self.path} cannot be read as delimited text ({error}); is it the right file?") from None


@dataclass(frozen=True)
class Roles:
    """Which columns of an interaction log mean what; an empty name: there is no such column."""

    user: str
    item: str
    time: str = ""
    rating: str = ""

    def named(self) -> dict[str, str]:
        """Returns {role: column} of the columns that there are."""
        return {role: name for role, name in vars(self).items() if name}


def check_text(path: str) -> None:
    """Refuses files that are missing, empty or not text.

    Raises:
      UserError: with the path.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check config.data.path.") from None
    if not head.strip():
        raise UserError(f"{path} is empty; it should hold interactions or items.")
    if b"\0" in head or head.startswith((b"\x1f\x8b", b"BZh", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        raise UserError(f"{path} is not plain text (binary or compressed); unpack it, or give a .parquet file.")


def first_line(path: str) -> str:
    """Returns the first line of a UTF-8 text file, without the line break."""
    check_text(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.readline().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not UTF-8 text; convert it, for example with iconv, or give a .parquet file."
        ) from None


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
    line = first_line(path)
    by_extension = _BY_EXTENSION.get(os.path.splitext(path)[1].lower())
    candidates = [separator] if separator else [by_extension] * bool(by_extension) + list(_SEPARATORS)
    header = not all(name.isdigit() for name in wanted)

    def split(candidate: str) -> list[str]:
        quoted = candidate in ",;" and '"' in line
        return next(csv.reader([line], delimiter=candidate)) if quoted else line.split(candidate)

    def names_of(candidate: str) -> list[str]:
        fields = split(candidate)
        return [name.strip() for name in fields] if header else [str(i + 1) for i in range(len(fields))]

    options = [(candidate, names_of(candidate)) for candidate in candidates]
    # max() keeps the first of equals, so the order of candidates decides ties.
    found = max(options, key=lambda option: (sum(name in option[1] for name in wanted), len(option[1]) > 1))
    return TextFile(path, found[0], tuple(found[1]), header, quotes=found[0] in (",", ";"))


def require_columns(path: str, names, wanted: dict[str, str]) -> None:
    """Refuses a file without a wanted column.

    Args:
      path: of the file, for the message.
      names: columns that there are.
      wanted: {role: column}; `role` is the part of the config field's name before `_column`.
    """
    for role, name in wanted.items():
        if name not in names:
            raise UserError(
                f"{path} has no column {name!r}; its columns are: {', '.join(map(str, names))}. "
                f"Set config.data.{role}_column (to '' if there is none)."
            )


def read_interactions(file: TextFile, roles: Roles) -> pa.Table:
    """Reads the columns of the roles.

    Returns:
      A table with columns `user` and `item` (dictionary of strings), and where named `time` (int64,
      float64 or timestamp) and `rating` (float32).

    Raises:
      UserError: with the number of the first faulty line.
    """
    check_text(file.path)
    named = roles.named()
    require_columns(file.path, file.names, named)
    kinds = {roles.user: _IDS, roles.item: _IDS}
    if roles.rating:
        kinds[roles.rating] = pa.float32()
    time_kinds = _time_kinds(file, roles) if roles.time else [None]
    for kind in time_kinds:
        if kind is not None:
            kinds[roles.time] = kind
        try:
            table = _read(file, kinds)
        except pa.ArrowInvalid as error:
            reason = str(error).split("\n")[0]
            continue
        if table.num_rows == 0:
            raise UserError(f"{file.path} has a header but no rows; it should hold interactions.")
        table = table.rename_columns({name: role for role, name in named.items()}).unify_dictionaries()
        if _has_gaps(table):
            reason = "an id or a number is missing"
            break
        return table
    raise_fault(file, roles, reason)


def read_all(file: TextFile, kinds: dict[str, pa.DataType]) -> pa.Table:
    """Reads every column of a small file; types as given, else guessed.

    Raises:
      UserError: with the number of the first line of the wrong length.
    """
    check_text(file.path)
    try:
        return _read(file, kinds, every_column=True)
    except pa.ArrowInvalid as error:
        raise_fault(file, None, str(error).split("\n")[0])


def _read(file: TextFile, kinds: dict[str, pa.DataType], every_column: bool = False) -> pa.Table:
    separator, source = file.separator, file.path
    if len(separator) > 1:
        with open(file.path, "rb") as raw:
            data = raw.read().replace(separator.encode(), _STAND_IN.encode())
        separator, source = _STAND_IN, pa.BufferReader(data)
    return pa.csv.read_csv(
        source,
        read_options=pa.csv.ReadOptions(
            block_size=_BLOCK_BYTES,
            column_names=file.names,
            skip_rows=int(file.header),
            encoding=file.encoding,
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=separator, quote_char='"' if file.quotes else False, newlines_in_values=file.quotes
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=kinds, include_columns=[] if every_column else list(kinds), null_values=[""]
        ),
    )


def _has_gaps(table: pa.Table) -> bool:
    """Whether a row lacks an id or a rating, or has a number that is none (nan, inf)."""
    for role in ("user", "item"):
        if "" in pc.utf8_trim_whitespace(table[role].chunk(0).dictionary).to_pylist():
            return True
    numbers = [table[name] for name in ("time", "rating") if name in table.column_names]
    finite = all(pc.all(pc.is_finite(n)).as_py() for n in numbers if pa.types.is_floating(n.type))
    return not finite or ("rating" in table.column_names and table["rating"].null_count > 0)


def _time_kinds(file: TextFile, roles: Roles) -> list[pa.DataType]:
    """Types to try for the time column, from its first value."""
    column = file.names.index(roles.time)
    for _, row in file.rows():
        value = row[column].strip() if column < len(row) else ""
        if not value:
            continue
        if is_seconds(value):
            # A later row may have a fraction.
            return [pa.int64(), pa.float64()]
        return [pa.timestamp("us", "UTC")] if _ZONE.search(value) else [pa.timestamp("us")]
    return [pa.int64()]


def is_seconds(value: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def is_date(value: str) -> bool:
    """Whether a text is an ISO date, with or without a time."""
    try:
        datetime.datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def raise_fault(file: TextFile, roles: Roles | None, reason: str) -> None:
    """Raises the UserError of the first faulty line.

    Args:
      file: the file that the fast reader refused.
      roles: columns to be checked; None: only the number of fields is.
      reason: the fast reader's, used when no line looks wrong.
    """
    faults = _Faults(file, roles) if roles else None
    for number, row in file.rows():
        if len(row) != len(file.names):
            raise UserError(
                f"{file.path} line {number} has {len(row)} fields where {len(file.names)} are expected "
                f"({', '.join(file.names)}); correct or remove that line."
            )
        fault = faults.of(row) if faults else None
        if fault:
            raise UserError(f"{file.path} line {number}: {fault}; correct or remove that line.")
    raise UserError(f"{file.path} cannot be read: {reason}. Check config.data.separator and the columns.")


@dataclass
class _Faults:
    """Checks the fields of one row after another."""

    file: TextFile
    roles: Roles
    is_time: Callable[[str], bool] | None = None
    positions: dict[str, int] = field(init=False)

    def __post_init__(self):
        self.positions = {role: self.file.names.index(name) for role, name in self.roles.named().items()}

    def of(self, row: list[str]) -> str | None:
        values = {role: row[position].strip() for role, position in self.positions.items()}
        for role in ("user", "item"):
            if not values[role]:
                return f"the {role} is empty"
        time = values.get("time", "")
        if time:
            # The first time decides whether the column holds numbers or dates.
            self.is_time = self.is_time or (is_date if is_date(time) and not is_seconds(time) else is_seconds)
            if not self.is_time(time):
                kind = "an ISO date like the lines before" if self.is_time is is_date else "a number of seconds"
                return f"timestamp {time!r} is not {kind}" + ("" if self.is_time is is_date else " or an ISO date")
        if "rating" in values and not is_seconds(values["rating"]):
            return f"rating {values['rating']!r} is not a number"
        return None


def encoding_of(path: str) -> str:
    """Returns "utf-8" or, where the file is not, "latin-1": MovieLens files come in both."""
    check_text(path)
    with open(path, "rb") as file:
        try:
            file.read().decode("utf-8")
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8"
