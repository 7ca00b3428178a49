# SPDX-License-Identifier: Apache-2.0
"""Models that only count: what every neural recommender has to beat. All of them are deterministic.

`popular` and `popular_recent` know nothing of the user; `markov` knows the last item of a history, `item_knn` all of
them. They train on the same events as the neural model and are ranked under the same protocol.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse

from bert4rec_jax.config import Config
from bert4rec_jax.data import Dataset, Split, recent_counts
from bert4rec_jax.ranking.cases import Cases, Ranking, ranks_last
from bert4rec_jax.ranking.negatives import protocol_negatives

RECENT_SHARE = 0.1  # of the newest training interactions counts for `popular_recent`
NEIGHBOURS = 100  # of each item, for `item_knn`
_CHUNK = 1024  # users or items at a time


def _training_events(dataset: Dataset, split: Split) -> np.ndarray:
    """Returns bool[interactions], whether an event belongs to a training history."""
    lengths = np.diff(dataset.offsets)
    inside = np.arange(int(dataset.offsets[-1])) - np.repeat(dataset.offsets[:-1], lengths)
    return inside < np.repeat(split.train_stop - dataset.offsets[:-1], lengths)


def transitions(dataset: Dataset, split: Split) -> sparse.csr_matrix:
    """Returns float32[V, V] with V = num_items + 1: how often item j came right after item i in training."""
    training = _training_events(dataset, split)
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    follows = training[1:] & training[:-1] & (users[1:] == users[:-1])
    before, behind = dataset.items[:-1][follows], dataset.items[1:][follows]
    size = dataset.num_items + 1
    return sparse.coo_matrix((np.ones(len(before), np.float32), (before, behind)), (size, size)).tocsr()


def similarities(dataset: Dataset, split: Split) -> sparse.csr_matrix:
    """Returns float32[V, V]: cosine of the sets of training users of two items, of the `NEIGHBOURS` nearest of each.

    Item-based top-N recommendation of Deshpande and Karypis (2004), without a parameter to tune.
    """
    training = _training_events(dataset, split)
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))[training]
    met = sparse.coo_matrix((np.ones(len(users), np.float32), (users, dataset.items[training])),
                            (dataset.num_users, dataset.num_items + 1)).tocsr()
    met.data[:] = 1  # an item that a user met twice counts once
    norms = np.sqrt(np.maximum(np.asarray(met.sum(axis=0)).ravel(), 1))
    met = (met @ sparse.diags(1 / norms).tocsr()).astype(np.float32)
    by_item, parts = met.T.tocsr(), []
    for first in range(0, dataset.num_items + 1, _CHUNK):
        part = (by_item[first:first + _CHUNK] @ met).toarray()
        part[np.arange(len(part)), first + np.arange(len(part))] = 0
        weakest = part.shape[1] - min(NEIGHBOURS, part.shape[1])
        part[part < np.partition(part, weakest, axis=1)[:, weakest, None]] = 0
        parts.append(sparse.csr_matrix(part))
    return sparse.vstack(parts).tocsr()


def rank_all(config: Config, dataset: Dataset, split: Split, cases: Cases,
             popularity: np.ndarray) -> dict[str, Ranking]:
    """Ranks the cases by every baseline, under the protocol of the configuration.

    Args:
      config: the run's configuration.
      dataset: the data.
      split: says what is trained on.
      cases: what is to be ranked.
      popularity: int64[num_items + 1], what `data.training_counts` returns.

    Returns:
      `popular`, by training interactions; `popular_recent`, by those among the newest tenth of all training
      interactions, where there are timestamps; `markov`, by how often an item came right after the last one of the
      history; `item_knn`, by the sum of similarities to the items of the history.
    """
    counts = {"popular": popularity}
    if dataset.timestamps is not None:
        counts["popular_recent"] = recent_counts(dataset, split, RECENT_SHARE)
    e = config.eval
    negatives = None if e.protocol == "full" else protocol_negatives(e, dataset, cases.users, popularity)
    rankings = {name: _rank(dataset, cases, count, negatives, e.filter_seen) for name, count in counts.items()}
    followers, similar = transitions(dataset, split), similarities(dataset, split)

    def by_last_item(chosen: np.ndarray) -> sparse.csr_matrix:
        return followers[dataset.items[cases.targets[chosen] - 1]]

    def by_history(chosen: np.ndarray) -> sparse.csr_matrix:
        histories = [dataset.items[start:stop] for start, stop in zip(cases.starts[chosen], cases.targets[chosen])]
        lengths = [len(history) for history in histories]
        met = sparse.csr_matrix((np.ones(sum(lengths), np.float32), np.concatenate(histories),
                                 np.r_[0, np.cumsum(lengths)]), (len(chosen), dataset.num_items + 1))
        return met @ similar

    for name, scores in (("markov", by_last_item), ("item_knn", by_history)):
        rankings[name] = _rank_sparse(dataset, cases, scores, negatives, e.filter_seen)
    last = ranks_last(e, dataset, cases)
    return {name: ranking.with_last(last) for name, ranking in rankings.items()}


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
        seen = _seen(dataset, cases, case)
        greater[case] -= np.count_nonzero(scores[seen] > target[case])
        equal[case] -= np.count_nonzero(scores[seen] == target[case])
        candidates[case] -= len(seen)
    return Ranking(greater, equal, candidates)


def _seen(dataset: Dataset, cases: Cases, case: int) -> np.ndarray:
    """Returns the distinct items of a history, without the target."""
    seen = np.unique(dataset.items[cases.starts[case]:cases.targets[case]])
    return seen[seen != dataset.items[cases.targets[case]]]


def _rank_sparse(dataset: Dataset, cases: Cases, scores: Callable[[np.ndarray], sparse.csr_matrix],
                 negatives: np.ndarray | None, filter_seen: bool) -> Ranking:
    """Ranks every case by scores of its own, float32[chosen cases, num_items + 1] of which most are 0."""
    count = len(cases.users)
    targets = np.asarray(dataset.items[cases.targets])
    greater, ties = np.empty(count, np.int64), np.empty(count, np.int64)
    candidates = np.full(count, dataset.num_items if negatives is None else negatives.shape[1] + 1)
    for first in range(0, count, _CHUNK):
        chosen = np.arange(first, min(first + _CHUNK, count))
        chunk = scores(chosen).tocsr()
        for row, case in enumerate(chosen):
            ids = chunk.indices[chunk.indptr[row]:chunk.indptr[row + 1]]
            values = chunk.data[chunk.indptr[row]:chunk.indptr[row + 1]]
            target = values[ids == targets[case]].sum()
            if negatives is not None:
                kept = np.isin(ids, negatives[case])
            else:
                seen = _seen(dataset, cases, case) if filter_seen else np.empty(0, np.int64)
                candidates[case] -= len(seen)
                kept = (ids != targets[case]) & ~np.isin(ids, seen)
            others = values[kept]
            greater[case] = np.count_nonzero(others > target)
            ties[case] = np.count_nonzero(others == target)
            if target == 0:  # and so have all that are not listed
                ties[case] += candidates[case] - 1 - len(others)
    return Ranking(greater, ties, candidates)
