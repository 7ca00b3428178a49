# SPDX-License-Identifier: Apache-2.0
"""Logs of delimited text, read fast: blocks of rows in several threads, in order."""

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
    refuse_headless,
    require_columns,
)
from bert4rec_jax.data.sources.log import RestartReading, Roles
from bert4rec_jax.data.sources.row_filter import RowFilter
from bert4rec_jax.errors import UserError

_STAND_IN = "\x1f"  # replaces separators of more than one character, which Arrow does not know
_IDS = pa.dictionary(pa.int32(), pa.string())
_ZONE = re.compile(r"\d[ T]?\d\d:\d\d.*(Z|[+-]\d\d(:?\d\d)?)$")
_BLANK_LINES = re.compile(rb"^[ \t\r]+$", re.MULTILINE)
_QUOTED = "fields begin and end with quotation marks"
# Types that Arrow guesses, each of which holds all values of those before it.
_WIDER = ((pa.int64(), pa.float64()), (pa.date32(), pa.timestamp("s"), pa.timestamp("ns")))


class _OtherKinds(Exception):
    """Columns of a row filter hold something else in a block than was believed; the argument says what."""


class TextLog:
    """An interaction log in one or more delimited files of the same layout, read in canonical blocks.

    `blocks` raises `RestartReading` when a later row shows that the type of the times or of a column of the row filter, or the
    meaning of quotation marks, was guessed wrong; calling it once more reads everything with what was learnt.
    """

    def __init__(
        self,
        files: list[TextFile],
        roles: Roles,
        row_filter: RowFilter | None = None,
        known: int = 0,
    ):
        """Checks that the columns are there; the first `known` files say what kind of times all have, and are not read.

        Raises:
          UserError: a file is no text, or lacks a column.
        """
        self.files, self.roles, self._filter = files[known:], roles, row_filter
        for file in files:
            text.check_text(file.path)
            refuse_headless(file, roles.named())
            require_columns(file.path, file.names, roles.named())
        self._kinds = _time_kinds(files[0], roles) if roles.time else [None]
        self._filter_kinds: dict[str, pa.DataType] = {}
        # Tabs and bars: quotation marks mean something where a field begins and ends with one.
        self._unquoted = None
        self._may_be_quoted = not files[0].quotes and len(files[0].separator) == 1
        self.bytes = sum(os.path.getsize(file.path) for file in self.files)

    def blocks(self) -> Iterator[pa.Table]:
        """Yields tables with `user` and `item` (dictionary of strings), and where named `time` (int64, float64 or
        timestamp) and `rating` (float32); at most about 16 MiB of text each, in file order.

        Raises:
          RestartReading: call this again, and discard all tables.
          UserError: with the number of the first faulty line.
        """
        some = False
        for file in self.files:
            try:
                for table in _in_order(
                    self._parse, file, text.line_blocks(file.path, file.quotes, file.header)
                ):
                    some = some or table.num_rows > 0
                    yield table
            except _OtherKinds as found:
                self._learn(file, *found.args)
            except pa.ArrowInvalid as error:
                self._reconsider(file, str(error).split("\n")[0])
        if not some and self._filter is None:
            raise UserError(
                f"{self.files[0].path} has a header but no rows; it should hold interactions."
            )

    def _parse(self, file: TextFile, data: bytes) -> pa.Table:
        try:
            return self._table(file, data)
        except pa.ArrowInvalid:
            # Lines of blanks alone are rare: looked for only now.
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
        believed = {name: self._filter_kinds.get(name) for name in extra if name not in kinds}
        try:
            table = parse(
                file, data, kinds | {name: kind for name, kind in believed.items() if kind}, wanted
            )
        except pa.ArrowInvalid:
            if not any(believed.values()):
                raise
            # Raises likewise unless it is a column of the filter that does not fit.
            table = parse(file, data, kinds, wanted)
            raise _OtherKinds({name: table.schema.field(name).type for name in believed}) from None
        if table.num_rows and not all(believed.values()):
            # A condition means the same in all blocks, so their types are agreed on before it is applied to any.
            raise _OtherKinds({name: table.schema.field(name).type for name in believed})
        if self._filter:
            table = self._filter.apply(table, file.path)
        columns = {role: table[name] for role, name in roles.named().items()}
        table = pa.table(columns).unify_dictionaries().combine_chunks()
        _refuse_gaps(table)
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
        if (
            before | wider == before
        ):  # such as 0x1F, which Arrow takes for a whole number but not for a fraction
            wider = {name: pa.string() for name, kind in found.items() if kind != before[name]}
        if before | wider == before:
            self._reconsider(
                file, "a column of config.data.where does not hold what it seems to hold"
            )
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
        if (
            self._unquoted
        ):  # some fields look quoted, but the file does not follow the rules of quoting
            (self.files, self._kinds), self._unquoted = self._unquoted, None
            raise RestartReading
        raise_fault(file, self.roles, reason)


def _wider(believed: pa.DataType | None, found: pa.DataType) -> pa.DataType:
    """Returns a type for the values of blocks that look like the one and of blocks that look like the other."""
    if believed in (None, pa.null()):
        return found
    if found in (believed, pa.null()):
        return believed
    if pa.binary() in (believed, found):  # text that is no UTF-8
        return pa.binary()
    for kinds in _WIDER:
        if believed in kinds and found in kinds:
            return kinds[max(kinds.index(believed), kinds.index(found))]
    return pa.string()


def _in_order(parse_block: Callable, file: TextFile, blocks: Iterator[bytes]) -> Iterator[pa.Table]:
    """Parses blocks in threads (Arrow lets go of the interpreter), and yields the tables in order."""
    workers = min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(workers, "read") as pool:
        under_way: collections.deque = collections.deque()
        try:
            for block in blocks:
                under_way.append(pool.submit(parse_block, file, block))
                if len(under_way) > workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def read_all(file: TextFile, kinds: dict[str, pa.DataType]) -> pa.Table:
    """Reads every column of a small file; types as given, else guessed.

    Raises:
      UserError: with the number of the first line of the wrong length.
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
      file: how they are laid out.
      data: the rows, without header.
      kinds: types of columns; others are guessed.
      columns: what is wanted; empty: all.

    Raises:
      pa.ArrowInvalid: a row does not fit.
    """
    separator = file.separator
    if len(separator) > 1:
        data, separator = (
            data.replace(separator.encode(file.encoding), _STAND_IN.encode()),
            _STAND_IN,
        )
    if not data.strip():
        names = columns or file.names
        return pa.table({name: pa.array([], kinds.get(name, pa.string())) for name in names})
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(
            use_threads=not columns,
            block_size=max(
                1 << 24, min(len(data), 2**31 - 1)
            ),  # Arrow guesses types from its first block
            column_names=file.names,
            encoding=file.encoding,
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=separator,
            quote_char='"' if file.quotes else False,
            newlines_in_values=file.quotes,
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types=kinds, include_columns=columns, null_values=[""]
        ),
    )


def _dictionary(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0).dictionary if column.num_chunks else pa.array([], pa.string())


def _refuse_gaps(table: pa.Table) -> None:
    """Refuses a row without an id or a rating, or with a number that is none (nan, inf) or far too large."""
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
