# SPDX-License-Identifier: Apache-2.0
"""Histories packed into rows, and batches that are a pure function of (seed, step).

Nothing here has state to save: a checkpoint needs the step alone, a resumed run sees the same batches, and a host
may ask for any part of any batch.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bert4rec_jax.data.dataset import Dataset
from bert4rec_jax.data.ranges import expand_ranges
from bert4rec_jax.data.splits import Split


class Packed(NamedTuple):
    """Rows of histories.

    Attributes:
      tokens: int32[B, L], item ids, 0 on padding.
      segments: int32[B, L], 1.. for the histories of a row from left to right, 0 on padding (only at the right end).
      from_left: int32[B, L], items of the same history before this one.
      from_right: int32[B, L], items of the same history after this one.
    """

    tokens: np.ndarray
    segments: np.ndarray
    from_left: np.ndarray
    from_right: np.ndarray


class Packing(NamedTuple):
    """Where histories of given lengths go.

    Attributes:
      row: int32[n], row of each history, in the order that `order` lists them.
      start: int32[n], first column.
      order: int64[n], histories from long to short.
      num_rows: how many rows there are.
    """

    row: np.ndarray
    start: np.ndarray
    order: np.ndarray
    num_rows: int


def pack(lengths: np.ndarray, row_length: int) -> Packing:
    """Best-fit-decreasing packing, by counts: O(row_length^2) array operations whatever the number of histories.

    Args:
      lengths: int[n], each in [1, row_length].
      row_length: columns of a row.
    """
    order = np.argsort(-lengths, kind="stable")
    counts = np.bincount(lengths, minlength=row_length + 1)
    rows_by_room = [
        np.empty(0, np.int32) for _ in range(row_length + 1)
    ]  # open rows by free columns
    row, start = np.empty(len(lengths), np.int32), np.empty(len(lengths), np.int32)
    done = num_rows = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            room = next((r for r in range(length, row_length) if len(rows_by_room[r])), None)
            if room is None:
                # A new row takes as many of this length as fit, unless fewer are left.
                fresh = max(left // (row_length // length), 1)
                rows_by_room[row_length] = np.arange(num_rows, num_rows + fresh, dtype=np.int32)
                num_rows += fresh
                room = row_length
            taken = rows_by_room[room][:left]
            rows_by_room[room] = rows_by_room[room][len(taken) :]
            row[done : done + len(taken)] = taken
            start[done : done + len(taken)] = row_length - room
            rows_by_room[room - length] = np.concatenate([rows_by_room[room - length], taken])
            done += len(taken)
            left -= len(taken)
    return Packing(row, start, order, num_rows)


class _Placed(NamedTuple):
    """Histories placed in the rows of a batch: row, column, position in the log and length of each."""

    row: np.ndarray
    start: np.ndarray
    first: np.ndarray
    length: np.ndarray


def _fill(items: np.ndarray, placed: _Placed, num_rows: int, row_length: int) -> Packed:
    """Builds the arrays of a batch; histories are numbered by column inside their row."""
    by_column = np.lexsort((placed.start, placed.row))
    row, start, first, length = (x[by_column] for x in placed)
    new_row = np.r_[True, row[1:] != row[:-1]] if len(row) else np.empty(0, bool)
    number = (
        np.arange(len(row)) - np.maximum.accumulate(np.where(new_row, np.arange(len(row)), 0)) + 1
    )
    owner, column = expand_ranges(start, start + length)
    inside = column - start[owner]
    flat = row.astype(np.int64)[owner] * row_length + column
    arrays = [np.zeros(num_rows * row_length, np.int32) for _ in range(4)]
    arrays[0][flat] = items[first[owner] + inside]
    arrays[1][flat] = number[owner]
    arrays[2][flat] = inside
    arrays[3][flat] = length[owner] - inside - 1
    return Packed(*(x.reshape(num_rows, row_length) for x in arrays))


class TrainingBatches:
    """Batches of packed training histories.

    An epoch visits every user with at least two training items once; longer histories than `row_length` contribute
    their newest part, or a random window. Lengths and thus the shape of the packing are the same in every epoch;
    which user sits where and the order of rows are drawn anew. Batches run on from one epoch into the next.

    Attributes:
      rows_per_epoch: rows that an epoch fills.
      tokens_per_epoch: items in them.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        row_length: int,
        batch_rows: int,
        windows: str,
        seed: int,
    ):
        """Plans the packing; arguments as in the configuration.

        Memory grows with users alone: about 30 bytes for each, and 8 (newest windows: 4) for each of the two epochs
        that a batch may touch. Of the log, a batch reads the pages of its own histories.
        """
        starts, stops = dataset.offsets[:-1], split.train_stop
        full = stops - starts
        self._users = np.flatnonzero(full >= 2).astype(np.int32)
        self._items, self._starts, self._stops = dataset.items, starts, stops
        self._lengths = np.minimum(full[self._users], row_length).astype(np.int32)
        self._row_length, self._batch_rows, self._windows, self._seed = (
            row_length,
            batch_rows,
            windows,
            seed,
        )
        self._packing = pack(self._lengths, row_length)
        self.rows_per_epoch = self._packing.num_rows
        self.tokens_per_epoch = int(self._lengths.sum(dtype=np.int64))
        # Places of each packed row: by_row[bounds[r]:bounds[r + 1]].
        self._by_row = np.argsort(self._packing.row, kind="stable").astype(np.int32)
        self._bounds = np.searchsorted(
            self._packing.row, np.arange(self.rows_per_epoch + 1), sorter=self._by_row
        )
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def steps_per_epoch(self) -> float:
        """Returns how many steps visit every user once."""
        return self.rows_per_epoch / self._batch_rows

    def most_in_a_row(self, per_length: np.ndarray) -> int:
        """Returns the largest sum over a row of per_length[length of each history in it]."""
        sorted_lengths = self._lengths[self._packing.order]
        return int(np.bincount(self._packing.row, weights=per_length[sorted_lengths]).max())

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Returns, of each place, the user (a place in `_users`) and how many events its window skips (None: all but
        the newest), and of each new row the packed row that takes its place."""
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        shuffled = generator.permutation(len(self._users)).astype(np.int32)
        users = shuffled[np.argsort(-self._lengths[shuffled], kind="stable")]
        skipped = None
        if self._windows == "random":
            skipped = generator.integers(0, self._room(users) + 1).astype(np.int32)
        rows = np.empty(self.rows_per_epoch, np.int32)
        rows[generator.permutation(self.rows_per_epoch)] = np.arange(
            self.rows_per_epoch, dtype=np.int32
        )
        return users, skipped, rows

    def _room(self, users: np.ndarray) -> np.ndarray:
        """Returns how many events of each user do not fit into a row."""
        return (
            self._stops[self._users[users]]
            - self._starts[self._users[users]]
            - self._lengths[users]
        )

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Packed:
        """Returns rows of batch `step` (0, 1, ...); with `parts` > 1 only the part-th of as many equal parts."""
        size = self._batch_rows // parts
        begin = step * self._batch_rows + part * size
        placed, filled = [], 0
        while filled < size:
            epoch, row = divmod(begin + filled, self.rows_per_epoch)
            count = min(size - filled, self.rows_per_epoch - row)
            users, skipped, rows = self._epoch(epoch)
            packed_rows = rows[row : row + count]
            owner, place = expand_ranges(self._bounds[packed_rows], self._bounds[packed_rows + 1])
            places = self._by_row[place]
            who = users[places]
            skip = self._room(who) if skipped is None else skipped[places]
            placed.append(
                _Placed(
                    filled + owner,
                    self._packing.start[places],
                    self._starts[self._users[who]] + skip,
                    self._lengths[who].astype(np.int64),
                )
            )
            filled += count
        return _fill(
            self._items, _Placed(*(np.concatenate(x) for x in zip(*placed))), size, self._row_length
        )


class RankingBatch(NamedTuple):
    """Histories to continue, packed.

    Attributes:
      packed: the rows; for the masked objective each history ends in a [MASK].
      slots: int32[B, K], last column of each history (0 where unused).
      cases: int32[B, K], number of the case, -1 where unused.
    """

    packed: Packed
    slots: np.ndarray
    cases: np.ndarray


class RankingBatches(Sequence):
    """Histories to rank, packed into batches that are built on access; every case occurs once.

    Batches may end in empty rows.
    """

    def __init__(
        self,
        items: np.ndarray,
        starts: np.ndarray,
        targets: np.ndarray,
        row_length: int,
        batch_rows: int,
        mask: int | None,
    ):
        """Packs the histories items[starts[n]:targets[n]].

        Args:
          items: int32, the log.
          starts: int64[n], first event of each history.
          targets: int64[n], the event after its last.
          row_length: columns of a row; longer histories keep their newest part.
          batch_rows: rows per batch.
          mask: token to append to every history, or None.
        """
        self._items, self._targets, self._mask = items, targets, mask
        self._row_length, self._batch_rows = row_length, batch_rows
        spare = int(mask is not None)
        self._lengths = np.minimum(targets - starts, row_length - spare) + spare
        self._packing = packing = pack(self._lengths, row_length)
        self._num_batches = -(-packing.num_rows // batch_rows)
        self._num_slots = int(np.bincount(packing.row).max())
        # Packing ends with the rows that hold many short histories; they are dealt out, so that batches hold about as
        # many.
        self._row, batch = np.divmod(packing.row, self._num_batches)
        self._by_row = np.lexsort((self._row, batch))
        self._bounds = np.searchsorted(batch, np.arange(self._num_batches + 1), sorter=self._by_row)

    def case_ids(self, number: int) -> np.ndarray:
        """Returns int64: which cases a batch holds, in the order in which its `cases` name them."""
        return self._packing.order[self._by_row[self._bounds[number] : self._bounds[number + 1]]]

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, number: int) -> RankingBatch:
        if not 0 <= number < self._num_batches:
            raise IndexError(number)
        spare = int(self._mask is not None)
        places = self._by_row[self._bounds[number] : self._bounds[number + 1]]
        rows, case = self._row[places], self._packing.order[places]
        lengths = self._lengths[case]
        placed = _Placed(
            rows, self._packing.start[places], self._targets[case] - lengths + spare, lengths
        )
        # The column of [MASK] is first filled from the target's own place in the log, then overwritten.
        packed = _fill(self._items, placed, self._batch_rows, self._row_length)
        last = placed.start + lengths - 1
        if self._mask is not None:
            packed.tokens[rows, last] = self._mask
        slot = np.arange(len(rows)) - np.searchsorted(rows, rows)
        slots = np.zeros((self._batch_rows, self._num_slots), np.int32)
        numbers = np.full((self._batch_rows, self._num_slots), -1, np.int32)
        slots[rows, slot], numbers[rows, slot] = last, case
        return RankingBatch(packed, slots, numbers)
