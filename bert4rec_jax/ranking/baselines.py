# SPDX-License-Identifier: Apache-2.0
"""Baselines without training, which every neural recommender has to beat. All of them are
deterministic.

`popular` and `popular_recent` ignore the user, `markov` uses the last item of a history and
`item_knn` all of its items. They use the same training events as the neural model and are ranked
under the same protocol.

The log is read in blocks, so that no array is as long as the log. A baseline that would take hours
or too much memory is left out with the reason.
"""

import abc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from bert4rec_jax.config import Config
from bert4rec_jax.data import (
    Dataset,
    Split,
    expand_ranges,
    recent_counts,
    split_by_size,
    training_blocks,
)
from bert4rec_jax.ranking.cases import Cases, Ranking, ranks_last
from bert4rec_jax.ranking.negatives import protocol_negatives

RECENT_SHARE = 0.1  # share of the newest training interactions that `popular_recent` counts
NEIGHBOURS = 100  # of each item, for `item_knn`
_CASES_PER_BLOCK = 1024  # for `item_knn`
_ELEMENTS_PER_BLOCK = 1 << 24  # transitions, products or scores in memory at once
# Limits beyond which a baseline is left out. The first two correspond to about ten minutes on one
# core.
_MOST_EVENT_READS = 10**11  # in all passes of `markov` over the log
_MOST_PRODUCTS = 3 * 10**10  # of two weights, for `item_knn`
_MOST_EVENTS = 1 << 26  # training events that `item_knn` holds twice, in 16 bytes
_MOST_SIMILARITIES = 1 << 27  # that `item_knn` keeps, in 8 bytes each


class BaselineTooExpensive(Exception):
    """A baseline takes too much time or memory for these data; the message contains the amount and
    the limit.
    """


