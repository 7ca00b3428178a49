# SPDX-License-Identifier: Apache-2.0
"""Histories packed into rows, and batches that are a pure function of (seed, step).

Batches are stateless: a checkpoint stores only the step, a resumed run gets the same batches, and
every host can build any part of any batch.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from bert4rec_jax.data.dataset import Dataset
from bert4rec_jax.data.ranges import expand_ranges
from bert4rec_jax.data.splits import Split

# np.ndarray on the host, jax.Array on devices, jax.ShapeDtypeStruct where only shapes are known.
BatchArray = Any


class Packed(NamedTuple):
    """Rows of packed histories.

    Attributes:
      tokens: int32[B, L], item ids; 0 is padding, which is only at the right end of a row.
      segments: int32[B, L], number of the history within its row, from 1 on the left; 0 is padding.
      from_left: int32[B, L], number of items of the same history before this one.
      from_right: int32[B, L], number of items of the same history after this one.
    """

    tokens: BatchArray
    segments: BatchArray
    from_left: BatchArray
    from_right: BatchArray


class Packing(NamedTuple):
    """Row and column of every history, for given lengths.

    Attributes:
      order: int64[n], histories from long to short.
      row: int32[n], row of the history order[i].
      start: int32[n], first column of the history order[i].
      num_rows: number of rows.
    """

    order: np.ndarray
    row: np.ndarray
    start: np.ndarray
    num_rows: int


def pack(lengths: np.ndarray, row_length: int) -> Packing:
    """Packs histories into rows by best-fit decreasing.

    Histories of the same length are placed together, so this takes O(row_length^2) array
    operations for any number of histories.

    Args:
      lengths: int[n], each in [1, row_length].
      row_length: columns per row.
    """
    order = np.argsort(-lengths, kind="stable")
    counts = np.bincount(lengths, minlength=row_length + 1)
    rows_by_free = [np.empty(0, np.int32) for _ in range(row_length + 1)]  # by free columns
    row = np.empty(len(lengths), np.int32)
    start = np.empty(len(lengths), np.int32)
    placed = 0
    num_rows = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        remaining = int(counts[length])
        while remaining:
            free = next((n for n in range(length, row_length) if len(rows_by_free[n])), None)
            if free is None:
                # Open rows for the remaining histories of this length, and at least one row.
                opened = max(remaining // (row_length // length), 1)
                free = row_length
                rows_by_free[free] = np.arange(num_rows, num_rows + opened, dtype=np.int32)
                num_rows += opened
            chosen = rows_by_free[free][:remaining]
            rows_by_free[free] = rows_by_free[free][len(chosen) :]
            left = free - length
            rows_by_free[left] = np.concatenate([rows_by_free[left], chosen])
            end = placed + len(chosen)
            row[placed:end] = chosen
            start[placed:end] = row_length - free
            placed = end
            remaining -= len(chosen)
    return Packing(order, row, start, num_rows)


class _Placed(NamedTuple):
    """Histories of one batch: row, first column, first position in the log, and length of each."""

    row: np.ndarray
    start: np.ndarray
    first: np.ndarray
    length: np.ndarray


def _fill(items: np.ndarray, placed: _Placed, num_rows: int, row_length: int) -> Packed:
    """Builds the arrays of a batch; the histories of a row are numbered from left to right."""
    by_column = np.lexsort((placed.start, placed.row))
    row, start, first, length = (values[by_column] for values in placed)
    number = np.arange(len(row)) - np.searchsorted(row, row) + 1
    history, column = expand_ranges(start, start + length)
    inside = column - start[history]
    flat = row.astype(np.int64)[history] * row_length + column
    # The column of [MASK] after the last history of a log has no event.
    event = np.minimum(first[history] + inside, len(items) - 1)

    def filled(values: np.ndarray) -> np.ndarray:
        array = np.zeros(num_rows * row_length, np.int32)
        array[flat] = values
        return array.reshape(num_rows, row_length)

    return Packed(
        tokens=filled(items[event]),
        segments=filled(number[history]),
        from_left=filled(inside),
        from_right=filled(length[history] - inside - 1),
    )


class _Epoch(NamedTuple):
    """The random choices of one epoch.

    Attributes:
      users: int32[n], place in `_users` of the user at every place of the packing.
      skipped: int32[n], number of events that the user's window skips; None: the newest window.
      rows: int32[rows], packed row of every row of the epoch.
    """

    users: np.ndarray
    skipped: np.ndarray | None
    rows: np.ndarray


class TrainingBatches:
    """Batches of packed training histories.

    An epoch contains every user with at least two training items once. A history longer than a row
    contributes its newest part or a random window. The lengths and therefore the packing are the
    same in every epoch; the assignment of users to places and the order of the rows are random.
    A batch may contain the end of one epoch and the beginning of the next.

    Attributes:
      rows_per_epoch: number of rows per epoch.
      tokens_per_epoch: number of items in these rows.
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
        """Plans the packing.

        Memory depends only on the number of users: about 30 bytes per user, and 8 (newest windows:
        4) for each of the two epochs that a batch may contain. Only the pages of the log with the
        histories of a batch are read.

        Args:
          dataset: the data.
          split: its training events.
          row_length: columns of a row.
          batch_rows: rows of a batch.
          windows: "newest" or "random", the part of a longer history.
          seed: seed of all random choices.
        """
        sizes = split.train_stop - dataset.offsets[:-1]
        self._users = np.flatnonzero(sizes >= 2).astype(np.int32)
        self._items = dataset.items
        self._starts = dataset.offsets[:-1]
        self._stops = split.train_stop
        self._lengths = np.minimum(sizes[self._users], row_length).astype(np.int32)
        self._row_length = row_length
        self._batch_rows = batch_rows
        self._windows = windows
        self._seed = seed
        self._packing = pack(self._lengths, row_length)
        self.rows_per_epoch = self._packing.num_rows
        self.tokens_per_epoch = int(self._lengths.sum(dtype=np.int64))
        # Places in the packing of row r: by_row[bounds[r]:bounds[r + 1]].
        self._by_row = np.argsort(self._packing.row, kind="stable").astype(np.int32)
        rows = np.arange(self.rows_per_epoch + 1)
        self._bounds = np.searchsorted(self._packing.row, rows, sorter=self._by_row)
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def steps_per_epoch(self) -> float:
        """Returns the number of steps per epoch."""
        return self.rows_per_epoch / self._batch_rows

    def most_in_a_row(self, per_length: np.ndarray) -> int:
        """Returns the largest sum over a row of per_length[length of each history in it]."""
        weights = per_length[self._lengths[self._packing.order]]
        return int(np.bincount(self._packing.row, weights=weights).max())

    def _draw_epoch(self, epoch: int) -> _Epoch:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        shuffled = generator.permutation(len(self._users)).astype(np.int32)
        users = shuffled[np.argsort(-self._lengths[shuffled], kind="stable")]
        skipped = None
        if self._windows == "random":
            skipped = generator.integers(0, self._overflow(users) + 1).astype(np.int32)
        rows = np.empty(self.rows_per_epoch, np.int32)
        positions = generator.permutation(self.rows_per_epoch)
        rows[positions] = np.arange(self.rows_per_epoch, dtype=np.int32)
        return _Epoch(users, skipped, rows)

    def _overflow(self, places: np.ndarray) -> np.ndarray:
        """Returns the number of events of each user that do not fit into a row."""
        users = self._users[places]
        return self._stops[users] - self._starts[users] - self._lengths[places]

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Packed:
        """Returns the rows of a batch.

        Args:
          step: number of the batch, from 0.
          part: which of `parts` equal parts of the batch to return.
          parts: number of parts, a divisor of the batch's rows.
        """
        size = self._batch_rows // parts
        begin = step * self._batch_rows + part * size
        pieces = []
        filled = 0
        while filled < size:
            epoch, row = divmod(begin + filled, self.rows_per_epoch)
            count = min(size - filled, self.rows_per_epoch - row)
            pieces.append(self._place(self._epoch(epoch), row, count, filled))
            filled += count
        placed = _Placed(*(np.concatenate(arrays) for arrays in zip(*pieces)))
        return _fill(self._items, placed, size, self._row_length)

    def _place(self, epoch: _Epoch, first: int, count: int, filled: int) -> _Placed:
        """Places rows first..first+count-1 of an epoch in a batch, from row `filled` on."""
        rows = epoch.rows[first : first + count]
        owner, index = expand_ranges(self._bounds[rows], self._bounds[rows + 1])
        places = self._by_row[index]
        users = epoch.users[places]
        skipped = self._overflow(users) if epoch.skipped is None else epoch.skipped[places]
        return _Placed(
            row=filled + owner,
            start=self._packing.start[places],
            first=self._starts[self._users[users]] + skipped,
            length=self._lengths[users].astype(np.int64),
        )


