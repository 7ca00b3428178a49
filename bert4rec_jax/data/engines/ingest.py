# SPDX-License-Identifier: Apache-2.0
"""Copies a log into one Parquet file with the columns uid, iid, stamp and rating, in file order.

Ids that are whole numbers in canonical form become integers, which engines process several times
faster; their text is the same when they are converted back.
"""

from __future__ import annotations

from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert4rec_jax.data.engines.columns import LogColumns
from bert4rec_jax.data.sources.log import MICROSECONDS, Blocks, RestartReading
from bert4rec_jax.errors import UserError
from bert4rec_jax.progress import ProgressBar


class _FoundText(Exception):
    """An id is text, but earlier blocks were written as numbers."""


def ingest(reader: Blocks, path: str) -> dict:
    """Writes the Parquet file and returns its `LogColumns` as a dict.

    Raises:
      UserError: a row is invalid; names the file and the line.
    """
    text_roles: set[str] = set()
    while True:
        columns = LogColumns()
        try:
            _write(reader, path, text_roles, columns)
        except (RestartReading, _FoundText):
            continue
        columns.users_are_text = "user" in text_roles
        columns.items_are_text = "item" in text_roles
        return asdict(columns)


def _write(reader: Blocks, path: str, text_roles: set[str], columns: LogColumns) -> None:
    writer = None
    try:
        with ProgressBar("reading the log", reader.bytes >> 20, "MiB") as progress:
            for table in reader.blocks():
                block = _converted(table, text_roles, columns)
                if writer is None:
                    # The file is read once; compressing it would take longer than all the rest.
                    writer = pq.ParquetWriter(
                        path, block.schema, compression="none", use_dictionary=False
                    )
                if block.schema != writer.schema:
                    raise UserError(
                        "the files of the log contain times of different types; convert them to "
                        "one type."
                    )
                if len(block):
                    writer.write_table(block)
                columns.rows += len(block)
                progress.advance(table.nbytes >> 20)
    finally:
        if writer:
            writer.close()


def _converted(table: pa.Table, text_roles: set[str], columns: LogColumns) -> pa.Table:
    """Returns a block as it is written, and notes its contents in `columns`."""
    converted = {
        "uid": _ids(table["user"], "user", text_roles),
        "iid": _ids(table["item"], "item", text_roles),
    }
    if "user" in text_roles and columns.users_sort_as_numbers:
        columns.users_sort_as_numbers = are_whole_numbers(pc.unique(converted["uid"]))
    if "time" in table.column_names:
        times = table["time"]
        if pa.types.is_timestamp(times.type):
            columns.time_unit = MICROSECONDS
            times = times.cast(pa.int64())
        columns.has_times = columns.has_times or times.null_count < len(times)
        converted["stamp"] = times
    if "rating" in table.column_names:
        columns.has_ratings = True
        converted["rating"] = table["rating"].cast(pa.float32())
    return pa.table(converted)


def _ids(column: pa.ChunkedArray, role: str, text_roles: set[str]) -> pa.Array:
    """Returns ids as int64, or as trimmed text if the role is in `text_roles`.

    Raises:
      _FoundText: an id is the first text of its role; the role is now in `text_roles`.
    """
    encoded = column.combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        empty = pa.array([], pa.dictionary(pa.int32(), pa.string()))
        encoded = encoded.chunk(0) if encoded.num_chunks else empty
    values = pc.utf8_trim_whitespace(encoded.dictionary.cast(pa.string()))
    if role in text_roles:
        return values.take(encoded.indices)
    try:
        numbers = values.cast(pa.int64())
    except pa.ArrowInvalid:
        numbers = None
    if numbers is None or not numbers.cast(pa.string()).equals(values):
        text_roles.add(role)
        raise _FoundText
    return numbers.take(encoded.indices)


def are_whole_numbers(ids: pa.Array) -> bool:
    """Whether all ids are digits with an optional minus sign, and fit into 64 bits."""
    if pc.all(pc.match_substring_regex(ids, r"^-?[0-9]+$")).as_py() is False:
        return False
    try:
        pc.cast(ids, pa.int64())
    except pa.ArrowInvalid:
        return False
    return True