class _BlockScores(abc.ABC):
    """The scores of a baseline for a block of n cases.

    Attributes:
      cases: int64[n], numbers of the cases.
    """

    cases: np.ndarray

    @abc.abstractmethod
    def scores_of(self, index: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Returns the scores of items, [p].

        Args:
          index: int64[p], index of the case in the block.
          items: int[p], item numbers.
        """

    @abc.abstractmethod
    def count_above_and_tied(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns how many items of the catalogue score above a score, and how many the same: two
        int64[n].

        Args:
          scores: [n], one score for each case.
        """


@dataclass(frozen=True)
class _ItemScores(_BlockScores):
    """One score per item, int[num_items + 1], for all cases."""

    cases: np.ndarray
    scores: np.ndarray
    ascending: np.ndarray

    def scores_of(self, index: np.ndarray, items: np.ndarray) -> np.ndarray:
        return self.scores[items]

    def count_above_and_tied(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _count_in_sorted(self.ascending, scores, len(self.ascending))


def _count_in_sorted(
    ascending: np.ndarray, values: np.ndarray, stop: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many elements of ascending[:stop] are greater than each value, and how many are
    equal.

    No element of ascending[stop:] equals a value.
    """
    left = np.searchsorted(ascending, values, "left")
    right = np.searchsorted(ascending, values, "right")
    return stop - right, right - left


@dataclass(frozen=True)
class Transitions:
    """How often one item followed another in training, for the first items first..stop-1.

    Attributes:
      pairs: int64[p], i * (num_items + 1) + j for items j that directly followed item i, ascending.
      counts: int64[p], how often each pair occurs.
    """

    pairs: np.ndarray
    counts: np.ndarray

    def merge(self, other: "Transitions") -> "Transitions":
        """Returns the sums of the counts."""
        pairs = np.concatenate([self.pairs, other.pairs])
        counts = np.concatenate([self.counts, other.counts])
        order = np.argsort(pairs, kind="stable")
        begins = np.flatnonzero(np.diff(pairs[order], prepend=-1))
        if not len(begins):
            return self
        return Transitions(pairs[order][begins], np.add.reduceat(counts[order], begins))


def count_transitions(dataset: Dataset, split: Split, first: int, stop: int) -> Transitions:
    """Counts how often an item directly followed each of the items first..stop-1 in training."""
    total = Transitions(np.empty(0, np.int64), np.empty(0, np.int64))
    new: list[np.ndarray] = []
    for user, next_user in split_by_size(dataset.offsets):
        new.append(_pairs_of_users(dataset, split, slice(user, next_user), first, stop))
        if sum(map(len, new)) > _ELEMENTS_PER_BLOCK:
            total = total.merge(_count_pairs(new))
            new = []
    return total.merge(_count_pairs(new))


def _count_pairs(pairs: list[np.ndarray]) -> Transitions:
    if not pairs:
        return Transitions(np.empty(0, np.int64), np.empty(0, np.int64))
    return Transitions(*np.unique(np.concatenate(pairs), return_counts=True))


def _pairs_of_users(
    dataset: Dataset, split: Split, users: slice, first: int, stop: int
) -> np.ndarray:
    """Returns the pairs of `Transitions`, one per occurrence, in the training events of some
    users.
    """
    begin = dataset.offsets[users.start]
    end = dataset.offsets[users.stop]
    items = np.asarray(dataset.items[begin:end])
    starts = dataset.offsets[users]
    stops = dataset.offsets[users.start + 1 : users.stop + 1]
    has_next = np.ones(end - begin, bool)
    last_training = np.maximum(split.train_stop[users] - 1, starts)
    _, without_next = expand_ranges(last_training, stops)
    has_next[without_next - begin] = False
    before = np.flatnonzero((items >= first) & (items < stop) & has_next)
    return items[before] * np.int64(dataset.num_items + 1) + items[before + 1]


def similarities(dataset: Dataset, split: Split) -> sparse.csr_matrix:
    """Returns float32[V, V]: cosine of the sets of training users of two items, for the
    `NEIGHBOURS` nearest of each.

    Item-based top-N recommendation of Deshpande and Karypis (2004), without a parameter to tune.

    Raises:
      BaselineTooExpensive: the matrix has too many elements.
    """
    size = dataset.num_items + 1
    by_user = _weights_of_users(dataset, split)
    items_per_user = np.diff(by_user.indptr)
    # Upper bound of the elements of each row of the product: all items of all users of an item.
    products = np.zeros(size)
    for first, last in split_by_size(by_user.indptr, _ELEMENTS_PER_BLOCK):
        lengths = items_per_user[first:last]
        items = by_user.indices[by_user.indptr[first] : by_user.indptr[last]]
        products += np.bincount(items, minlength=size, weights=np.repeat(lengths, lengths))
    elements = np.minimum(products, size).astype(np.int64)
    by_item = by_user.T.tocsr()
    parts: list[sparse.csr_matrix] = []
    for first, last in split_by_size(np.append(0, np.cumsum(elements)), _ELEMENTS_PER_BLOCK):
        parts.append(_nearest(by_item[first:last] @ by_user, first))
        if sum(part.nnz for part in parts) > _MOST_SIMILARITIES:
            raise BaselineTooExpensive(
                f"its table would contain more than {_MOST_SIMILARITIES:,} similarities of two "
                "items"
            )
    del by_user, by_item
    return sparse.vstack(parts).tocsr()


def _weights_of_users(dataset: Dataset, split: Split) -> sparse.csr_matrix:
    """Returns float32[num_users, V], 1 / sqrt(number of users of the item) for each item in a
    training history.
    """
    size = dataset.num_items + 1
    lengths = split.train_stop - dataset.offsets[:-1]
    items = np.empty(lengths.sum(), np.int32)
    filled = 0
    for events in training_blocks(dataset, split):
        items[filled : filled + len(events)] = dataset.items[events]
        filled += len(events)
    ones = np.ones(len(items), np.float32)
    matrix = sparse.csr_matrix(
        (ones, items, np.append(0, np.cumsum(lengths))), (dataset.num_users, size)
    )
    matrix.sum_duplicates()  # an item counts once per user
    users_per_item = np.bincount(matrix.indices, minlength=size)
    weights = 1 / np.sqrt(np.maximum(users_per_item, 1).astype(np.float32))
    matrix.data = weights[matrix.indices]
    return matrix


def _nearest(cosine: sparse.csr_matrix, first: int) -> sparse.csr_matrix:
    """Returns rows of cosines with the `NEIGHBOURS` largest of each and all that tie with the last
    of these.

    Args:
      cosine: float32[n, V], cosines of the items from `first` on.
      first: item number of the first row.
    """
    row = _row_numbers(cosine)
    lowest = np.zeros(cosine.shape[0], np.float32)
    cosine.data[cosine.indices == row + first] = 0  # of an item with itself
    for crowded in np.flatnonzero(np.diff(cosine.indptr) > NEIGHBOURS):
        values = cosine.data[cosine.indptr[crowded] : cosine.indptr[crowded + 1]]
        place = len(values) - NEIGHBOURS
        lowest[crowded] = np.partition(values, place)[place]
    kept = (cosine.data >= lowest[row]) & (cosine.data > 0)
    counts = np.bincount(row[kept], minlength=cosine.shape[0])
    bounds = np.append(0, np.cumsum(counts))
    return sparse.csr_matrix((cosine.data[kept], cosine.indices[kept], bounds), cosine.shape)


def _row_numbers(matrix: sparse.csr_matrix) -> np.ndarray:
    """Returns int64[elements], the row of each stored element."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def rank_all(
    config: Config, dataset: Dataset, split: Split, cases: Cases, popularity: np.ndarray
) -> tuple[dict[str, Ranking], dict[str, str]]:
    """Ranks the cases by every baseline, under the protocol of the configuration.

    Args:
      config: the run's configuration.
      dataset: the data.
      split: the training events.
      cases: what to rank.
      popularity: int64[num_items + 1], training counts of `data.training_counts`.

    Returns:
      The rankings: `popular`, by training interactions; `popular_recent`, by those among the newest
      tenth, if there are timestamps; `markov`, by how often an item directly followed the last one
      of the history; `item_knn`, by the sum of similarities to the items of the history. And the
      reason for each baseline that is left out.
    """
    negatives = None
    if config.eval.protocol != "full":
        negatives = protocol_negatives(config.eval, dataset, cases.users, popularity)
    blocks = {"popular": _by_item(cases, popularity)}
    if dataset.timestamps is not None:
        recent = recent_counts(dataset, split, RECENT_SHARE)
        blocks["popular_recent"] = _by_item(cases, recent)
    blocks["markov"] = _by_last_item(dataset, split, cases, popularity)
    blocks["item_knn"] = _by_history(dataset, split, cases)
    last = ranks_last(config.eval, dataset, cases)
    rankings = {}
    left_out = {}
    for name, scores in blocks.items():
        try:
            ranking = _rank(dataset, cases, scores, negatives, config.eval.filter_seen)
            rankings[name] = ranking.force_last(last)
        except BaselineTooExpensive as reason:
            left_out[name] = str(reason)
        except MemoryError:
            left_out[name] = "there was not enough memory for it"
    return rankings, left_out


def _by_item(cases: Cases, scores: np.ndarray) -> Iterator[_BlockScores]:
    """Scores every case by one score per item, int[num_items + 1]."""
    ascending = np.sort(scores[1:])
    for chosen in cases.blocks():
        yield _ItemScores(chosen, scores, ascending)


@dataclass(frozen=True)
class _TransitionScores(_BlockScores):
    """Scores of a block of cases by transitions from their last items.

    Attributes:
      cases: int64[n].
      last_items: int64[n].
      transitions: from a range of items that contains all of the last items.
      levels: int64[p], i * most + count for each pair of the transitions, ascending.
      most: greater than every count.
      begins: int64[n], first pair of each last item.
      stops: int64[n], the pair after its last.
      num_items: size of the catalogue.
    """

    cases: np.ndarray
    last_items: np.ndarray
    transitions: Transitions
    levels: np.ndarray
    most: np.int64
    begins: np.ndarray
    stops: np.ndarray
    num_items: int

    def scores_of(self, index: np.ndarray, items: np.ndarray) -> np.ndarray:
        pairs = self.transitions.pairs
        wanted = self.last_items[index] * np.int64(self.num_items + 1) + items
        if not len(pairs):
            return np.zeros_like(wanted)
        found = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        return np.where(pairs[found] == wanted, self.transitions.counts[found], 0)

    def count_above_and_tied(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wanted = self.last_items * self.most + scores
        above, tied = _count_in_sorted(self.levels, wanted, self.stops)
        # Items that never followed the last item score 0.
        unseen = self.num_items - (self.stops - self.begins)
        return above, tied + np.where(scores == 0, unseen, 0)


def _by_last_item(
    dataset: Dataset, split: Split, cases: Cases, popularity: np.ndarray
) -> Iterator[_BlockScores]:
    """Scores by how often an item directly followed the last one, for a part of all possible last
    items at a time.

    Raises:
      BaselineTooExpensive: there are too many parts, each of which takes a pass over the log.
    """
    last_items = np.asarray(dataset.items[cases.targets - 1], np.int64)
    size = np.int64(dataset.num_items + 1)
    parts = list(split_by_size(np.append(0, np.cumsum(popularity)), _ELEMENTS_PER_BLOCK))
    events = int(dataset.offsets[-1])
    if len(parts) * events > _MOST_EVENT_READS:
        raise BaselineTooExpensive(
            f"it would need {len(parts):,} passes over {events:,} events; the limit is "
            f"{_MOST_EVENT_READS:.0e} "
            "event reads"
        )
    for first, stop in parts:
        in_part = np.flatnonzero((last_items >= first) & (last_items < stop))
        if not len(in_part):
            continue
        transitions = count_transitions(dataset, split, first, stop)
        bounds = np.searchsorted(transitions.pairs, np.arange(first, stop + 1) * size)
        most = np.int64(transitions.counts.max(initial=0) + 1)
        levels = np.sort(transitions.pairs // size * most + transitions.counts)
        for chosen in cases.blocks(in_part):
            place = last_items[chosen] - first
            yield _TransitionScores(
                cases=chosen,
                last_items=last_items[chosen],
                transitions=transitions,
                levels=levels,
                most=most,
                begins=bounds[place],
                stops=bounds[place + 1],
                num_items=dataset.num_items,
            )


@dataclass(frozen=True)
class _SimilarityScores(_BlockScores):
    """Scores of a block of cases by sums of similarities.

    Attributes:
      cases: int64[n].
      sums: float32[n, num_items + 1], sums that are not zero.
      dense: the same as an array.
    """

    cases: np.ndarray
    sums: sparse.csr_matrix
    dense: np.ndarray

    def scores_of(self, index: np.ndarray, items: np.ndarray) -> np.ndarray:
        return self.dense[index, items]

    def count_above_and_tied(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count, size = self.sums.shape
        row = _row_numbers(self.sums)
        above = np.bincount(row[self.sums.data > scores[row]], minlength=count)
        tied = np.bincount(row[self.sums.data == scores[row]], minlength=count)
        not_similar = (size - 1) - np.diff(self.sums.indptr)
        return above, tied + np.where(scores == 0, not_similar, 0)


def _by_history(dataset: Dataset, split: Split, cases: Cases) -> Iterator[_BlockScores]:
    """Scores by the sum of similarities to the items of the history.

    Raises:
      BaselineTooExpensive: it takes too much time or memory.
    """
    lengths = split.train_stop - dataset.offsets[:-1]
    history_events = (cases.targets - cases.starts).sum()
    products = float(lengths @ lengths) + NEIGHBOURS * float(history_events)
    if products > _MOST_PRODUCTS:
        raise BaselineTooExpensive(
            f"it would need about {products:.1e} products (the square of each user's events, and "
            f"{NEIGHBOURS} for "
            f"each event of a ranked history); the limit is {_MOST_PRODUCTS:.0e}"
        )
    if lengths.sum() > _MOST_EVENTS:
        raise BaselineTooExpensive(
            f"it holds all {lengths.sum():,} training events in memory; the limit is "
            f"{_MOST_EVENTS:,}"
        )
    similar = similarities(dataset, split)
    size = dataset.num_items + 1
    spans = cases.spans(dataset)
    for chosen in cases.blocks(most=max(1, min(_CASES_PER_BLOCK, _ELEMENTS_PER_BLOCK // size))):
        index, items = spans.events(chosen)
        bounds = np.append(0, np.cumsum(np.bincount(index, minlength=len(chosen))))
        ones = np.ones(len(items), np.float32)
        histories = sparse.csr_matrix((ones, items, bounds), (len(chosen), size))
        sums = histories @ similar
        yield _SimilarityScores(chosen, sums, sums.toarray())


def _rank(
    dataset: Dataset,
    cases: Cases,
    blocks: Iterator[_BlockScores],
    negatives: np.ndarray | None,
    filter_seen: bool,
) -> Ranking:
    """Ranks all cases, a block at a time, among the catalogue or among sampled candidates, int32[n,
    S].
    """
    greater, ties, candidates = np.zeros((3, len(cases.users)), np.int64)
    spans = cases.spans(dataset)
    for block in blocks:
        count = len(block.cases)
        targets = cases.target_items(dataset, block.cases).astype(np.int64)
        target_scores = block.scores_of(np.arange(count), targets)
        if negatives is not None:
            sampled = negatives[block.cases]
            index = np.repeat(np.arange(count), sampled.shape[1])
            above, tied, others = _count_pairs_above(block, index, sampled.ravel(), target_scores)
        else:
            above, tied = block.count_above_and_tied(target_scores)
            tied = tied - 1  # the target itself
            others = np.full(count, dataset.num_items - 1)
            if filter_seen:
                index, items = spans.seen_items(block.cases)
                is_other = items != targets[index]
                seen = _count_pairs_above(block, index[is_other], items[is_other], target_scores)
                above = above - seen[0]
                tied = tied - seen[1]
                others = others - seen[2]
        greater[block.cases] = above
        ties[block.cases] = tied
        candidates[block.cases] = others + 1
    return Ranking(greater, ties, candidates)


def _count_pairs_above(
    block: _BlockScores, index: np.ndarray, items: np.ndarray, target_scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts the items of each case that score above its target, the same, and all of them: three
    int64[n].

    Args:
      block: the scores.
      index: int64[p], index of a case in the block.
      items: int[p], item numbers.
      target_scores: [n], score of each target.
    """
    scores = block.scores_of(index, items)
    above = np.bincount(index[scores > target_scores[index]], minlength=len(block.cases))
    tied = np.bincount(index[scores == target_scores[index]], minlength=len(block.cases))
    return above, tied, np.bincount(index, minlength=len(block.cases))
