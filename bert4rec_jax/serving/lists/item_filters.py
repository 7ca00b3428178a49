# SPDX-License-Identifier: Apache-2.0
"""Files that restrict the items of lists: candidates and exclusions, for all users or per user."""

import csv
import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bert4rec_jax.data import expand_ranges
from bert4rec_jax.errors import UserError

_HEADERS = (["user", "item"], ["item", "user"])
_SHOWN = 5  # unknown items in a note


@dataclass(frozen=True)
class UserItems:
    """Items of single users.

    Attributes:
      users: string array [n], original ids.
      offsets: int64[n + 1], where the items of each user begin in `items`.
      items: int32, item numbers.
    """

    users: pa.Array
    offsets: np.ndarray
    items: np.ndarray

    def pairs(self, users: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index into `users` and the item number of every item of these users."""
        rows = pc.fill_null(pc.index_in(users, value_set=self.users), -1).to_numpy()
        known = np.flatnonzero(rows >= 0)
        chosen = rows[known]
        index, position = expand_ranges(self.offsets[chosen], self.offsets[chosen + 1])
        return known[index], self.items[position]


@dataclass(frozen=True)
class ItemFilter:
    """The items of a file. One of the first two attributes is None.

    Attributes:
      for_all: int64, sorted item numbers, for all users.
      per_user: items of single users.
      fingerprint: of the file.
      notes: notes for the user about skipped items.
    """

    for_all: np.ndarray | None
    per_user: UserItems | None
    fingerprint: str
    notes: list[str]


def read_item_filter(path: str, flag: str, items_table: pd.DataFrame) -> ItemFilter:
    """Reads item ids, one per line, or a table with the columns `user` and `item` (comma, tab or
    semicolon).

    Args:
      path: the file.
      flag: name of the flag for messages, such as "--exclude".
      items_table: the items of the run.

    Raises:
      UserError: the file cannot be read, or the run knows none of its items.
    """
    where = f"{flag} {path}"
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.rstrip("\n") for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where} cannot be read ({error}); give a file with one item id per line, or with the "
            "columns "
            "user and item."
        ) from None
    if not lines:
        raise UserError(
            f"{where} is empty; give one item id per line, or the columns user and item."
        )
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    known = pa.array(items_table["item"].astype(str), pa.string())
    separator = _separator(lines[0])
    if separator is None:
        ids = pa.array([line.strip() for line in lines], pa.string())
        numbers, notes = _item_numbers(ids, known, where)
        for_all = np.unique(numbers[numbers > 0]).astype(np.int64)
        return ItemFilter(for_all, None, fingerprint, notes)
    users, ids = _read_columns(lines, separator, where)
    numbers, notes = _item_numbers(ids, known, where)
    is_known = numbers > 0
    encoded = users.dictionary_encode()
    codes = encoded.indices.to_numpy()[is_known]
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    offsets = np.append(0, np.cumsum(counts)).astype(np.int64)
    items = numbers[is_known][np.argsort(codes, kind="stable")].astype(np.int32)
    per_user = UserItems(encoded.dictionary, offsets, items)
    return ItemFilter(None, per_user, fingerprint, notes)


def _separator(header: str) -> str | None:
    """Returns the separator of a header with the columns user and item, or None if the line is not
    one.
    """
    for separator in "\t,;":
        if [name.strip() for name in header.split(separator)] in _HEADERS:
            return separator
    return None


def _read_columns(lines: list[str], separator: str, where: str) -> tuple[pa.Array, pa.Array]:
    """Returns the columns user and item, without the header."""
    rows = list(csv.reader(lines, delimiter=separator))
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UserError(
                f"{where}: line {number} has {len(row)} fields instead of two, a user and an item; "
                "correct it."
            )
    names = [name.strip() for name in rows[0]]
    columns = {}
    for column, name in enumerate(names):
        columns[name] = pa.array([row[column].strip() for row in rows[1:]], pa.string())
    return columns["user"], columns["item"]


def _item_numbers(ids: pa.Array, known: pa.Array, where: str) -> tuple[np.ndarray, list[str]]:
    """Returns the number of each item, 0 if the run does not know it, and a note about unknown
    items.
    """
    numbers = pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy() + 1
    unknown = ids.filter(pa.array(numbers == 0)).unique().to_pylist()
    if not unknown:
        return numbers, []
    if not (numbers > 0).any():
        raise UserError(
            f"{where}: the run knows none of these items; the first is {unknown[0]!r}. Use the "
            "item ids of the "
            "training data."
        )
    shown = ", ".join(unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
    note = f"{where}: {len(unknown):,} items are not in the training data and are ignored: {shown}."
    return numbers, [note]
