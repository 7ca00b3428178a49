# SPDX-License-Identifier: Apache-2.0
"""The input data of the peers: one .npz file with `items`, `offsets` and `num_items`."""

import json
from pathlib import Path

import numpy as np


def write_npz(path: str | Path, items: np.ndarray, offsets: np.ndarray, num_items: int) -> Path:
    """Write histories to the file that every peer reads."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        items=np.asarray(items, np.int32),
        offsets=np.asarray(offsets, np.int64),
        num_items=np.int64(num_items),
    )
    return path


def npz_from_prepared(folder: str | Path, path: str | Path) -> Path:
    """Turn a prepared folder (items.npy, offsets.npy, manifest.json) into a peer's file.

    Args:
      folder: prepared data; the number of items is `num_items` of the manifest, at the top or under
        `counts`, or else the largest id.
      path: the .npz file to write.
    """
    folder = Path(folder)
    items, offsets = np.load(folder / "items.npy"), np.load(folder / "offsets.npy")
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = manifest.get("counts", manifest)
    num_items = counts.get("num_items", counts.get("items"))
    if not isinstance(num_items, int):
        num_items = int(items.max())
    return write_npz(path, items, offsets, num_items)


def npz_from_table(users: np.ndarray, items: np.ndarray, path: str | Path) -> Path:
    """Turn two columns, grouped by user and in time order inside a user, into a peer's file.

    Items are renumbered from 1 in the order of their ids; users keep the order of the rows.
    """
    users, items = np.asarray(users), np.asarray(items)
    starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    if len(starts) != len(np.unique(users)):
        raise ValueError("the rows of a user must lie together")
    distinct, codes = np.unique(items, return_inverse=True)
    return write_npz(path, codes + 1, np.r_[starts, len(users)], len(distinct))


def synthetic(
    num_items: int = 62_423,
    num_users: int = 10_000,
    shortest: int = 20,
    median: float = 94.0,
    mean: float = 154.0,
    exponent: float = 1.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Make histories with the shape of MovieLens-25M: log-normal lengths, items by Zipf's law.

    The part of a length above `shortest` is log-normal, so that the shortest, median and mean
    lengths have the given values. Every item occurs at least once; no user has an item twice.

    Returns:
      items int32 [interactions], offsets int64 [users + 1], num_items
    """
    rng = np.random.default_rng(seed)
    middle = median - shortest
    sigma = np.sqrt(2.0 * np.log((mean - shortest) / middle))
    lengths = shortest + np.rint(middle * np.exp(sigma * rng.standard_normal(num_users))).astype(
        np.int64
    )
    lengths = np.minimum(lengths, num_items // 4)
    offsets = np.r_[0, np.cumsum(lengths)]
    cumulative = np.cumsum(1.0 / np.arange(1, num_items + 1) ** exponent)
    names = rng.permutation(num_items).astype(np.int32) + 1

    def draw(count: int) -> np.ndarray:
        ranks = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
        return names[np.minimum(ranks, num_items - 1)]

    items = draw(offsets[-1])
    # Each item once, at places spread over all users; duplicates within a user are drawn again.
    if len(items) >= num_items:
        fixed = rng.choice(len(items), num_items, replace=False)
        items[fixed] = rng.permutation(num_items).astype(np.int32) + 1
        free = np.ones(len(items), bool)
        free[fixed] = False
    else:
        free = np.ones(len(items), bool)
    owner = np.repeat(np.arange(num_users), lengths)
    for _ in range(1000):
        # Fixed positions come first among equals, so that only drawn items are replaced.
        order = np.lexsort((free, items, owner))
        again = order[1:][
            (owner[order][1:] == owner[order][:-1]) & (items[order][1:] == items[order][:-1])
        ]
        again = again[free[again]]
        if not len(again):
            break
        items[again] = draw(len(again))
    return items, offsets, num_items


def covering_npz(
    path: str | Path, num_items: int, num_users: int, longest: int, seed: int = 0
) -> Path:
    """Write `num_users` histories of `synthetic`, then as many of `longest` items as it takes
    to hold every item once.
    """
    items, offsets, _ = synthetic(num_items, num_users, seed=seed)
    others = np.random.default_rng(seed).permutation(num_items).astype(np.int32) + 1
    ends = np.arange(longest, num_items + longest, longest).clip(max=num_items)
    return write_npz(path, np.r_[items, others], np.r_[offsets, offsets[-1] + ends], num_items)


def synthetic_npz(path: str | Path, **shape: float) -> Path:
    """Write `synthetic(**shape)` to a peer's file."""
    return write_npz(path, *synthetic(**shape))
