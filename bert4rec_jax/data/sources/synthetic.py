# SPDX-License-Identifier: Apache-2.0
"""A generated log with a known structure.

Each item belongs to one genre and has a popularity (Zipf's law within its genre). Each user has a
hidden taste: a genre that follows a Markov chain. In each step the taste stays with probability
0.7, moves to the next genre of a fixed cycle with 0.2, and jumps to a random genre with 0.1. The
user then takes an unseen item by popularity: an item of the taste's genre with probability 0.85, an
item of the whole catalogue otherwise or if all items of the genre are seen. The last items are
evidence of the taste without determining it, so a model that uses the order of a history beats a
model that counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bert4rec_jax.config import SyntheticConfig

# Increase this number when the same config would produce a different log.
VERSION = 1
STAY = 0.7
MOVE_ON = 0.2
NOISE = 0.15
_MIN_LENGTH = 5
_MEAN_PAUSE = 5 * 86400  # seconds between two events of a user, after the first minute
_START = 1_262_304_000  # users begin between 2010 and 2013
_SPAN = 3 * 365 * 86400
_BLOCK_BYTES = 1 << 26
_BATCH_ROWS = 1 << 20
_REJECTIONS = 12  # draws by rejection before the direct draw; most users need one or two


@dataclass(frozen=True)
class Structure:
    """The process that generates users.

    Attributes:
      genres: int64[items], genre of each item.
      popularity: float64[items], sums to 1.
      transitions: float64[genres, genres], rows sum to 1.
    """

    genres: np.ndarray
    popularity: np.ndarray
    transitions: np.ndarray


def structure(config: SyntheticConfig) -> Structure:
    """Returns the process of a config; all genres are equally likely at the start of a history."""
    items = np.arange(config.num_items)
    popularity = 1.0 / (items // config.genres + 1)
    stay = np.eye(config.genres)
    move_on = np.roll(stay, 1, axis=1)
    jump = (1 - STAY - MOVE_ON) / config.genres
    transitions = STAY * stay + MOVE_ON * move_on + jump
    return Structure(items % config.genres, popularity / popularity.sum(), transitions)


class SyntheticLog:
    """Reads the log in blocks of a million rows; the whole log is generated at the first one."""

    bytes = 0

    def __init__(self, config: SyntheticConfig):
        """Stores the config."""
        self._config = config

    def blocks(self) -> Iterator[pa.Table]:
        """Yields tables with the columns `user`, `item` and `time`."""
        log = generate(self._config)
        for first in range(0, len(log), _BATCH_ROWS):
            yield log.slice(first, _BATCH_ROWS)


def generate(config: SyntheticConfig) -> pa.Table:
    """Returns the columns user, item and time, one user after another, in chronological order.

    Only `Generator.random` is used, so the same config gives the same log with every NumPy version.
    """
    process = structure(config)
    users_per_block = max(1, _BLOCK_BYTES // config.num_items)
    num_blocks = -(-config.users // users_per_block)
    seeds = np.random.SeedSequence(config.seed).spawn(num_blocks)
    lengths, items, times = [], [], []
    for block, seed in enumerate(seeds):
        count = min(users_per_block, config.users - block * users_per_block)
        random = np.random.Generator(np.random.PCG64(seed))
        part_lengths, part_items, part_times = _generate_users(process, config, count, random)
        lengths.append(part_lengths)
        items.append(part_items)
        times.append(part_times)
    users = np.repeat(np.arange(config.users, dtype=np.int32), np.concatenate(lengths))
    used, codes = np.unique(np.concatenate(items), return_inverse=True)
    user_ids = pa.array(np.arange(1, config.users + 1)).cast(pa.string())
    item_ids = pa.array(used + 1).cast(pa.string())
    return pa.table(
        {
            "user": pa.DictionaryArray.from_arrays(users, user_ids),
            "item": pa.DictionaryArray.from_arrays(codes.astype(np.int32), item_ids),
            "time": np.concatenate(times),
        }
    )


def item_table(config: SyntheticConfig) -> pa.Table:
    """Returns the columns item, title and genres of the whole catalogue."""
    genres = structure(config).genres
    items = np.arange(config.num_items)
    titles = [
        f"Genre {genre + 1}, item {place + 1}"
        for genre, place in zip(genres, items // config.genres)
    ]
    return pa.table(
        {
            "item": pa.array(items + 1).cast(pa.string()),
            "title": pa.array(titles),
            "genres": pa.array([f"Genre {genre + 1}" for genre in genres]),
        }
    )


def _generate_users(
    process: Structure, config: SyntheticConfig, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns lengths, int64[count], and items and times of all events, user by user."""
    longest = max(2, config.num_items // 2)
    mean_extra = config.mean_length - _MIN_LENGTH + 0.5
    extra = np.floor(_exponential(random, count) * mean_extra)
    lengths = np.minimum(_MIN_LENGTH + extra.astype(np.int64), longest)
    # Users are generated from long to short histories: the active users are always the first ones.
    order = np.argsort(-lengths, kind="stable")
    steps = np.arange(lengths.max())
    num_active = np.searchsorted(-lengths[order], -steps, side="left")
    chosen = np.zeros((count, len(steps)), np.int32)
    seen = np.zeros((count, config.num_items), bool)
    cumulative = np.cumsum(process.transitions, axis=1)
    last_genre = config.genres - 1
    taste = np.minimum((random.random(count) * config.genres).astype(np.int64), last_genre)
    sampler = _Sampler(process)
    for step, active in enumerate(num_active):
        if step:
            draws = random.random(active)
            moved = (draws[:, None] >= cumulative[taste[:active]]).sum(axis=1)
            taste[:active] = np.minimum(moved, last_genre)
        noise = random.random(active) < NOISE
        items = sampler.draw(seen[:active], taste[:active], noise, random)
        chosen[:active, step] = items
        seen[np.arange(active), items] = True
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    has_event = steps[None, :] < lengths[:, None]
    start = _START + (random.random(count) * _SPAN).astype(np.int64)
    pauses = 60 + (_exponential(random, chosen.shape) * _MEAN_PAUSE).astype(np.int64)
    times = start[:, None] + np.cumsum(pauses, axis=1)
    return lengths, chosen[place][has_event], times[has_event]


def _exponential(random: np.random.Generator, shape: int | tuple[int, ...]) -> np.ndarray:
    """Draws from the exponential distribution with mean 1."""
    return -np.log1p(-random.random(shape))


class _Sampler:
    """Draws unseen items by popularity.

    Most items are drawn by rejection, which is exact; the rest from the distribution itself.
    """

    def __init__(self, process: Structure):
        self.process = process
        self.by_genre = np.argsort(process.genres, kind="stable")
        genres = np.arange(len(process.transitions) + 1)
        self.starts = np.searchsorted(process.genres[self.by_genre], genres)
        # Cumulative popularity, one genre after another: each genre is an interval of it.
        self.cumulative = np.cumsum(process.popularity[self.by_genre])
        self.edges = np.concatenate([[0.0], self.cumulative])[self.starts]

    def draw(
        self, seen: np.ndarray, taste: np.ndarray, noise: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        """Returns one unseen item per row of `seen`, bool[rows, items]."""
        low = np.where(noise, 0.0, self.edges[taste])
        high = np.where(noise, self.cumulative[-1], self.edges[taste + 1])
        first = np.where(noise, 0, self.starts[taste])
        last = np.where(noise, len(self.by_genre), self.starts[taste + 1]) - 1
        result = np.zeros(len(seen), np.int64)
        waiting = np.arange(len(seen))
        for _ in range(_REJECTIONS):
            draws = low[waiting] + random.random(len(waiting)) * (high - low)[waiting]
            place = np.searchsorted(self.cumulative, draws, side="right")
            place = np.clip(place, first[waiting], last[waiting])
            result[waiting] = self.by_genre[place]
            waiting = waiting[seen[waiting, result[waiting]]]
            if not len(waiting):
                return result
        for row in waiting:
            genre = None if noise[row] else taste[row]
            result[row] = self._draw_directly(seen[row], genre, random)
        return result

    def _draw_directly(
        self, seen: np.ndarray, genre: int | None, random: np.random.Generator
    ) -> int:
        """Returns an unseen item of a genre; of any genre if it is None or exhausted."""
        weights = np.where(seen, 0.0, self.process.popularity)
        if genre is not None:
            inside = weights * (self.process.genres == genre)
            weights = inside if inside.any() else weights
        total = np.cumsum(weights)
        # The draw is below the total, so the item found has a positive weight.
        return int(np.searchsorted(total, random.random() * total[-1], side="right"))
