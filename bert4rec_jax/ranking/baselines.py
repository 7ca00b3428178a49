# SPDX-License-Identifier: Apache-2.0
"""Models that only count: what every neural recommender has to beat. All of them are deterministic.

`popular` and `popular_recent` know nothing of the user; `markov` knows the last item of a history, `item_knn` all of
them. They train on the same events as the neural model and are ranked under the same protocol.

The log is read in blocks, and no array is as long as it. A model that would take hours, or more memory than its bound
here, is left out with a sentence that says why.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

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

RECENT_SHARE = 0.1  # of the newest training interactions counts for `popular_recent`
NEIGHBOURS = 100  # of each item, for `item_knn`
_CHUNK = 1024  # cases at a time, for `item_knn`
_AT_ONCE = 1 << 24  # transitions, products or scores that are held at once
# Bounds beyond which a model is left out. Each of the first two is some ten minutes on a core.
_MOST_VISITS = 10**11  # of events, in all passes over the log that `markov` makes
_MOST_PRODUCTS = 3 * 10**10  # of two weights, for `item_knn`
_MOST_EVENTS = 1 << 26  # of training, for `item_knn`, which holds each twice: 16 bytes
_MOST_SIMILARITIES = 1 << 27  # that `item_knn` keeps: 8 bytes each


class LeftOut(Exception):
    """A model takes too much time or memory for these data; says what and how much."""


class _Scored(NamedTuple):
    """What a model says of a block of n cases.

    Attributes:
      cases: int64[n], their numbers.
      of: maps places in the block, int64[p], and items, int[p], to scores, [p].
      standing: maps a score for each case, [n], to how many items of the whole catalogue score higher and how many the
        same, two int64[n].
    """

    cases: np.ndarray
    of: Callable[[np.ndarray, np.ndarray], np.ndarray]
    standing: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def transitions(
    dataset: Dataset, split: Split, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts how often item j came right after item i in training, for i from `first` to the one before `last`.

    Returns:
      int64[p], i * (num_items + 1) + j of the pairs that occur, ascending; int64[p], how often each does.
    """
    fresh: list[np.ndarray] = []
    pairs = counts = np.empty(0, np.int64)

    def add() -> tuple[np.ndarray, np.ndarray]:
        found, times = np.unique(np.concatenate([*fresh, pairs[:0]]), return_counts=True)
        fresh.clear()
        if not len(pairs):
            return found, times
        both, times = np.concatenate([pairs, found]), np.concatenate([counts, times])
        order = np.argsort(both, kind="stable")
        begins = np.flatnonzero(np.diff(both[order], prepend=-1))
        return both[order][begins], np.add.reduceat(times[order], begins)

    for one, end in split_by_size(dataset.offsets):
        begin, stop = dataset.offsets[one], dataset.offsets[end]
        items, followed = np.asarray(dataset.items[begin:stop]), np.ones(stop - begin, bool)
        ends = np.maximum(split.train_stop[one:end] - 1, dataset.offsets[one:end])
        followed[expand_ranges(ends, dataset.offsets[one + 1 : end + 1])[1] - begin] = False
        before = np.flatnonzero((items >= first) & (items < last) & followed)
        fresh.append(items[before] * np.int64(dataset.num_items + 1) + items[before + 1])
        if sum(map(len, fresh)) > _AT_ONCE:
            pairs, counts = add()
    return add()


def similarities(dataset: Dataset, split: Split) -> sparse.csr_matrix:
    """Returns float32[V, V]: cosine of the sets of training users of two items, of the `NEIGHBOURS` nearest of each.

    Item-based top-N recommendation of Deshpande and Karypis (2004), without a parameter to tune.

    Raises:
      LeftOut: there are more of them than may be held.
    """
    size, lengths = dataset.num_items + 1, split.train_stop - dataset.offsets[:-1]
    items, filled = np.empty(lengths.sum(), np.int32), 0
    for events in training_blocks(dataset, split):
        items[filled : filled + len(events)] = dataset.items[events]
        filled += len(events)
    met = sparse.csr_matrix(
        (np.ones(len(items), np.float32), items, np.append(0, np.cumsum(lengths))),
        (dataset.num_users, size),
    )
    met.sum_duplicates()  # an item that a user met twice counts once
    users = np.bincount(met.indices, minlength=size)
    met.data = (1 / np.sqrt(np.maximum(users, 1).astype(np.float32)))[met.indices]
    distinct, reached = (
        np.diff(met.indptr),
        np.zeros(size),
    )  # what else the users of an item have met
    for first, last in split_by_size(met.indptr, _AT_ONCE):
        reached += np.bincount(
            met.indices[met.indptr[first] : met.indptr[last]],
            minlength=size,
            weights=np.repeat(distinct[first:last], distinct[first:last]),
        )
    by_item, parts = met.T.tocsr(), []
    for first, last in split_by_size(
        np.append(0, np.cumsum(np.minimum(reached, size).astype(np.int64))), _AT_ONCE
    ):
        parts.append(_nearest(by_item[first:last] @ met, first))
        if sum(part.nnz for part in parts) > _MOST_SIMILARITIES:
            raise LeftOut(
                f"its table would hold more than {_MOST_SIMILARITIES:,} similarities of two items"
            )
    del met, by_item
    return sparse.vstack(parts).tocsr()


