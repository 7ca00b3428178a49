# SPDX-License-Identifier: Apache-2.0
"""Models that only count: what every neural recommender has to beat."""

import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.data import Dataset, Split
from bert4rec_jax.ranking.cases import Cases, Ranking
from bert4rec_jax.ranking.negatives import NEGATIVES, sample_negatives

RECENT_SHARE = 0.1  # of the newest training interactions counts for `popular_recent`


def _training_events(dataset: Dataset, split: Split) -> np.ndarray:
    """Returns bool[interactions], whether an event belongs to a training history."""
    lengths = np.diff(dataset.offsets)
    inside = np.arange(int(dataset.offsets[-1])) - np.repeat(dataset.offsets[:-1], lengths)
    return inside < np.repeat(split.train_stop - dataset.offsets[:-1], lengths)


def training_counts(dataset: Dataset, split: Split) -> np.ndarray:
    """Returns int64[num_items + 1], training interactions of each item id."""
    return np.bincount(dataset.items[_training_events(dataset, split)], minlength=dataset.num_items + 1)


def rank_all(config: Config, dataset: Dataset, split: Split, cases: Cases) -> dict[str, Ranking]:
    """Ranks the cases by popularity, under the protocol of the configuration.

    Returns:
      `popular`, by training interactions; `popular_recent`, by those among the newest tenth of all training
      interactions, where there are timestamps.
    """
    counts = {"popular": training_counts(dataset, split)}
    if dataset.timestamps is not None:
        training = _training_events(dataset, split)
        times = np.asarray(dataset.timestamps)[training]
        recent = times >= np.quantile(times, 1 - RECENT_SHARE)
        counts["popular_recent"] = np.bincount(
            dataset.items[training][recent], minlength=dataset.num_items + 1)
    negatives = None
    if config.eval.protocol != "full":
        weights = counts["popular"] if config.eval.protocol == "pop100" else np.ones(dataset.num_items + 1)
        negatives = sample_negatives(dataset, cases.users, weights, NEGATIVES, config.seed)
    return {name: _rank(dataset, cases, count, negatives, config.eval.filter_seen)
            for name, count in counts.items()}


def _rank(dataset: Dataset, cases: Cases, scores: np.ndarray, negatives: np.ndarray | None,
          filter_seen: bool) -> Ranking:
    """Ranks every case by one score for each item id, int[num_items + 1]."""
    targets = np.asarray(dataset.items[cases.targets])
    target = scores[targets]
    if negatives is not None:
        other = scores[negatives]
        return Ranking((other > target[:, None]).sum(1), (other == target[:, None]).sum(1),
                       np.full(len(targets), negatives.shape[1] + 1))
    ascending = np.sort(scores[1:])
    greater = len(ascending) - np.searchsorted(ascending, target, side="right")
    equal = np.searchsorted(ascending, target, side="right") - np.searchsorted(ascending, target, side="left") - 1
    candidates = np.full(len(targets), dataset.num_items)
    for case in range(len(targets) if filter_seen else 0):
        seen = np.unique(dataset.items[cases.starts[case]:cases.targets[case]])
        seen = scores[seen[seen != targets[case]]]
        greater[case] -= np.count_nonzero(seen > target[case])
        equal[case] -= np.count_nonzero(seen == target[case])
        candidates[case] -= len(seen)
    return Ranking(greater, equal, candidates)
