# SPDX-License-Identifier: Apache-2.0
"""What may be in a list: candidates and exclusions, for everybody or user by user."""

import csv
import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bert4rec_jax.data import expand_ranges
from bert4rec_jax.errors import UserError


@dataclass(frozen=True)
class Choice:
    """Items of a file: for everybody, or for each user.

    Attributes:
      everybody: int64, item numbers, sorted; None where the file is of pairs.
      users: string array [n], users with items of their own, or None.
      offsets: int64[n + 1], where the items of each of them begin in `items`.
      items: int32, item numbers.
      digest: of the file.
    """

    everybody: np.ndarray | None
    users: pa.Array | None
    offsets: np.ndarray | None
    items: np.ndarray | None
    digest: str

    def pairs(self, users: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Returns (place among `users`, item number) of every item of theirs; empty for a file for everybody."""
        if self.users is None:
            return np.empty(0, np.int64), np.empty(0, np.int32)
        rows = pc.fill_null(pc.index_in(users, value_set=self.users), -1).to_numpy()
        places = np.flatnonzero(rows >= 0)
        chosen = rows[places]
        owner, position = expand_ranges(self.offsets[chosen], self.offsets[chosen + 1])
        return places[owner], self.items[position]


def read_choice(path: str, flag: str, catalogue: pd.DataFrame) -> tuple[Choice, list[str]]:
    """Reads item ids, one a line, or a table with the columns `user` and `item` (comma, tab or semicolon).

    Args:
      path: the file.
      flag: for the message, as in "--exclude".
      catalogue: of the run.

    Returns:
      The choice, and what was left out, for people.

    Raises:
      UserError: it cannot be read or names no item that the run knows.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{flag} {path} cannot be read ({error}); give a file with one item id a line, or with the "
            "columns user and item."
        ) from None
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(
            f"{flag} {path} is empty; give one item id a line, or the columns user and item."
        )
    known = pa.array(catalogue["item"].astype(str), pa.string())
    separator = next(
        (
            s
            for s in "\t,;"
            if [c.strip() for c in lines[0].split(s)] in (["user", "item"], ["item", "user"])
        ),
        None,
    )
    if separator is None:
        ids = pa.array([line.strip() for line in lines], pa.string())
        numbers, notes = _numbers(ids, known, f"{flag} {path}")
        return Choice(
            np.unique(numbers[numbers > 0]).astype(np.int64), None, None, None, digest
        ), notes
    rows = list(csv.reader(lines, delimiter=separator))
    names = [name.strip() for name in rows[0]]
    wrong = next((n for n, row in enumerate(rows, 1) if len(row) != 2), None)
    if wrong:
        raise UserError(
            f"{flag} {path}: line {wrong} has {len(rows[wrong - 1])} fields and not two, a user and an "
            "item; correct it."
        )
    user, item = (
        pa.array([row[names.index(name)].strip() for row in rows[1:]], pa.string())
        for name in ("user", "item")
    )
    numbers, notes = _numbers(item, known, f"{flag} {path}")
    encoded = user.dictionary_encode()
    codes, kept = encoded.indices.to_numpy(), numbers > 0
    order = np.argsort(codes[kept], kind="stable")
    offsets = np.concatenate(
        [[0], np.cumsum(np.bincount(codes[kept], minlength=len(encoded.dictionary)))]
    )
    return Choice(
        None,
        encoded.dictionary,
        offsets.astype(np.int64),
        numbers[kept][order].astype(np.int32),
        digest,
    ), notes


def _numbers(ids: pa.Array, known: pa.Array, where: str) -> tuple[np.ndarray, list[str]]:
    numbers = pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy() + 1
    lacking = ids.filter(pa.array(numbers == 0)).unique().to_pylist()
    if len(lacking) and not (numbers > 0).any():
        raise UserError(
            f"{where} names no item that this run knows; its first is {lacking[0]!r}. Items are named by "
            "the ids of the training data."
        )
    if not lacking:
        return numbers, []
    shown = ", ".join(lacking[:5]) + (", ..." if lacking[5:] else "")
    return numbers, [
        f"{where}: {len(lacking):,} items are not in the training data and have no effect: {shown}."
    ]
