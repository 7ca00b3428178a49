# SPDX-License-Identifier: Apache-2.0
"""Writes the files of a prepared folder from a stream of sorted events.

All engines use this, so the same log becomes the same bytes. Memory grows with the number of items
only.
"""

from __future__ import annotations

import hashlib
import json
import os
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert4rec_jax.data.dataset import FORMAT
from bert4rec_jax.errors import UserError

ORDER = "timestamp, ties in file order (stable)"
FILE_ORDER = "file order (the source has no timestamps)"
_TABLE_ROWS = 1 << 20  # per row group
_HASHED_BYTES = 1 << 23
MOST_ITEMS = 2**31 - 2  # ids are int32, and [MASK] needs one more


class _Array:
    """A one-dimensional .npy file that grows."""

    def __init__(self, folder: str, name: str, dtype: type):
        self.name = name
        self.dtype = np.dtype(dtype)
        self.length = 0
        self.path = os.path.join(folder, f"{name}.npy")
        self._file = open(self.path, "wb")  # noqa: SIM115
        self._write_header()

    def _write_header(self) -> None:
        # NumPy reserves space for a larger length, so the size of the header does not change.
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()


class Writer:
    """Numbers items by first appearance, and writes arrays, item table and manifest.

    Attributes:
      interactions: number of events written so far.
      users: number of users written so far.
      items: number of distinct items so far.
    """

    def __init__(self, folder: str, has_times: bool, num_codes: int):
        """Opens the files.

        Args:
          folder: an empty folder.
          has_times: whether to write timestamps.
          num_codes: the codes of items are below this.
        """
        self._folder = folder
        self._items = _Array(folder, "items", np.int32)
        self._offsets = _Array(folder, "offsets", np.int64)
        self._times = _Array(folder, "timestamps", np.int64) if has_times else None
        self._offsets.write(np.zeros(1, np.int64))
        self._numbers = np.zeros(num_codes, np.int32)
        self._codes: list[np.ndarray] = []
        self.items = 0
        self.users = 0
        self.interactions = 0
        self._ties = dict.fromkeys(("events", "targets", "tied_targets", "duplicates"), 0)
        self._span: list[int] = []
        self._whole = True

    def add(
        self, lengths: np.ndarray, codes: np.ndarray, seconds: np.ndarray | None, whole: bool = True
    ) -> None:
        """Appends users.

        Args:
          lengths: int64[users], number of events, at least 1.
          codes: int[events], codes of the items.
          seconds: int64[events], ascending within a user; None if the log lacks times.
          whole: whether the times had no fractions.

        Raises:
          UserError: there are more items than int32 can number.
        """
        numbers = self._number_items(codes)
        self._items.write(numbers)
        self._whole = self._whole and whole
        ends = np.cumsum(lengths)
        self._offsets.write(self.interactions + ends)
        if seconds is not None and self._times is not None:
            self._times.write(seconds)
            self._count_ties(lengths, ends, numbers, seconds)
        self.interactions += len(codes)
        self.users += len(lengths)

    def _number_items(self, codes: np.ndarray) -> np.ndarray:
        """Returns int32[events] item numbers; new items get the next numbers."""
        numbers = self._numbers[codes]
        unnumbered = np.flatnonzero(numbers == 0)
        if not len(unnumbered):
            return numbers
        new, first_places = np.unique(codes[unnumbered], return_index=True)
        new = new[np.argsort(first_places)]
        first_number = self.items + 1
        self.items += len(new)
        if self.items > MOST_ITEMS:
            raise UserError(
                f"the log has more than {MOST_ITEMS:,} items; raise config.filter.item_core."
            )
        self._numbers[new] = np.arange(first_number, self.items + 1, dtype=np.int32)
        self._codes.append(new)
        numbers[unnumbered] = self._numbers[codes[unnumbered]]
        return numbers

    def _count_ties(
        self, lengths: np.ndarray, ends: np.ndarray, numbers: np.ndarray, seconds: np.ndarray
    ) -> None:
        """Counts events in the same second as the user's event before; updates the time span."""
        tied = np.zeros(len(seconds) + 1, bool)
        tied[1:-1] = seconds[1:] == seconds[:-1]
        tied[ends - lengths] = False
        targets = ends[lengths >= 3] - 1
        self._ties["events"] += int(np.count_nonzero(tied))
        self._ties["targets"] += len(targets)
        self._ties["tied_targets"] += int(np.count_nonzero(tied[targets]))
        # Copies of an event have the same user and second.
        candidates = np.flatnonzero(tied[:-1] | tied[1:])
        if len(candidates):
            group = np.cumsum(~tied[candidates])
            distinct = np.unique(group * np.int64(self.items + 1) + numbers[candidates])
            self._ties["duplicates"] += len(candidates) - len(distinct)
        first = min([int(seconds.min()), *self._span[:1]])
        last = max([int(seconds.max()), *self._span[1:]])
        self._span = [first, last]

    def codes_in_order(self) -> np.ndarray:
        """Returns the code of each item from 1 on."""
        return np.concatenate(self._codes) if self._codes else np.zeros(0, np.int64)

    def close(self) -> None:
        """Closes the arrays."""
        for array in self._arrays():
            array.close()

    def _arrays(self) -> list[_Array]:
        return [array for array in (self._items, self._offsets, self._times) if array]

    def finish(self, facts: dict, item_ids: pa.Array, known: pa.Table | None, counts: dict) -> None:
        """Writes the item table and the manifest; `users.parquet` must exist.

        Args:
          facts: the manifest's description of the source.
          item_ids: string array, original ids in the order of numbers.
          known: the source's item table, or None.
          counts: the events left by each filter, and the missing times.
        """
        self.close()
        items, agreement = _item_table(item_ids, known)
        pq.write_table(
            items, os.path.join(self._folder, "items.parquet"), row_group_size=_TABLE_ROWS
        )
        if self._times:
            counts = counts | {"exact_duplicates": self._ties["duplicates"]}
        fingerprint, hashed = self._hash_files()
        manifest = (
            {"format": FORMAT}
            | facts
            | {
                "order": ORDER if self._times else FILE_ORDER,
                "users": self.users,
                "items": self.items,
                "interactions": self.interactions,
                "counts": counts | agreement,
            }
            | (self._time_facts() if self._times else {})
            | {"fingerprint": fingerprint, "files": hashed}
        )
        with open(os.path.join(self._folder, "manifest.json"), "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=2)
            file.write("\n")

    def _time_facts(self) -> dict:
        """Returns the time span and the ties, as in the manifest."""
        ties = self._ties
        return {
            "times": {
                "first": self._span[0],
                "last": self._span[1],
                "whole_seconds": self._whole,
            },
            "ties": {
                "events": ties["events"],
                "share_of_events": ties["events"] / self.interactions,
                "leave_one_out_targets": ties["tied_targets"],
                "share_of_leave_one_out_targets": ties["tied_targets"] / max(1, ties["targets"]),
            },
        }

    def _hash_files(self) -> tuple[str, dict[str, dict]]:
        """Returns the fingerprint of the arrays, and the size and digest of every file."""
        content = hashlib.sha256()
        hashed = {}
        for array in self._arrays():
            content.update(f"{array.name} {array.dtype.str} {(array.length,)}".encode())
            hashed[f"{array.name}.npy"] = _hash(array.path, content)
        for name in ("users.parquet", "items.parquet"):
            hashed[name] = _hash(os.path.join(self._folder, name), None)
        return content.hexdigest()[:16], hashed


def _hash(path: str, content: hashlib._Hash | None) -> dict:
    """Returns size and digest of a file; updates `content` with the data of an array."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if content is not None:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            header = file.tell()
            file.seek(0)
            digest.update(file.read(header))
        while data := file.read(_HASHED_BYTES):
            digest.update(data)
            if content is not None:
                content.update(data)
    return {"bytes": os.path.getsize(path), "sha256": digest.hexdigest()}


class UserTable:
    """Writes users.parquet; a context manager.

    The row groups do not depend on the sizes of the arrays that are added.
    """

    def __init__(self, folder: str):
        """Opens the file."""
        self._schema = pa.schema({"user": pa.string()})
        self._writer = pq.ParquetWriter(os.path.join(folder, "users.parquet"), self._schema)
        self._waiting: list[pa.Array] = []
        self._count = 0

    def __enter__(self) -> UserTable:
        """Returns itself."""
        return self

    def add(self, users: pa.Array) -> None:
        """Appends original ids, a string array."""
        while len(users):
            part = users[: _TABLE_ROWS - self._count]
            self._waiting.append(part)
            self._count += len(part)
            users = users[len(part) :]
            if self._count == _TABLE_ROWS:
                self._flush()

    def _flush(self) -> None:
        users = pa.chunked_array(self._waiting, pa.string())
        self._writer.write_table(pa.table([users], schema=self._schema), _TABLE_ROWS)
        self._waiting = []
        self._count = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file; after an error, it is incomplete."""
        if self._count and kind is None:
            self._flush()
        self._writer.close()


def _item_table(item_ids: pa.Array, known: pa.Table | None) -> tuple[pa.Table, dict]:
    """Returns one row per item, and counts of how well the log and the table match.

    Items without a row in `known` have missing values. Rows without an event are left out. If an
    item has several rows, the first one is used.
    """
    facts = {"item_table": known is not None}
    if known is None:
        known = pa.table({"item": pa.array([], pa.string())})
    elif "title" not in known.column_names:
        facts["item_table_lacks_titles"] = True
    for name, kind in (("title", pa.string()), ("year", pa.int64()), ("genres", pa.string())):
        if name not in known.column_names:
            known = known.append_column(name, pa.nulls(len(known), kind))
    keys = known["item"].combine_chunks()
    rows = pc.index_in(item_ids, value_set=keys)
    order = ["title", "year", "genres"]
    order += [name for name in known.column_names if name not in ("item", *order)]
    table = known.take(rows).select(order).add_column(0, "item", item_ids)
    found = len(rows) - rows.null_count
    distinct = pc.count_distinct(keys).as_py()
    facts |= {
        "items_without_row": rows.null_count,
        "items_only_in_table": distinct - found,
        "repeated_rows_in_item_table": len(keys) - distinct,
    }
    if rows.null_count:
        unmatched = item_ids.filter(pc.is_null(rows))
        facts["item_without_row"] = unmatched[0].as_py()
        as_floats = pc.replace_substring_regex(unmatched, r"\.0$", "")
        facts["items_written_as_floats"] = pc.sum(pc.is_in(as_floats, value_set=keys)).as_py()
    return table, facts
