# SPDX-License-Identifier: Apache-2.0
"""What is trained on and what is to be predicted."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from bert4rec_jax.config import SplitConfig
from bert4rec_jax.data import ranges
from bert4rec_jax.data.dataset import Dataset
from bert4rec_jax.data.ranges import expand_ranges, split_by_size
from bert4rec_jax.errors import UserError

_INTERVALS = 1 << 20  # of time, that a pass counts events in


@dataclass(frozen=True)
class Split:
    """Positions in `Dataset.items`.

    Attributes:
      train_stop: int64[num_users]; the training history of user u is items[offsets[u]:train_stop[u]].
      valid_users: int32[n], users with a validation target, ascending.
      valid_targets: int64[n], positions of the items to predict; the history is items[offsets[user]:target].
      test_users: int32[m], likewise for the test.
      test_targets: int64[m].
      description: a sentence for people.
    """

    train_stop: np.ndarray = field(repr=False)
    valid_users: np.ndarray = field(repr=False)
    valid_targets: np.ndarray = field(repr=False)
    test_users: np.ndarray = field(repr=False)
    test_targets: np.ndarray = field(repr=False)
    description: str


def split_dataset(dataset: Dataset, config: SplitConfig = SplitConfig()) -> Split:
    """Splits by `config.kind`.

    Args:
      dataset: the data.
      config: how to split them.

    Raises:
      UserError: a temporal split of data without timestamps, or a split that leaves nothing to train on,
        validate or test with.
    """
    if config.kind == "temporal":
        split = _temporal(dataset, config)
    else:
        split = _leave_one_out(dataset, config.valid_users)
    for part, size in (
        ("training events", int(np.sum(split.train_stop - dataset.offsets[:-1]))),
        ("validation targets", len(split.valid_users)),
        ("test targets", len(split.test_users)),
    ):
        if size == 0:
            shares = ", config.split.valid_share or test_share" if config.kind == "temporal" else ""
            raise UserError(
                f"the {config.kind} split of {dataset.manifest['name']} has no {part} "
                f"({split.description}); use more data or change config.split.kind{shares}."
            )
    return split


def _leave_one_out(dataset: Dataset, valid_users: int) -> Split:
    starts, stops = dataset.offsets[:-1], dataset.offsets[1:]
    users = np.flatnonzero(stops - starts >= 3).astype(np.int32)
    valid = _chosen(users, valid_users)
    train_stop = stops.astype(np.int64)
    train_stop[users] -= 1
    train_stop[valid] -= 1
    short = dataset.num_users - len(users)
    second_last = "the second-last the validation target and part of the test history"
    if len(valid) < len(users):
        second_last = (
            f"the second-last the validation target of {len(valid)} users drawn at random, trained on for the others, "
            "and part of every test history"
        )
    return Split(
        train_stop=train_stop,
        valid_users=valid,
        valid_targets=stops[valid] - 2,
        test_users=users,
        test_targets=stops[users] - 1,
        description=(
            f"leave-one-out: the last event of each user is the test target, {second_last}, the rest is trained on; "
            f"{short} users with fewer than 3 events are trained on only"
        ),
    )


def _chosen(users: np.ndarray, count: int) -> np.ndarray:
    """Returns the first `count` users of a fixed shuffle, ascending; all where it is 0 or they are no more."""
    if not 0 < count < len(users):
        return users
    shuffled = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(users))
    return users[np.sort(shuffled[:count])]


def _temporal(dataset: Dataset, config: SplitConfig) -> Split:
    if dataset.timestamps is None:
        raise UserError(
            f"config.split.kind = 'temporal' needs timestamps, and {dataset.manifest['name']} has none; use "
            "'leave_one_out' or a source with times."
        )
    starts, stops = dataset.offsets[:-1], dataset.offsets[1:]
    gap_cut, valid_cut, test_cut = _cuts(dataset, config)
    last = config.period_target == "last"
    key = f"temporal-{valid_cut}-{gap_cut}-{test_cut}" + ("-last" if last else "")
    positions = dataset.cached(
        key, lambda: _first_events(dataset, (valid_cut, gap_cut, test_cut), last)
    )
    train_stop, valid_end, valid_stop = positions[:, :-1]
    unseen = int(positions[0, -1])
    valid_targets, test_targets = (valid_end - 1, stops - 1) if last else (train_stop, valid_stop)
    could_validate = np.flatnonzero((train_stop < valid_end) & (valid_targets > starts)).astype(
        np.int32
    )
    valid = _chosen(could_validate, config.valid_users)
    drawn = (
        "" if len(valid) == len(could_validate) else f" of {len(could_validate)}, drawn at random,"
    )
    test = np.flatnonzero((valid_stop < stops) & (test_targets > starts)).astype(np.int32)
    gap = ""
    if gap_cut != test_cut:
        gap = (
            f"; events from {_date(gap_cut)} on and before the test period are neither trained on nor predicted, but "
            "belong to the test histories"
        )
    return Split(
        train_stop=train_stop,
        valid_users=valid,
        valid_targets=valid_targets[valid],
        test_users=test,
        test_targets=test_targets[test],
        description=(
            f"temporal: events before {_date(valid_cut)} are trained on, from then the validation and from "
            f"{_date(test_cut)} the test period{gap}; the target of a user in a period is the {config.period_target} "
            "event in it, the history all events before; users without history have no target "
            f"({len(valid)} validation{drawn} and {len(test)} test users of {dataset.num_users}; {unseen} test targets "
            "are items that no training event has)"
        ),
    )


def _cuts(dataset: Dataset, config: SplitConfig) -> tuple[int, int, int]:
    """Returns the ends of validation and gap, and of training: (gap_cut, valid_cut, test_cut), in file units."""
    if config.test_seconds:
        last = dataset.manifest["times"]["last"]
        test_cut = last + 1 - config.test_seconds
        gap_cut = test_cut - config.gap_seconds
        return gap_cut, gap_cut - config.valid_seconds, test_cut
    size = len(dataset.timestamps)
    places = [
        size - max(1, round(share * size))
        for share in (config.test_share + config.valid_share, config.test_share)
    ]
    # An event on the cut-off belongs to the later period, and so do all that share its time.

    def blocks() -> Iterator[np.ndarray]:
        for begin in range(0, size, ranges.EVENTS_PER_BLOCK):
            yield np.asarray(dataset.timestamps[begin : begin + ranges.EVENTS_PER_BLOCK])

    cuts = dataset.cached(
        f"times-{places[0]}-{places[1]}",
        lambda: np.array([_order_statistic(dataset, blocks, place) for place in places]),
    )
    return int(cuts[1]), int(cuts[0]), int(cuts[1])


def _order_statistic(
    dataset: Dataset, blocks: Callable[[], Iterator[np.ndarray]], place: int
) -> int:
    """Returns the timestamp at a place of the sorted ones, in a pass or two that count events by interval of time.

    Args:
      dataset: of the times.
      blocks: called for each pass; yields the times.
      place: from 0.
    """
    low, high = dataset.manifest["times"]["first"], dataset.manifest["times"]["last"]
    while low < high:
        width = (high - low) // _INTERVALS + 1
        counts = np.zeros((high - low) // width + 1, np.int64)
        for times in blocks():
            times = times[(times >= low) & (times <= high)]
            # Unsigned: times may lie more than 2**63 apart.
            above = (times - low).view(np.uint64) // np.uint64(width)
            counts += np.bincount(above.astype(np.int64), minlength=len(counts))
        before = np.cumsum(counts) - counts
        # Empty intervals begin at the same count as the next one that is not: the last of them is meant.
        interval = int(np.searchsorted(before, place, "right")) - 1
        place -= int(before[interval])
        low, high = low + interval * width, min(high, low + (interval + 1) * width - 1)
    return low


def _first_events(dataset: Dataset, cuts: tuple[int, ...], last_is_target: bool) -> np.ndarray:
    """Returns int64[cuts, users + 1]: each user's first event at or after each cut-off; in the last column of row 0 how
    many test targets are items without an event before the first one."""
    found = np.zeros((len(cuts), dataset.num_users + 1), np.int64)
    seen = np.zeros(dataset.num_items + 1, bool)
    for first, last in split_by_size(dataset.offsets):
        begin, end = dataset.offsets[first], dataset.offsets[last]
        times, starts = np.asarray(dataset.timestamps[begin:end]), dataset.offsets[first:last]
        for row, cut in enumerate(cuts):
            found[row, first:last] = starts + np.add.reduceat(
                times < cut, starts - begin, dtype=np.int64
            )
        seen[dataset.items[begin:end][times < cuts[0]]] = True
    starts, stops = dataset.offsets[:-1], dataset.offsets[1:]
    targets = stops - 1 if last_is_target else found[-1, :-1]
    targets = targets[(targets > starts) & (found[-1, :-1] < stops)]
    found[0, -1] = np.count_nonzero(~seen[dataset.items[targets]])
    return found


def training_counts(dataset: Dataset, split: Split) -> np.ndarray:
    """Returns int64[num_items + 1], training interactions of each item id; counted once and kept."""

    def count() -> np.ndarray:
        counts = np.zeros(dataset.num_items + 1, np.int64)
        for first, last in split_by_size(dataset.offsets):
            # All events, less the few that are not trained on: twice as fast as to pick those that are.
            counts += np.bincount(
                dataset.items[dataset.offsets[first] : dataset.offsets[last]], minlength=len(counts)
            )
            _, places = expand_ranges(
                split.train_stop[first:last], dataset.offsets[first + 1 : last + 1]
            )
            counts -= np.bincount(dataset.items[places], minlength=len(counts))
        return counts

    return dataset.cached(f"popularity-{_digest(split)}", count)


def recent_counts(dataset: Dataset, split: Split, share: float) -> np.ndarray:
    """Returns int64[num_items + 1], likewise of the newest share of all training interactions.

    The oldest time that counts is `np.quantile(times, 1 - share)`, interpolated between two events as NumPy does.
    """

    def count() -> np.ndarray:
        cut = _quantile(dataset, split, 1 - share)
        counts = np.zeros(dataset.num_items + 1, np.int64)
        for events in training_blocks(dataset, split):
            recent = events[np.asarray(dataset.timestamps[events]) >= cut]
            counts += np.bincount(dataset.items[recent], minlength=len(counts))
        return counts

    return dataset.cached(f"recent-{share}-{_digest(split)}", count)


def _digest(split: Split) -> str:
    return hashlib.sha256(np.ascontiguousarray(split.train_stop).data).hexdigest()[:12]


def training_blocks(dataset: Dataset, split: Split) -> Iterator[np.ndarray]:
    """Yields int64 positions of training events, block after block."""
    for first, last in split_by_size(dataset.offsets):
        yield expand_ranges(dataset.offsets[first:last], split.train_stop[first:last])[1]


def _quantile(dataset: Dataset, split: Split, share: float) -> float:
    """Returns np.quantile of the training times, from counts of each interval of time."""
    size = int(np.sum(split.train_stop - dataset.offsets[:-1]))
    place = share * (size - 1)
    below = int(np.floor(place))

    def blocks() -> Iterator[np.ndarray]:
        return (
            np.asarray(dataset.timestamps[events]) for events in training_blocks(dataset, split)
        )

    ends = [_order_statistic(dataset, blocks, at) for at in (below, min(below + 1, size - 1))]
    return float(np.quantile(ends, place - below))


def _date(seconds: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).strftime(
            "%Y-%m-%d %H:%M:%S UTC"
        )
    except (ValueError, OverflowError, OSError):
        return f"time {int(seconds)}"
