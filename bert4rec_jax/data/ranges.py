# SPDX-License-Identifier: Apache-2.0
"""Half-open ranges of events: their expansion into positions, and blocks of bounded size."""

from collections.abc import Iterator

import numpy as np

EVENTS_PER_BLOCK = 1 << 22  # bounds the memory of a pass over a log that does not fit into memory


def expand_ranges(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expands half-open ranges.

    Args:
      starts: int[n].
      stops: int[n], not smaller than `starts`.

    Returns:
      owner: int64[p], the range of every element.
      position: int64[p], the element itself, from starts[owner] to stops[owner] - 1.
    """
    lengths = np.asarray(stops - starts, np.int64)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    first_place = np.cumsum(lengths) - lengths
    position = np.arange(len(owner)) + np.repeat(starts - first_place, lengths)
    return owner, position


def split_by_size(offsets: np.ndarray, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of runs of neighbouring elements.

    The total size of a run is at most `most`; an oversized element forms a run of its own.

    Args:
      offsets: int64[n + 1], ascending; the size of element i is offsets[i + 1] - offsets[i].
      most: largest total size of a run; None: `EVENTS_PER_BLOCK`.
    """
    limit = EVENTS_PER_BLOCK if most is None else most
    start = 0
    count = len(offsets) - 1
    while start < count:
        end = int(np.searchsorted(offsets, offsets[start] + limit, "right")) - 1
        stop = max(start + 1, end)
        yield start, stop
        start = stop
