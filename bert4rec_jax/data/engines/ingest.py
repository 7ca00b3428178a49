# SPDX-License-Identifier: Apache-2.0
"""Brings a log into one Parquet file of the columns uid, iid, stamp and rating, a block at a time, in file order.

Ids that are whole numbers, written as such, are kept as numbers, which engines handle several times faster; the
original text comes back from them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert4rec_jax.data.arrange import are_whole_numbers
from bert4rec_jax.data.sources.log import Again, Blocks, numeric_times
from bert4rec_jax.errors import UserError
from bert4rec_jax.progress import ProgressBar


@dataclass
class Shape:
    """What the columns of a log hold.

    Attributes:
      user_texts: uid is text, not whole numbers.
      item_texts: likewise iid.
      users_are_numbers: uid sorts as numbers although it is text, as in "007".
      has_times: there is a column stamp, and not all of it is missing.
      time_unit: how many of its units a second has.
      has_ratings: there is a column rating.
      rows: of the log.
    """

    user_texts: bool = False
    item_texts: bool = False
    users_are_numbers: bool = True
    has_times: bool = False
    time_unit: int = 1
    has_ratings: bool = False
    rows: int = 0


class _Texts(Exception):
    """Ids turned out to be text."""


def ingest(reader: Blocks, path: str) -> dict:
    """Writes the Parquet file and returns its `Shape` as a dict.

    Raises:
      UserError: with file and line.
    """
    texts = {"user": False, "item": False}
    while True:
        shape = Shape(users_are_numbers=True)
        try:
            _write(reader, path, texts, shape)
        except (Again, _Texts):
            continue
        shape.user_texts, shape.item_texts = texts["user"], texts["item"]
        return asdict(shape)


def _write(reader: Blocks, path: str, texts: dict[str, bool], shape: Shape) -> None:
    writer, known = None, 0
    try:
        with ProgressBar("reading the log", reader.bytes >> 20, "MiB") as phase:
            for table in reader.blocks():
                columns = {
                    "uid": _ids(table["user"], "user", texts),
                    "iid": _ids(table["item"], "item", texts),
                }
                if texts["user"] and shape.users_are_numbers:
                    shape.users_are_numbers = are_whole_numbers(pc.unique(columns["uid"]))
                if "time" in table.column_names:
                    times, shape.time_unit = numeric_times(table["time"])
                    known += len(times) - times.null_count
                    columns["stamp"] = times
                if "rating" in table.column_names:
                    columns["rating"] = table["rating"].cast(pa.float32())
                block = pa.table(columns)
                if writer is None:
                    # Plain pages: this file is read once, and compression would take longer than all else.
                    writer = pq.ParquetWriter(
                        path, block.schema, compression="none", use_dictionary=False
                    )
                if block.schema != writer.schema:
                    raise UserError(
                        "the files of the log hold times of different types; bring them into one."
                    )
                if len(block):
                    writer.write_table(block)
                shape.rows += len(block)
                phase.advance(table.nbytes >> 20)
        shape.has_times, shape.has_ratings = known > 0, "rating" in columns
    finally:
        if writer:
            writer.close()


def _ids(column: pa.ChunkedArray, role: str, texts: dict[str, bool]) -> pa.Array:
    """Returns ids as int64, or as trimmed text once one of them is none.

    Raises:
      _Texts: text comes after blocks of numbers.
    """
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = (
            column.chunk(0)
            if column.num_chunks
            else pa.array([], pa.dictionary(pa.int32(), pa.string()))
        )
    values = pc.utf8_trim_whitespace(column.dictionary.cast(pa.string()))
    if not texts[role]:
        try:
            numbers = values.cast(pa.int64())
            if numbers.cast(pa.string()).equals(values):
                return numbers.take(column.indices)
        except pa.ArrowInvalid:
            pass
        texts[role] = True
        raise _Texts
    return values.take(column.indices)
