# SPDX-License-Identifier: Apache-2.0
"""Reads logs of delimited text fast: blocks of rows in several threads, in order."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from bert4rec_jax.data.sources import text
from bert4rec_jax.data.sources.delimited.faults import LARGEST_TIME, is_seconds, raise_fault
from bert4rec_jax.data.sources.delimited.layout import (
    TextFile,
    is_quoted,
    reject_missing_header,
    require_columns,
)
from bert4rec_jax.data.sources.log import RestartReading, Roles
from bert4rec_jax.data.sources.row_filter import RowFilter
from bert4rec_jax.errors import UserError

_STAND_IN = "\x1f"  # replaces separators of more than one character, which Arrow lacks
_LEAST_BLOCK = 1 << 24
_IDS = pa.dictionary(pa.int32(), pa.string())
_ZONE = re.compile(r"\d[ T]?\d\d:\d\d.*(Z|[+-]\d\d(:?\d\d)?)$")
_BLANK_LINES = re.compile(rb"^[ \t\r]+$", re.MULTILINE)
_QUOTED = "fields begin and end with quotation marks"
# Types that Arrow guesses; each can represent all values of the types before it.
_WIDER = ((pa.int64(), pa.float64()), (pa.date32(), pa.timestamp("s"), pa.timestamp("ns")))


class _OtherKinds(Exception):
    """Columns of a row filter have other types in a block than assumed; args: {column: type}."""


class TextLog:
    """An interaction log in one or more delimited files of the same layout.

    `blocks` raises `RestartReading` if a later row shows that the type of the times, the type of a
    column of the row filter, or the meaning of quotation marks was guessed wrong. The next call
    uses the corrected guess.

    Attributes:
      files: the files to read.
      roles: of their columns.
      bytes: size of the files.
    """

    def __init__(
        self,
        files: list[TextFile],
        roles: Roles,
        row_filter: RowFilter | None = None,
        known: int = 0,
    ):
        """Checks the columns.

        Args:
          files: all files of the log.
          roles: of their columns.
          row_filter: which rows to keep; None: all.
          known: this many of the first files are not read; they only determine the type of the
            times.

        Raises:
          UserError: a file is not text, or lacks a column.
        """
        self.files = files[known:]
        self.roles = roles
        self._filter = row_filter
        for file in files:
            text.check_text(file.path)
            reject_missing_header(file, roles.named())
            require_columns(file.path, file.names, roles.named())
            if not file.header and len(file.names) != len(files[0].names):
                raise UserError(
                    f"{file.path} has {len(file.names)} columns, but {files[0].path} has "
                    f"{len(files[0].names)}; set config.data.path to the file of interactions, or "
                    "move other files to another folder."
                )
        self._kinds = _time_kinds(files[0], roles) if roles.time else [None]
        self._filter_kinds: dict[str, pa.DataType] = {}
        # In files with tabs or bars, quotation marks are ordinary characters until a field begins
        # and ends with one. `_unquoted` keeps the files and types from before that.
        self._unquoted: tuple[list[TextFile], list[pa.DataType]] | None = None
        self._may_be_quoted = not files[0].quotes and len(files[0].separator) == 1
        self.bytes = sum(os.path.getsize(file.path) for file in self.files)

    def blocks(self) -> Iterator[pa.Table]:
        """Yields tables as described in `sources.log.Blocks`, of about 16 MiB of text each.

        Raises:
          RestartReading: discard all tables and call this again.
          UserError: names the file and the first invalid line.
        """
        has_rows = False
        for file in self.files:
            try:
                for table in _in_order(
                    self._parse, file, text.line_blocks(file.path, file.quotes, file.header)
                ):
                    has_rows = has_rows or table.num_rows > 0
                    yield table
            except _OtherKinds as found:
                self._learn(file, *found.args)
            except pa.ArrowInvalid as error:
                self._reconsider(file, str(error).split("\n")[0])
        if not has_rows and self._filter is None:
            raise UserError(
                f"{self.files[0].path} has a header but no rows; it should contain interactions."
            )

    def _parse(self, file: TextFile, data: bytes) -> pa.Table:
        try:
            return self._table(file, data)
        except pa.ArrowInvalid:
            # Lines of white space only are rare, so they are removed only after a failure.
            cleaned = data if file.quotes and b'"' in data else _BLANK_LINES.sub(b"", data)
            if cleaned == data:
                raise
            return self._table(file, cleaned)

    def _table(self, file: TextFile, data: bytes) -> pa.Table:
        roles = self.roles
        kinds = {roles.user: _IDS, roles.item: _IDS}
        if roles.rating:
            kinds[roles.rating] = pa.float32()
        if roles.time:
            kinds[roles.time] = self._kinds[0]
        extra = self._filter.columns_in(file.names) if self._filter else []
        wanted = list(dict.fromkeys([*kinds, *extra]))
        assumed = {name: self._filter_kinds.get(name) for name in extra if name not in kinds}
        try:
            table = parse(
                file, data, kinds | {name: kind for name, kind in assumed.items() if kind}, wanted
            )
        except pa.ArrowInvalid:
            if not any(assumed.values()):
                raise
            # This raises the same error, unless a column of the filter is the cause.
            table = parse(file, data, kinds, wanted)
            raise _OtherKinds({name: table.schema.field(name).type for name in assumed}) from None
        if table.num_rows and not all(assumed.values()):
            # The types must be the same in all blocks before the condition is applied to any.
            raise _OtherKinds({name: table.schema.field(name).type for name in assumed})
        if self._filter:
            table = self._filter.apply(table, file.path)
        columns = {role: table[name] for role, name in roles.named().items()}
        table = pa.table(columns).unify_dictionaries().combine_chunks()
        _reject_gaps(table)
        if file.header:
            _reject_repeated_header(table, roles)
        if self._may_be_quoted and any(
            is_quoted(value)
            for role in ("user", "item")
            for value in _dictionary(table[role]).to_pylist()
        ):
            raise pa.ArrowInvalid(_QUOTED)
        return table

    def _learn(self, file: TextFile, found: dict[str, pa.DataType]) -> None:
        before = self._filter_kinds
        wider = {name: _wider(before.get(name), kind) for name, kind in found.items()}
        if before | wider == before:
            # Arrow reads values such as 0x1F as a whole number, but not as a fraction.
            wider = {name: pa.string() for name, kind in found.items() if kind != before[name]}
        if before | wider == before:
            self._reconsider(file, "a column of config.data.where has values of several types")
        self._filter_kinds = before | wider
        raise RestartReading from None

    def _reconsider(self, file: TextFile, reason: str) -> None:
        # A row with too many fields may have its separator between quotation marks.
        if self._may_be_quoted and (
            reason.startswith(_QUOTED) or ("Expected" in reason and '"' in reason)
        ):
            self._unquoted, self._may_be_quoted = (self.files, self._kinds), False
            self.files = [dataclasses.replace(f, quotes=True) for f in self.files]
            raise RestartReading
        if len(self._kinds) > 1:
            self._kinds = self._kinds[1:]
            raise RestartReading
        if self._unquoted:
            # Some fields look quoted, but the file does not follow the rules of quoting.
            (self.files, self._kinds), self._unquoted = self._unquoted, None
            raise RestartReading
        raise_fault(file, self.roles, reason)


def _wider(assumed: pa.DataType | None, found: pa.DataType) -> pa.DataType:
    """Returns a type that can represent the values of both types."""
    if assumed in (None, pa.null()):
        return found
    if found in (assumed, pa.null()):
        return assumed
    if pa.binary() in (assumed, found):  # text that is not UTF-8
        return pa.binary()
    for kinds in _WIDER:
        if assumed in kinds and found in kinds:
            return kinds[max(kinds.index(assumed), kinds.index(found))]
    return pa.string()


def _in_order(parse_block: Callable, file: TextFile, blocks: Iterator[bytes]) -> Iterator[pa.Table]:
    """Parses blocks in threads (Arrow releases the GIL), and yields the tables in order."""
    workers = min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(workers, "read") as pool:
        pending: collections.deque = collections.deque()
        try:
            for block in blocks:
                pending.append(pool.submit(parse_block, file, block))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def read_all(file: TextFile, kinds: dict[str, pa.DataType]) -> pa.Table:
    """Reads every column of a small file.

    Args:
      file: the file.
      kinds: types of columns; others are guessed.

    Raises:
      UserError: names the first line with a wrong number of fields.
    """
    text.check_text(file.path)
    with text.open_bytes(file.path) as raw:
        data = raw.read()
    data = data.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n \t")
    if file.header:
        data = data.partition(b"\n")[2]
    variants = [file]
    if not file.quotes and len(file.separator) == 1 and b'"' in data:
        variants = [dataclasses.replace(file, quotes=True), file]
    for variant in variants:
        cleaned = data if variant.quotes and b'"' in data else _BLANK_LINES.sub(b"", data)
        try:
            return parse(variant, cleaned, kinds, [])
        except pa.ArrowInvalid as error:
            reason = str(error).split("\n")[0]
    raise_fault(file, None, reason)


def parse(
    file: TextFile, data: bytes, kinds: dict[str, pa.DataType], columns: list[str]
) -> pa.Table:
    """Parses whole rows.

    Args:
      file: the layout.
      data: the rows, without header.
      kinds: types of columns; others are guessed.
      columns: the columns to return; empty: all.

    Raises:
      pa.ArrowInvalid: a row has another number of fields, or a value another type.
    """
    separator = file.separator
    if len(separator) > 1:
        data = data.replace(separator.encode(file.encoding), _STAND_IN.encode())
        separator = _STAND_IN
    if not data.strip():
        names = columns or file.names
        return pa.table({name: pa.array([], kinds.get(name, pa.string())) for name in names})
    read_options = pa.csv.ReadOptions(
        use_threads=not columns,
        # Arrow guesses types from its first block, so there is only one.
        block_size=max(_LEAST_BLOCK, min(len(data), 2**31 - 1)),
        column_names=file.names,
        encoding=file.encoding,
    )
    parse_options = pa.csv.ParseOptions(
        delimiter=separator,
        quote_char='"' if file.quotes else False,
        newlines_in_values=file.quotes,
    )
    convert_options = pa.csv.ConvertOptions(
        column_types=kinds, include_columns=columns, null_values=[""]
    )
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=read_options,
        parse_options=parse_options,
        convert_options=convert_options,
    )


def _dictionary(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0).dictionary if column.num_chunks else pa.array([], pa.string())


def _reject_gaps(table: pa.Table) -> None:
    """Rejects missing ids and ratings, and numbers that are NaN, infinite or far too large.

    Raises:
      pa.ArrowInvalid: a row has one.
    """
    gaps = any(
        "" in pc.utf8_trim_whitespace(_dictionary(table[role])).to_pylist()
        for role in ("user", "item")
    )
    gaps = gaps or any(
        table[role].null_count for role in ("user", "item", "rating") if role in table.column_names
    )
    numbers = [table[name] for name in ("time", "rating") if name in table.column_names]
    sane = (
        pc.all(pc.less(pc.abs(n), LARGEST_TIME)).as_py()
        for n in numbers
        if pa.types.is_floating(n.type)
    )
    if gaps or not all(x is not False for x in sane):
        raise pa.ArrowInvalid("an id or a number is missing")


def _reject_repeated_header(table: pa.Table, roles: Roles) -> None:
    """Rejects a row that contains the names of its columns, as in concatenated files.

    Raises:
      pa.ArrowInvalid: a row does.
    """
    repeated = None
    for role, name in (("user", roles.user), ("item", roles.item)):
        code = pc.index(_dictionary(table[role]), name).as_py()
        if code < 0:
            return
        same = pc.equal(table[role].chunk(0).indices, code)
        repeated = same if repeated is None else pc.and_(repeated, same)
    if pc.any(repeated).as_py():
        raise pa.ArrowInvalid("the header is repeated")


def _time_kinds(file: TextFile, roles: Roles) -> list[pa.DataType]:
    """Returns the types to try for the time column, according to its first value."""
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