class RankingBatch(NamedTuple):
    """Packed histories to rank the next item of.

    Attributes:
      packed: the rows; each history ends in [MASK] if the model ranks from it.
      slots: int32[B, K], last column of each history; 0 if unused.
      cases: int32[B, K], number of the case; -1 if unused.
    """

    packed: Packed
    slots: np.ndarray
    cases: np.ndarray


class RankingBatches:
    """Histories to rank, packed into batches that are built on access; every case occurs once.

    The last rows of a batch may be empty.
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
          batch_rows: rows of a batch.
          mask: token to append to every history, or None.
        """
        self._items = items
        self._targets = targets
        self._mask = mask
        self._row_length = row_length
        self._batch_rows = batch_rows
        self._num_masks = 0 if mask is None else 1
        newest = np.minimum(targets - starts, row_length - self._num_masks)
        self._lengths = newest + self._num_masks
        self._packing = pack(self._lengths, row_length)
        self._num_batches = -(-self._packing.num_rows // batch_rows)
        histories_per_row = np.bincount(self._packing.row)
        self._num_slots = int(np.max(histories_per_row))
        # The last rows of a packing contain many short histories. Dealing the rows out to the
        # batches gives all batches about the same number of histories.
        self._row, batch = np.divmod(self._packing.row, self._num_batches)
        self._by_row = np.lexsort((self._row, batch))
        numbers = np.arange(self._num_batches + 1)
        self._bounds = np.searchsorted(batch, numbers, sorter=self._by_row)

    def case_ids(self, number: int) -> np.ndarray:
        """Returns the cases of a batch, int64, in the order of its slots."""
        return self._packing.order[self._places(number)]

    def _places(self, number: int) -> np.ndarray:
        return self._by_row[self._bounds[number] : self._bounds[number + 1]]

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, number: int) -> RankingBatch:
        if not 0 <= number < self._num_batches:
            raise IndexError(number)
        places = self._places(number)
        rows = self._row[places]
        case = self._packing.order[places]
        lengths = self._lengths[case]
        # The column of [MASK] is first filled with the target of the case, then overwritten.
        first = self._targets[case] - lengths + self._num_masks
        placed = _Placed(rows, self._packing.start[places], first, lengths)
        packed = _fill(self._items, placed, self._batch_rows, self._row_length)
        last = placed.start + lengths - 1
        if self._mask is not None:
            packed.tokens[rows, last] = self._mask
        slot = np.arange(len(rows)) - np.searchsorted(rows, rows)
        slots = np.zeros((self._batch_rows, self._num_slots), np.int32)
        cases = np.full((self._batch_rows, self._num_slots), -1, np.int32)
        slots[rows, slot] = last
        cases[rows, slot] = case
        return RankingBatch(packed, slots, cases)
