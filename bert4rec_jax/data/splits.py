# SPDX-License-Identifier: Apache-2.0
"""What is trained on and what is to be predicted."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

import numpy as np

from bert4rec_jax.config import DataConfig
from bert4rec_jax.data.dataset import Dataset
from bert4rec_jax.errors import UserError


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


def split_dataset(dataset: Dataset, config: DataConfig) -> Split:
    """Splits by `config.split`.

    Raises:
      UserError: a temporal split of data without timestamps, or a split that leaves nothing to train on,
        validate or test with.
    """
    split = _temporal(dataset, config) if config.split == "temporal" else _leave_one_out(dataset)
    for part, size in (
        ("training events", int(np.sum(split.train_stop - dataset.offsets[:-1]))),
        ("validation targets", len(split.valid_users)),
        ("test targets", len(split.test_users)),
    ):
        if size == 0:
            shares = ", config.data.valid_share or test_share" if config.split == "temporal" else ""
            raise UserError(
                f"the {config.split} split of {dataset.manifest['name']} has no {part} "
                f"({split.description}); use more data or change config.data.split{shares}."
            )
    return split


def _leave_one_out(dataset: Dataset) -> Split:
    starts, stops = dataset.offsets[:-1], dataset.offsets[1:]
    users = np.flatnonzero(stops - starts >= 3).astype(np.int32)
    train_stop = stops.astype(np.int64)
    train_stop[users] -= 2
    short = dataset.num_users - len(users)
    return Split(
        train_stop=train_stop,
        valid_users=users,
        valid_targets=stops[users] - 2,
        test_users=users,
        test_targets=stops[users] - 1,
        description=(
            "leave-one-out: the last event of each user is the test target, the second-last the validation "
            f"target and part of the test history, the rest is trained on; {short} users with fewer than 3 "
            "events are trained on only"
        ),
    )


def _temporal(dataset: Dataset, config: DataConfig) -> Split:
    if dataset.timestamps is None:
        raise UserError(
            f"config.data.split = 'temporal' needs timestamps, and {dataset.manifest['name']} has none; use "
            "'leave_one_out' or a source with times."
        )
    times, starts, stops = np.asarray(dataset.timestamps), dataset.offsets[:-1], dataset.offsets[1:]
    places = [
        len(times) - max(1, round(share * len(times)))
        for share in (config.test_share + config.valid_share, config.test_share)
    ]
    # An event on the cut-off belongs to the later period, and so do all that share its time.
    valid_cut, test_cut = np.partition(times, places)[places]

    def position_of(cut) -> np.ndarray:  # of each user's first event at or after the cut-off
        return starts + np.add.reduceat(times < cut, starts, dtype=np.int64)

    train_stop, valid_stop = position_of(valid_cut), position_of(test_cut)
    valid = np.flatnonzero((train_stop > starts) & (train_stop < valid_stop)).astype(np.int32)
    test = np.flatnonzero((valid_stop > starts) & (valid_stop < stops)).astype(np.int32)
    seen = np.zeros(dataset.num_items + 1, bool)
    seen[dataset.items[times < valid_cut]] = True
    unseen = int(np.count_nonzero(~seen[dataset.items[valid_stop[test]]]))
    return Split(
        train_stop=train_stop,
        valid_users=valid,
        valid_targets=train_stop[valid],
        test_users=test,
        test_targets=valid_stop[test],
        description=(
            f"temporal: events before {_date(valid_cut)} are trained on, from then the validation and from "
            f"{_date(test_cut)} the test period; the target of a user in a period is the first event in it, "
            f"the history all events before; users without history have no target ({len(valid)} validation "
            f"and {len(test)} test users of {dataset.num_users}; {unseen} test targets are items that no "
            "training event has)"
        ),
    )


def _date(seconds: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"time {int(seconds)}"
