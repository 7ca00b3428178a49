# SPDX-License-Identifier: Apache-2.0
"""Popularity of items: counts of their training interactions, in one pass over the log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from bert4rec_jax.data.dataset import Dataset
from bert4rec_jax.data.order_statistics import quantile
from bert4rec_jax.data.ranges import expand_ranges, split_by_size
from bert4rec_jax.data.splits import Split


def training_counts(dataset: Dataset, split: Split) -> np.ndarray:
    """Returns the training interactions of every item id, int64[num_items + 1], cached on disk."""

    def count() -> np.ndarray:
        counts = np.zeros(dataset.num_items + 1, np.int64)
        for first, last in split_by_size(dataset.offsets):
            # Counting all events and subtracting those that are not trained on is twice as fast as
            # selecting those that are.
            stops = dataset.offsets[first + 1 : last + 1]
            events = dataset.items[dataset.offsets[first] : dataset.offsets[last]]
            _, left_out = expand_ranges(split.train_stop[first:last], stops)
            counts += np.bincount(events, minlength=len(counts))
            counts -= np.bincount(dataset.items[left_out], minlength=len(counts))
        return counts

    return dataset.cached(f"popularity-{_digest(split)}", count)


def recent_counts(dataset: Dataset, split: Split, share: float) -> np.ndarray:
    """Returns the counts over the newest `share` of all training interactions, cached on disk.

    The oldest time that counts is `np.quantile(times, 1 - share)`.

    Returns:
      int64[num_items + 1].
    """

    def times() -> Iterator[np.ndarray]:
        for events in training_blocks(dataset, split):
            yield np.asarray(dataset.times()[events])

    def count() -> np.ndarray:
        size = int(np.sum(split.train_stop - dataset.offsets[:-1]))
        cut = quantile(dataset, times, size, 1 - share)
        counts = np.zeros(dataset.num_items + 1, np.int64)
        for events in training_blocks(dataset, split):
            recent = events[np.asarray(dataset.times()[events]) >= cut]
            counts += np.bincount(dataset.items[recent], minlength=len(counts))
        return counts

    return dataset.cached(f"recent-{share}-{_digest(split)}", count)


def training_blocks(dataset: Dataset, split: Split) -> Iterator[np.ndarray]:
    """Yields the positions of all training events, int64, block by block."""
    for first, last in split_by_size(dataset.offsets):
        _, events = expand_ranges(dataset.offsets[first:last], split.train_stop[first:last])
        yield events


def _digest(split: Split) -> str:
    return hashlib.sha256(np.ascontiguousarray(split.train_stop).data).hexdigest()[:12]
