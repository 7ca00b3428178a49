# SPDX-License-Identifier: Apache-2.0
"""Splits of a data set into training events, validation targets and test targets."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from bert4rec_jax.config import SplitConfig
from bert4rec_jax.data import ranges
from bert4rec_jax.data.dataset import Dataset
from bert4rec_jax.data.order_statistics import order_statistic
from bert4rec_jax.errors import UserError


@dataclass(frozen=True)
class Split:
    """A split, as positions in `Dataset.items`.

    Attributes:
      train_stop: int64[num_users]; the training history of user u is
        items[offsets[u]:train_stop[u]].
      valid_users: int32[n], users with a validation target, ascending.
      valid_targets: int64[n], position of each item to predict; its history is
        items[offsets[user]:target].
      test_users: int32[m], users with a test target, ascending.
      test_targets: int64[m], position of each item to predict.
      description: one sentence about the split, part of the protocol.
    """

    train_stop: np.ndarray = field(repr=False)
    valid_users: np.ndarray = field(repr=False)
    valid_targets: np.ndarray = field(repr=False)
    test_users: np.ndarray = field(repr=False)
    test_targets: np.ndarray = field(repr=False)
    description: str


def split_dataset(dataset: Dataset, config: SplitConfig = SplitConfig()) -> Split:
    """Splits a data set by user (leave-one-out) or by time.

    Raises:
      UserError: a temporal split of data without timestamps, or a split without training events,
        validation targets or test targets.
    """
    if config.kind == "temporal":
        split = _temporal(dataset, config)
    else:
        split = _leave_one_out(dataset, config.valid_users)
    sizes = {
        "training events": int(np.sum(split.train_stop - dataset.offsets[:-1])),
        "validation targets": len(split.valid_users),
        "test targets": len(split.test_users),
    }
    for part, size in sizes.items():
        if size == 0:
            shares = ", config.split.valid_share or test_share" if config.kind == "temporal" else ""
            raise UserError(
                f"the {config.kind} split of {dataset.manifest['name']} has no {part} "
                f"({split.description}); use more data or change config.split.kind{shares}."
            )
    return split


def _leave_one_out(dataset: Dataset, valid_users: int) -> Split:
    starts = dataset.offsets[:-1]
    stops = dataset.offsets[1:]
    users = np.flatnonzero(stops - starts >= 3).astype(np.int32)
    valid = _sample_users(users, valid_users)
    train_stop = stops.astype(np.int64)
    train_stop[users] -= 1
    train_stop[valid] -= 1
    short = dataset.num_users - len(users)
    second_last = "the second-last the validation target and part of the test history"
    if len(valid) < len(users):
        second_last = (
            f"the second-last the validation target of {len(valid)} users drawn at random, "
            "trained on for the others, and part of every test history"
        )
    return Split(
        train_stop=train_stop,
        valid_users=valid,
        valid_targets=stops[valid] - 2,
        test_users=users,
        test_targets=stops[users] - 1,
        description=(
            f"leave-one-out: the last event of each user is the test target, {second_last}, "
            f"the rest is trained on; {short} users with fewer than 3 events are trained on only"
        ),
    )


def _sample_users(users: np.ndarray, count: int) -> np.ndarray:
    """Returns the first `count` users of a fixed shuffle, ascending; all users if `count` is 0."""
    if not 0 < count < len(users):
        return users
    shuffled = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(users))
    return users[np.sort(shuffled[:count])]


@dataclass(frozen=True)
class _Cuts:
    """Times at which periods begin: validation, the gap after it, and the test period."""

    valid: int
    gap: int
    test: int


def _temporal(dataset: Dataset, config: SplitConfig) -> Split:
    if dataset.timestamps is None:
        raise UserError(
            f"config.split.kind = 'temporal' needs timestamps, and {dataset.manifest['name']} has "
            "none; use 'leave_one_out' or a source with times."
        )
    starts = dataset.offsets[:-1]
    stops = dataset.offsets[1:]
    cuts = _cuts(dataset, config)
    last = config.period_target == "last"
    key = f"temporal-{cuts.valid}-{cuts.gap}-{cuts.test}" + ("-last" if last else "")
    found = dataset.cached(key, lambda: _first_events(dataset, cuts, last))
    train_stop, gap_start, test_start = found[:, :-1]
    unseen = int(found[0, -1])
    valid_targets = gap_start - 1 if last else train_stop
    test_targets = stops - 1 if last else test_start
    # Prediction needs a history, so at least one event has to precede the target.
    may_validate = (train_stop < gap_start) & (valid_targets > starts)
    may_test = (test_start < stops) & (test_targets > starts)
    candidates = np.flatnonzero(may_validate).astype(np.int32)
    valid = _sample_users(candidates, config.valid_users)
    test = np.flatnonzero(may_test).astype(np.int32)
    drawn = "" if len(valid) == len(candidates) else f" of {len(candidates)}, drawn at random,"
    gap = ""
    if cuts.gap != cuts.test:
        gap = (
            f"; events from {_date(cuts.gap)} on and before the test period are neither trained "
            "on nor predicted, but belong to the test histories"
        )
    return Split(
        train_stop=train_stop,
        valid_users=valid,
        valid_targets=valid_targets[valid],
        test_users=test,
        test_targets=test_targets[test],
        description=(
            f"temporal: events before {_date(cuts.valid)} are trained on, from then the "
            f"validation and from {_date(cuts.test)} the test period{gap}; the target of a user "
            f"in a period is the {config.period_target} event in it, the history all events "
            f"before; users without history have no target ({len(valid)} validation{drawn} and "
            f"{len(test)} test users of {dataset.num_users}; {unseen} test targets are items that "
            "no training event has)"
        ),
    )


def _cuts(dataset: Dataset, config: SplitConfig) -> _Cuts:
    """Returns the cuts in the unit of `Dataset.timestamps`."""
    if config.test_seconds:
        test = dataset.manifest["times"]["last"] + 1 - config.test_seconds
        gap = test - config.gap_seconds
        return _Cuts(gap - config.valid_seconds, gap, test)

    def blocks() -> Iterator[np.ndarray]:
        for first in range(0, size, ranges.EVENTS_PER_BLOCK):
            yield np.asarray(times[first : first + ranges.EVENTS_PER_BLOCK])

    # An event at a cut belongs to the later period, like all events of the same time.
    times = dataset.times()
    size = len(times)
    shares = (config.test_share + config.valid_share, config.test_share)
    places = [size - max(1, round(share * size)) for share in shares]
    valid, test = dataset.cached(
        f"times-{places[0]}-{places[1]}",
        lambda: np.array([order_statistic(dataset, blocks, place) for place in places]),
    )
    return _Cuts(int(valid), int(test), int(test))


def _first_events(dataset: Dataset, cuts: _Cuts, last_is_target: bool) -> np.ndarray:
    """Returns every user's first event at or after each cut, int64[3, users + 1].

    The rows belong to the cuts valid, gap and test. Element [0, -1] is the number of test targets
    whose item does not occur in training.
    """
    times_of_cuts = (cuts.valid, cuts.gap, cuts.test)
    found = np.zeros((3, dataset.num_users + 1), np.int64)
    trained = np.zeros(dataset.num_items + 1, bool)
    for first, last in ranges.split_by_size(dataset.offsets):
        begin = dataset.offsets[first]
        end = dataset.offsets[last]
        times = np.asarray(dataset.times()[begin:end])
        starts = dataset.offsets[first:last]
        for row, cut in enumerate(times_of_cuts):
            earlier = np.add.reduceat(times < cut, starts - begin, dtype=np.int64)
            found[row, first:last] = starts + earlier
        trained[dataset.items[begin:end][times < cuts.valid]] = True
    starts = dataset.offsets[:-1]
    stops = dataset.offsets[1:]
    test_start = found[2, :-1]
    targets = stops - 1 if last_is_target else test_start
    targets = targets[(targets > starts) & (test_start < stops)]
    found[0, -1] = np.count_nonzero(~trained[dataset.items[targets]])
    return found


def _date(seconds: int) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
        return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"time {int(seconds)}"
