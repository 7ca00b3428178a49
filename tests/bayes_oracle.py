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
    """Ranks targets by their exact probability given the history, among the items that the user has not seen.

    Args:
      dataset: a synthetic one from which no filter removed events.
      users: int[n], one target for each.
      targets: int64[n], positions in `dataset.items`; the history of a user is everything before.

    Returns:
      int64[n], 1 + the number of unseen items that are at least as probable (ties count against the target).
    """
    manifest = dataset.manifest
    if "synthetic" not in manifest["identity"] or any(
        step["interactions"] != manifest["interactions"] for step in manifest["counts"]["filters"]
    ):
        raise ValueError(
            f"{dataset.folder} is not synthetic, or filters removed events that its probabilities need."
        )
    process = in_dataset_order(
        structure(SyntheticConfig(**manifest["identity"]["synthetic"])), dataset
    )
    ranks = np.empty(len(users), np.int64)
    block = max(1, _BLOCK_BYTES // (8 * len(process.genres)))
    for begin in range(0, len(users), block):
        rows = slice(begin, begin + block)
        starts = dataset.offsets[users[rows]]
        scores, seen = next_item_probabilities(process, dataset.items, starts, targets[rows])
        target = dataset.items[targets[rows]] - 1
        own = scores[np.arange(len(target)), target]
        # Probabilities that are equal on paper differ in the last digits after other orders of subtraction.
        ranks[rows] = np.sum((scores >= own[:, None] * (1 - 1e-9)) & ~seen, axis=1)
    return ranks


def in_dataset_order(process: Structure, dataset: Dataset) -> Structure:
    """Reorders the items as the dataset numbers them; items that nobody took come last."""
    used = dataset.item_table()["item"].to_numpy(dtype=np.int64) - 1
    order = np.concatenate([used, np.setdiff1d(np.arange(len(process.genres)), used)])
    return Structure(process.genres[order], process.popularity[order], process.transitions)


def next_item_probabilities(
    process: Structure, items: np.ndarray, starts: np.ndarray, stops: np.ndarray
):
    """Returns probabilities of the next item [rows, items] and the items seen before, bool[rows, items]."""
    rows, genres = len(starts), len(process.transitions)
    belief = np.full(
        (rows, genres), 1 / genres
    )  # of the taste at this step, before the item is seen
    left = np.tile(
        np.bincount(process.genres, process.popularity, genres), (rows, 1)
    )  # unseen popularity per genre
    count_left = np.tile(np.bincount(process.genres, minlength=genres), (rows, 1))
    seen = np.zeros((rows, len(process.genres)), bool)
    order = np.argsort(starts - stops, kind="stable")  # longest first
    lengths = (stops - starts)[order]
    for step in range(lengths[0] if rows else 0):
        who = order[: np.searchsorted(-lengths, -step, side="left")]
        item = items[starts[who] + step].astype(np.int64) - 1
        genre = process.genres[item]
        likelihood = _likelihood(left[who], count_left[who], genre)
        posterior = belief[who] * likelihood
        belief[who] = posterior / posterior.sum(axis=1, keepdims=True) @ process.transitions
        left[who, genre] -= process.popularity[item]
        count_left[who, genre] -= 1
        seen[who, item] = True
    per_genre = np.stack(
        [
            (belief * _likelihood(left, count_left, np.full(rows, genre))).sum(axis=1)
            for genre in range(genres)
        ],
        axis=1,
    )
    return np.where(seen, 0.0, per_genre[:, process.genres] * process.popularity), seen


def _likelihood(left: np.ndarray, count_left: np.ndarray, genre: np.ndarray) -> np.ndarray:
    """Returns [rows, tastes]: probability of an item of `genre` given the taste, over its popularity."""
    rows = np.arange(len(left))
    left = np.where(count_left > 0, left, 0.0)
    anywhere = 1 / left.sum(axis=1)
    exhausted = count_left == 0
    result = np.where(exhausted, anywhere[:, None], NOISE * anywhere[:, None])
    own = ~exhausted[rows, genre]
    result[rows[own], genre[own]] += (1 - NOISE) / left[rows[own], genre[own]]
    return result
