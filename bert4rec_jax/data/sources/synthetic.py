# SPDX-License-Identifier: Apache-2.0
"""A log with known structure, and the best that any model can do on it.

Each item belongs to one genre and has a popularity (Zipf's law within its genre). Each user has a hidden
taste, a genre that follows a Markov chain: it stays with probability 0.7, moves on to the next genre of a
fixed cycle with 0.2, and jumps anywhere with 0.1. At each step the user takes, with probability 0.85, an
unseen item of the taste's genre by popularity, else (and where the genre has none left) an unseen item of
the whole catalogue by popularity. So the last items tell the taste, but none of them for certain, and a
model that reads the order beats one that counts.

Every probability of the next item given the history can be computed (forward filter of the chain); ranking
by it maximises the expected hit rate and NDCG at every cut-off. `bayes_optimal_ranks` gives the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bert4rec_jax.config import SyntheticConfig
from bert4rec_jax.data.sources.log import Ids, Log

# Raised when the same config would no longer give the same log.
VERSION = 1
STAY, MOVE_ON, NOISE = 0.7, 0.2, 0.15
_MIN_LENGTH = 5
_START, _SPAN = 1_262_304_000, 3 * 365 * 86400  # users begin between 2010 and 2013
_BLOCK_BYTES = 1 << 26
_BATCH_ROWS = 1 << 20
_DRAWS = 12  # rejected draws before the exact one; most users need one or two


@dataclass(frozen=True)
class Structure:
    """The process, without the users.

    Attributes:
      genres: int64[items], the genre of each item.
      popularity: float64[items], sums to 1.
      transitions: float64[genres, genres], rows sum to 1.
    """

    genres: np.ndarray
    popularity: np.ndarray
    transitions: np.ndarray


def structure(config: SyntheticConfig) -> Structure:
    """Returns the process of a config; its first genre is as likely as every other."""
    items, genres = np.arange(config.num_items), config.genres
    popularity = 1.0 / (items // genres + 1)
    eye = np.eye(genres)
    transitions = STAY * eye + MOVE_ON * np.roll(eye, 1, axis=1) + (1 - STAY - MOVE_ON) / genres
    return Structure(items % genres, popularity / popularity.sum(), transitions)


class SyntheticLog:
    """The log as a reader, in blocks of a million rows; it is made as a whole."""

    bytes = 0

    def __init__(self, config: SyntheticConfig):
        """Makes nothing yet."""
        self._config = config

    def blocks(self) -> Iterator[pa.Table]:
        """Yields tables of `user`, `item` and `time`."""
        log = generate(self._config)
        for begin in range(0, len(log.times), _BATCH_ROWS):
            span = slice(begin, begin + _BATCH_ROWS)
            users, items = (
                pa.DictionaryArray.from_arrays(pa.array(ids.codes[span]), ids.values)
                for ids in (log.users, log.items)
            )
            yield pa.table({"user": users, "item": items, "time": log.times[span]})


def generate(config: SyntheticConfig) -> Log:
    """Returns the log; users one after another, each in chronological order.

    Only `Generator.random` is drawn from, so that the same config gives the same log under every NumPy.
    """
    process = structure(config)
    block = max(1, _BLOCK_BYTES // config.num_items)
    seeds = np.random.SeedSequence(config.seed).spawn(-(-config.users // block))
    parts = [
        _users(
            process,
            config,
            min(block, config.users - index * block),
            np.random.Generator(np.random.PCG64(seed)),
        )
        for index, seed in enumerate(seeds)
    ]
    lengths = np.concatenate([part[0] for part in parts])
    users = np.repeat(np.arange(config.users, dtype=np.int32), lengths)
    items = np.concatenate([part[1] for part in parts])
    used, codes = np.unique(items, return_inverse=True)
    return Log(
        users=Ids(users, pa.array(np.arange(1, config.users + 1)).cast(pa.string())),
        items=Ids(codes.astype(np.int32), pa.array(used + 1).cast(pa.string())),
        times=np.concatenate([part[2] for part in parts]),
    )


def item_table(config: SyntheticConfig) -> pa.Table:
    """Returns the columns item, title and genres of the whole catalogue."""
    genres, places = structure(config).genres, np.arange(config.num_items)
    return pa.table(
        {
            "item": pa.array(places + 1).cast(pa.string()),
            "title": pa.array(
                [f"Genre {g + 1}, item {n + 1}" for g, n in zip(genres, places // config.genres)]
            ),
            "genres": pa.array([f"Genre {g + 1}" for g in genres]),
        }
    )


def _users(process: Structure, config: SyntheticConfig, count: int, random: np.random.Generator):
    """Returns lengths [count], and items and times of all events, user by user."""
    longest = max(2, config.num_items // 2)
    extra = np.floor(-np.log1p(-random.random(count)) * (config.mean_length - _MIN_LENGTH + 0.5))
    lengths = np.minimum(_MIN_LENGTH + extra.astype(np.int64), longest)
    # The longest users first, so that those still active are always the first ones.
    order = np.argsort(-lengths, kind="stable")
    active = np.searchsorted(-lengths[order], -np.arange(lengths.max()), side="left")
    chosen = np.zeros((count, lengths.max()), np.int32)
    seen = np.zeros((count, config.num_items), bool)
    cumulative = np.cumsum(process.transitions, axis=1)
    taste = np.minimum((random.random(count) * config.genres).astype(np.int64), config.genres - 1)
    sampler = _Sampler(process)
    for step, size in enumerate(active):
        if step:
            draws = random.random(size)
            taste[:size] = np.minimum(
                (draws[:, None] >= cumulative[taste[:size]]).sum(axis=1), config.genres - 1
            )
        chosen[:size, step] = sampler.draw(
            seen[:size], taste[:size], random.random(size) < NOISE, random
        )
        seen[np.arange(size), chosen[:size, step]] = True
    back = np.empty(count, np.int64)
    back[order] = np.arange(count)
    events = np.arange(lengths.max())[None, :] < lengths[:, None]
    start = _START + (random.random(count) * _SPAN).astype(np.int64)
    gaps = 60 + (-np.log1p(-random.random(chosen.shape)) * 5 * 86400).astype(np.int64)
    times = start[:, None] + np.cumsum(gaps, axis=1)
    return lengths, chosen[back][events], times[events]


class _Sampler:
    """Draws unseen items by popularity: by rejection, which is exact, and for the few left over directly."""

    def __init__(self, process: Structure):
        self.process = process
        self.by_genre = np.argsort(process.genres, kind="stable")
        self.starts = np.searchsorted(
            process.genres[self.by_genre], np.arange(len(process.transitions) + 1)
        )
        # Cumulative popularity, genre after genre: a genre is an interval of it.
        self.cumulative = np.cumsum(process.popularity[self.by_genre])
        self.edges = np.concatenate([[0.0], self.cumulative])[self.starts]
        self.all = np.arange(len(process.genres))

    def draw(
        self, seen: np.ndarray, taste: np.ndarray, noise: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        """Returns one unseen item for each row of `seen` [rows, items]."""
        low = np.where(noise, 0.0, self.edges[taste])
        high = np.where(noise, self.cumulative[-1], self.edges[taste + 1])
        first = np.where(noise, 0, self.starts[taste])
        last = np.where(noise, len(self.all), self.starts[taste + 1]) - 1
        result = np.zeros(len(seen), np.int64)
        waiting = np.arange(len(seen))
        for _ in range(_DRAWS):
            draws = low[waiting] + random.random(len(waiting)) * (high - low)[waiting]
            place = np.clip(
                np.searchsorted(self.cumulative, draws, side="right"), first[waiting], last[waiting]
            )
            result[waiting] = self.by_genre[place]
            waiting = waiting[seen[waiting, result[waiting]]]
            if not len(waiting):
                return result
        for row in waiting:
            weights = np.where(seen[row], 0.0, self.process.popularity)
            inside = weights * (self.process.genres == taste[row])
            if not noise[row] and inside.any():
                weights = inside
            total = np.cumsum(weights)
            # The draw lies below the total, so the place found has a weight.
            result[row] = np.searchsorted(total, random.random() * total[-1], side="right")
        return result
