# SPDX-License-Identifier: Apache-2.0
"""Order statistics of the timestamps of a log, in a few passes of constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bert4rec_jax.data.dataset import Dataset

_INTERVALS = 1 << 20  # intervals of time whose events one pass counts

Blocks = Callable[[], Iterator[np.ndarray]]


def order_statistic(dataset: Dataset, blocks: Blocks, place: int) -> int:
    """Returns the timestamp at one place of the sorted timestamps.

    Args:
      dataset: its manifest contains the first and the last time.
      blocks: called once per pass; yields all timestamps in blocks, int64.
      place: from 0.
    """
    low = dataset.manifest["times"]["first"]
    high = dataset.manifest["times"]["last"]
    while low < high:
        width = (high - low) // _INTERVALS + 1
        counts = np.zeros((high - low) // width + 1, np.int64)
        for times in blocks():
            inside = times[(times >= low) & (times <= high)]
            # Unsigned, because two times may be more than 2**63 apart.
            interval_of = (inside - low).view(np.uint64) // np.uint64(width)
            counts += np.bincount(interval_of.astype(np.int64), minlength=len(counts))
        before = np.cumsum(counts) - counts
        # An empty interval has the same count before it as the next interval: take the last one.
        interval = int(np.searchsorted(before, place, "right")) - 1
        place -= int(before[interval])
        high = min(high, low + (interval + 1) * width - 1)
        low += interval * width
    return low


def quantile(dataset: Dataset, blocks: Blocks, size: int, share: float) -> float:
    """Returns `np.quantile(times, share)` of the `size` timestamps in `blocks`."""
    place = share * (size - 1)
    below = int(np.floor(place))
    above = min(below + 1, size - 1)
    ends = [order_statistic(dataset, blocks, end) for end in (below, above)]
    return float(np.quantile(ends, place - below))
