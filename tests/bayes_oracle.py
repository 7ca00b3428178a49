# SPDX-License-Identifier: Apache-2.0
"""The best ranking that any model can reach on a synthetic log.

The probability of every next item given the history follows from a forward filter of the hidden
taste. Ranking by it maximises the expected hit rate and NDCG at every cut-off.
"""

import numpy as np

from bert4rec_jax.config import SyntheticConfig
from bert4rec_jax.data import Dataset
from bert4rec_jax.data.sources.synthetic import NOISE, Structure, structure

_BLOCK_BYTES = 1 << 26


def bayes_optimal_ranks(dataset: Dataset, users: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Ranks each target by its exact probability given the history, among the unseen items.

    Args:
      dataset: a synthetic data set from which no filter removed events.
      users: int[n], user of each target.
      targets: int64[n], positions in `dataset.items`; the history of a user is everything before.

    Returns:
      int64[n], the number of unseen items that are at least as probable as the target, itself
      included: ties count against the target.
    """
    manifest = dataset.manifest
    steps = manifest["counts"]["filters"]
    filtered = any(step["interactions"] != manifest["interactions"] for step in steps)
    if "synthetic" not in manifest["identity"] or filtered:
        raise ValueError(f"{dataset.folder} is not synthetic, or filters removed events.")
    config = SyntheticConfig(**manifest["identity"]["synthetic"])
    process = in_dataset_order(structure(config), dataset)
    ranks = np.empty(len(users), np.int64)
    block = max(1, _BLOCK_BYTES // (8 * len(process.genres)))
    for first in range(0, len(users), block):
        rows = slice(first, first + block)
        starts = dataset.offsets[users[rows]]
        scores, seen = next_item_probabilities(process, dataset.items, starts, targets[rows])
        items = dataset.items[targets[rows]] - 1
        own = scores[np.arange(len(items)), items]
        # Equal probabilities may differ in the last digits, by the order of the subtractions.
        at_least = scores >= own[:, None] * (1 - 1e-9)
        ranks[rows] = np.sum(at_least & ~seen, axis=1)
    return ranks


def in_dataset_order(process: Structure, dataset: Dataset) -> Structure:
    """Reorders the items as in the data set; items without events come last."""
    used = dataset.item_table()["item"].to_numpy(dtype=np.int64) - 1
    unused = np.setdiff1d(np.arange(len(process.genres)), used)
    order = np.concatenate([used, unused])
    return Structure(process.genres[order], process.popularity[order], process.transitions)


def next_item_probabilities(
    process: Structure, items: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities of the next item, [rows, items], and seen items, bool[rows, items]."""
    rows = len(starts)
    genres = len(process.transitions)
    belief = np.full((rows, genres), 1 / genres)  # in the taste, before the next item
    popularity = np.bincount(process.genres, process.popularity, genres)
    left = np.tile(popularity, (rows, 1))  # popularity of the unseen items per genre
    count_left = np.tile(np.bincount(process.genres, minlength=genres), (rows, 1))
    seen = np.zeros((rows, len(process.genres)), bool)
    order = np.argsort(starts - stops, kind="stable")  # the longest first
    lengths = (stops - starts)[order]
    for step in range(lengths[0] if rows else 0):
        active = order[: np.searchsorted(-lengths, -step, side="left")]
        item = items[starts[active] + step].astype(np.int64) - 1
        genre = process.genres[item]
        posterior = belief[active] * _likelihood(left[active], count_left[active], genre)
        posterior /= posterior.sum(axis=1, keepdims=True)
        belief[active] = posterior @ process.transitions
        left[active, genre] -= process.popularity[item]
        count_left[active, genre] -= 1
        seen[active, item] = True
    per_genre = np.zeros((rows, genres))
    for genre in range(genres):
        likelihood = _likelihood(left, count_left, np.full(rows, genre))
        per_genre[:, genre] = (belief * likelihood).sum(axis=1)
    return np.where(seen, 0.0, per_genre[:, process.genres] * process.popularity), seen


def _likelihood(left: np.ndarray, count_left: np.ndarray, genre: np.ndarray) -> np.ndarray:
    """Returns the probability of an item of `genre` over its popularity, [rows, tastes]."""
    rows = np.arange(len(left))
    exhausted = count_left == 0
    left = np.where(exhausted, 0.0, left)
    anywhere = 1 / left.sum(axis=1)
    result = np.where(exhausted, anywhere[:, None], NOISE * anywhere[:, None])
    own = ~exhausted[rows, genre]
    result[rows[own], genre[own]] += (1 - NOISE) / left[rows[own], genre[own]]
    return result