def _nearest(cosine: sparse.csr_matrix, first: int) -> sparse.csr_matrix:
    """Returns rows of cosines, of items from `first` on, with the `NEIGHBOURS` largest of each, and all that tie."""
    row = np.repeat(np.arange(cosine.shape[0]), np.diff(cosine.indptr))
    least = np.zeros(cosine.shape[0], np.float32)
    cosine.data[cosine.indices == row + first] = 0  # of an item with itself
    for crowded in np.flatnonzero(np.diff(cosine.indptr) > NEIGHBOURS):
        values = cosine.data[cosine.indptr[crowded] : cosine.indptr[crowded + 1]]
        least[crowded] = np.partition(values, len(values) - NEIGHBOURS)[len(values) - NEIGHBOURS]
    kept = (cosine.data >= least[row]) & (cosine.data > 0)
    ends = np.cumsum(np.bincount(row[kept], minlength=cosine.shape[0]))
    return sparse.csr_matrix(
        (cosine.data[kept], cosine.indices[kept], np.append(0, ends)), cosine.shape
    )


def rank_all(
    config: Config, dataset: Dataset, split: Split, cases: Cases, popularity: np.ndarray
) -> tuple[dict[str, Ranking], dict[str, str]]:
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
      history; `item_knn`, by the sum of similarities to the items of the history. And of each that is left out, why.
    """
    counts = {"popular": popularity}
    if dataset.timestamps is not None:
        counts["popular_recent"] = recent_counts(dataset, split, RECENT_SHARE)
    models = {name: _by_item(cases, count) for name, count in counts.items()}
    models["markov"] = _by_last_item(dataset, split, cases, popularity)
    models["item_knn"] = _by_history(dataset, split, cases)
    e = config.eval
    negatives = (
        None if e.protocol == "full" else protocol_negatives(e, dataset, cases.users, popularity)
    )
    last = ranks_last(e, dataset, cases)
    rankings, left_out = {}, {}
    for name, scored in models.items():
        try:
            rankings[name] = _rank(dataset, cases, scored, negatives, e.filter_seen).with_last(last)
        except LeftOut as reason:
            left_out[name] = str(reason)
        except MemoryError:
            left_out[name] = "there was not enough memory for it"
    return rankings, left_out


def _by_item(cases: Cases, scores: np.ndarray) -> Iterator[_Scored]:
    """Scores every case alike, by one score for each item id, int[num_items + 1]."""
    ascending = np.sort(scores[1:])

    def standing(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _beside(ascending, score, len(ascending))

    for chosen in cases.blocks():
        yield _Scored(chosen, lambda places, items: scores[items], standing)


def _beside(
    ascending: np.ndarray, value: np.ndarray, last: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns, of each value, how many of ascending[:last] are greater and how many are equal; none is beyond them."""
    left, right = (np.searchsorted(ascending, value, side) for side in ("left", "right"))
    return last - right, right - left


