# SPDX-License-Identifier: Apache-2.0
"""Histories as spans of a log, and the (history, item) pairs in them."""

from dataclasses import dataclass

import numpy as np

from bert4rec_jax.data import expand_ranges


@dataclass(frozen=True)
class HistorySpans:
    """The n histories items[starts[i]:stops[i]] of a log.

    Attributes:
      items: int32, item numbers of the log, oldest first within a history; possibly memory-mapped.
      starts: int64[n], first event of each history.
      stops: int64[n], the event after its last.
    """

    items: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        """Returns the number of histories."""
        return len(self.starts)

    def __getitem__(self, chosen: slice) -> "HistorySpans":
        """Returns some of the histories."""
        return HistorySpans(self.items, self.starts[chosen], self.stops[chosen])

    def events(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index into `chosen`, int64, and the item of every event of the chosen
        histories, in order.
        """
        index, position = expand_ranges(self.starts[chosen], self.stops[chosen])
        return index, self.items[position]

    def seen_items(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index into `chosen`, int64, and the item of every distinct item of the chosen
        histories.

        The pairs are in ascending order.
        """
        index, items = self.events(chosen)
        size = np.int64(items.max(initial=0)) + 1
        # np.unique takes ten times as long for this many pairs.
        pairs = np.sort(index * size + items)
        is_first = np.diff(pairs, prepend=-1) > 0
        index, items = np.divmod(pairs[is_first], size)
        return index, items
