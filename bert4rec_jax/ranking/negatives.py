# SPDX-License-Identifier: Apache-2.0
"""Sampled candidates, for comparison with papers that ranked against a hundred of them."""

import numpy as np

from bert4rec_jax.config import EvalConfig
from bert4rec_jax.data import Dataset
from bert4rec_jax.errors import UserError

NEGATIVES = 100


def protocol_negatives(
    config: EvalConfig, dataset: Dataset, users: np.ndarray, popularity: np.ndarray | None
) -> np.ndarray:
    """Returns int32[n, `NEGATIVES`]: the candidates of `users` except their targets, under pop100
    or uni100.
    """
    weights = np.ones(dataset.num_items + 1)
    if config.protocol == "pop100":
        assert popularity is not None
        weights = popularity
    return sample_negatives(dataset, users, weights, NEGATIVES, config.negatives_seed)


def sample_negatives(
    dataset: Dataset, users: np.ndarray, weights: np.ndarray, count: int, seed: int
) -> np.ndarray:
    """Draws items that a user never met, in proportion to `weights`, without repetition.

    Args:
      dataset: the data; all of a user's events count as met, the targets included.
      users: int32[n].
      weights: [num_items + 1], of ids 0..num_items.
      count: how many for each user; at most what the user has not met.
      seed: of the draw (`eval.negatives_seed`); the same seed gives the same negatives.

    Returns:
      int32[n, count].
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0x6E6567]))
    weights = np.asarray(weights[1:], np.float64)
    cumulative = np.cumsum(weights + 1e-9)
    result = np.empty((len(users), count), np.int32)
    for row, user in enumerate(users):
        met = np.unique(dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]])
        if len(weights) - len(met) < count:
            raise UserError(
                f"a user (number {user}) has interacted with {len(met)} of {len(weights)} items, "
                f"which leaves fewer than the {count} negatives of this protocol; set "
                "config.eval.protocol = 'full'."
            )
        if np.count_nonzero(weights) - np.count_nonzero(weights[met - 1]) < count:
            result[row] = _in_one_draw(generator, weights, met, count)
            continue
        chosen = np.empty(0, np.int32)
        while len(chosen) < count:
            draws = 1 + np.searchsorted(
                cumulative, generator.random(3 * count) * cumulative[-1], side="right"
            )
            draws = np.r_[chosen, draws[~np.isin(draws, met)]]
            _, first = np.unique(draws, return_index=True)
            chosen = draws[np.sort(first)]
        result[row] = chosen[:count]
    return result


def _in_one_draw(
    generator: np.random.Generator, weights: np.ndarray, met: np.ndarray, count: int
) -> np.ndarray:
    """Draws likewise where items without weight are needed, for which drawing and rejecting would
    take for ever.
    """
    left = np.setdiff1d(np.arange(1, len(weights) + 1), met)
    # The items whose clocks ring first, at rates that are their weights, are a draw one after
    # another without return.
    return left[
        np.argsort(generator.exponential(size=len(left)) / (weights[left - 1] + 1e-9))[:count]
    ]