def _by_last_item(
    dataset: Dataset, split: Split, cases: Cases, popularity: np.ndarray
) -> Iterator[_Scored]:
    """Scores by how often an item came right after the last one of the history, for a part of the last items at a time.

    Raises:
      LeftOut: so many parts, of which each is a pass over the log, take too long.
    """
    last_items, size = np.asarray(dataset.items[cases.targets - 1]), np.int64(dataset.num_items + 1)
    parts = list(split_by_size(np.append(0, np.cumsum(popularity)), _AT_ONCE))
    events = int(dataset.offsets[-1])
    if len(parts) * events > _MOST_VISITS:
        raise LeftOut(
            f"{len(parts):,} passes over {events:,} events would be needed, and it looks at most at "
            f"{_MOST_VISITS:.0e}"
        )
    for first, stop in parts:
        of_part = np.flatnonzero((last_items >= first) & (last_items < stop))
        if not len(of_part):
            continue
        pairs, counts = transitions(dataset, split, first, stop)
        begins = np.searchsorted(pairs, np.arange(first, stop + 1) * size)  # of each item's pairs
        most = np.int64(counts.max(initial=0) + 1)
        levels = np.sort(pairs // size * most + counts)

        for chosen in cases.blocks(of_part):
            item = last_items[chosen].astype(np.int64)
            begin, end = begins[item - first], begins[item - first + 1]

            def of(places: np.ndarray, items: np.ndarray, item=item) -> np.ndarray:
                wanted = item[places] * size + items
                found = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
                return (
                    np.where(pairs[found] == wanted, counts[found], 0)
                    if len(pairs)
                    else np.zeros_like(wanted)
                )

            def standing(
                score: np.ndarray, item=item, begin=begin, end=end
            ) -> tuple[np.ndarray, np.ndarray]:
                greater, equal = _beside(levels, item * most + score, end)
                # All items that never came after this one have the score 0.
                return greater, equal + np.where(score == 0, dataset.num_items - (end - begin), 0)

            yield _Scored(chosen, of, standing)


def _by_history(dataset: Dataset, split: Split, cases: Cases) -> Iterator[_Scored]:
    """Scores by the sum of similarities to the items of the history.

    Raises:
      LeftOut: that takes too much time or memory.
    """
    lengths = split.train_stop - dataset.offsets[:-1]
    products = float(lengths @ lengths) + NEIGHBOURS * float((cases.targets - cases.starts).sum())
    if products > _MOST_PRODUCTS:
        raise LeftOut(
            f"it would add up about {products:.1e} products (each user's events squared, and "
            f"{NEIGHBOURS} for each event of a history that is ranked), and it does so for at most "
            f"{_MOST_PRODUCTS:.0e}"
        )
    if lengths.sum() > _MOST_EVENTS:
        raise LeftOut(
            f"it holds all of {lengths.sum():,} training events in memory, and does so for at most "
            f"{_MOST_EVENTS:,}"
        )
    similar, size = similarities(dataset, split), dataset.num_items + 1
    scores = np.zeros((max(1, min(_CHUNK, _AT_ONCE // size)), size), np.float32)
    for chosen in cases.blocks(most=len(scores)):
        place, item = cases.events(dataset.items, chosen)
        ends = np.cumsum(np.bincount(place, minlength=len(chosen)))
        met = sparse.csr_matrix(
            (np.ones(len(item), np.float32), item, np.append(0, ends)), (len(chosen), size)
        )
        sums = met @ similar
        row = np.repeat(np.arange(len(chosen)), np.diff(sums.indptr))
        scores[row, sums.indices] = sums.data

        def standing(score: np.ndarray, row=row, sums=sums) -> tuple[np.ndarray, np.ndarray]:
            greater, equal = (
                np.bincount(row[compare(sums.data, score[row])], minlength=len(score))
                for compare in (np.greater, np.equal)
            )
            return greater, equal + np.where(
                score == 0, dataset.num_items - np.diff(sums.indptr), 0
            )

        yield _Scored(chosen, lambda places, items: scores[places, items], standing)
        scores[row, sums.indices] = 0


def _rank(
    dataset: Dataset,
    cases: Cases,
    scored: Iterator[_Scored],
    negatives: np.ndarray | None,
    filter_seen: bool,
) -> Ranking:
    """Ranks all cases, a block at a time, against the catalogue or the sampled candidates, int32[n, C]."""
    results = greater, ties, candidates = np.zeros((3, len(cases.users)), np.int64)
    for block in scored:
        here, targets = (
            np.arange(len(block.cases)),
            np.asarray(dataset.items[cases.targets[block.cases]], np.int64),
        )
        target = block.of(here, targets)
        if negatives is not None:
            begin, sign = (0, 0, 1), 1
            place, item = np.repeat(here, negatives.shape[1]), negatives[block.cases].ravel()
        else:  # all items, less those that were seen before
            above, level = block.standing(target)
            begin, sign = (above, level - 1, dataset.num_items), -1
            place, item = (
                _seen(dataset, cases, block.cases, targets)
                if filter_seen
                else np.empty((2, 0), np.int64)
            )
        value = block.of(place, item)
        for result, first, counted in zip(
            results, begin, (value > target[place], value == target[place], slice(None))
        ):
            result[block.cases] = first + sign * np.bincount(place[counted], minlength=len(here))
    return Ranking(greater, ties, candidates)


def _seen(
    dataset: Dataset, cases: Cases, chosen: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (place among the chosen cases, item) of the distinct items of their histories, without the targets."""
    place, item = cases.events(dataset.items, chosen)
    pairs = np.sort(
        place * (dataset.num_items + 1) + item
    )  # np.unique takes ten times as long for so many
    place, item = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], dataset.num_items + 1)
    kept = item != targets[place]
    return place[kept], item[kept]
