# SPDX-License-Identifier: Apache-2.0
"""Splits against their definition, user by user."""

import dataclasses

import numpy as np
import pytest

from bert4rec_jax.config import DataConfig, SplitConfig
from bert4rec_jax.data import load_dataset, order_statistics, split_dataset
from bert4rec_jax.errors import UserError


def dataset_of(tmp_path, rows, header="user,item,timestamp"):
    path = tmp_path / "log.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))
    time_column = "timestamp" if "timestamp" in header else ""
    config = DataConfig(
        source="table",
        path=str(path),
        time_column=time_column,
        cache_dir=str(tmp_path / "cache"),
    )
    return load_dataset(config)


def test_leave_one_out(tmp_path):
    lengths = {1: 5, 2: 2, 3: 3, 4: 1}
    rows = [(user, i, i) for user, length in lengths.items() for i in range(length)]
    split = split_dataset(dataset_of(tmp_path, rows))
    # Users with fewer than 3 events are trained on only.
    assert split.train_stop.tolist() == [5 - 2, 7, 10 - 2, 11]
    assert split.valid_users.tolist() == [0, 2]
    assert split.test_users.tolist() == [0, 2]
    assert split.valid_targets.tolist() == [3, 8]
    assert split.test_targets.tolist() == [4, 9]
    assert "2 users with fewer than 3 events" in split.description


@pytest.fixture
def forty_users(tmp_path):
    """40 users of 6 events, and one of 2 events."""
    rows = [(user, i, user + 50 * i) for user in range(40) for i in range(6)]
    return dataset_of(tmp_path, [*rows, (40, 0, 1), (40, 1, 2)])


@pytest.mark.parametrize("count", [5, 20, 0])
def test_leave_one_out_with_some_validation_users_trains_on_the_others(forty_users, count):
    split = split_dataset(forty_users, SplitConfig(valid_users=count))
    stops = forty_users.offsets[1:]
    users = np.arange(41)
    held_out = np.where(np.isin(users, split.valid_users), 2, users < 40)
    assert len(split.valid_users) == (count or 40)
    assert split.train_stop.tolist() == (stops - held_out).tolist()
    assert split.valid_targets.tolist() == (stops[split.valid_users] - 2).tolist()
    assert split.test_users.tolist() == list(range(40))
    assert split.test_targets.tolist() == (stops[:40] - 1).tolist()


def test_validation_users_are_the_first_of_one_shuffle(forty_users):
    five = split_dataset(forty_users, SplitConfig(valid_users=5))
    twenty = split_dataset(forty_users, SplitConfig(valid_users=20))
    assert set(five.valid_users) < set(twenty.valid_users)
    assert five.valid_users.tolist() != list(range(5))
    assert (
        "the second-last the validation target of 5 users drawn at random, trained on for the "
        "others"
    ) in five.description


def test_more_validation_users_than_users_are_all_users(forty_users):
    everyone = split_dataset(forty_users)
    assert "drawn" not in everyone.description
    forty = split_dataset(forty_users, SplitConfig(valid_users=40))
    assert forty.description == everyone.description


def test_temporal_with_some_validation_users(forty_users):
    config = SplitConfig(kind="temporal", test_share=0.2, valid_share=0.2)
    everyone = split_dataset(forty_users, config)
    some = split_dataset(forty_users, dataclasses.replace(config, valid_users=5))
    count = len(everyone.valid_users)
    assert len(some.valid_users) == 5
    assert set(some.valid_users) < set(everyone.valid_users)
    assert f"(5 validation of {count}, drawn at random, and " in some.description
    assert f"({count} validation and " in everyone.description
    targets = dict(zip(everyone.valid_users.tolist(), everyone.valid_targets.tolist()))
    assert [targets[user] for user in some.valid_users] == some.valid_targets.tolist()
    assert np.array_equal(some.train_stop, everyone.train_stop)
    assert np.array_equal(some.test_targets, everyone.test_targets)


def temporal_log():
    random = np.random.default_rng(0)
    rows = [
        (user, int(random.integers(30)), int(time))
        for user in range(40)
        for time in random.integers(0, 60, 12)
    ]
    rows += [(40, 1, 59), (40, 2, 60)]  # only new events
    rows += [(41, 3, 1)]  # only an old event
    rows += [(42, 99, 59)]  # one new event
    # Begins in the validation period: only the second event has an event before it.
    rows += [(43, 5, 48), (43, 6, 50)]
    rows += [(44, 1, 10), (44, 2, 58), (44, 98, 59)]  # item 98 is a test target only
    return rows


@pytest.mark.parametrize("period_target, place", [("first", 0), ("last", -1)])
def test_temporal(tmp_path, monkeypatch, period_target, place):
    monkeypatch.setattr(order_statistics, "_INTERVALS", 4)  # several passes per cut
    monkeypatch.setattr("bert4rec_jax.data.dataset._CACHE_FROM", 0)
    rows = temporal_log()
    data = dataset_of(tmp_path, rows)
    config = SplitConfig(
        kind="temporal", test_share=0.1, valid_share=0.2, period_target=period_target
    )
    # The cached result of the other choice must not be used for this one.
    other = "first" if period_target == "last" else "last"
    split_dataset(data, dataclasses.replace(config, period_target=other))
    split = split_dataset(data, config)
    newest = sorted(data.timestamps, reverse=True)
    test_cut = newest[round(0.1 * len(rows)) - 1]
    valid_cut = newest[round(0.3 * len(rows)) - 1]
    assert valid_cut <= 48 < 50 < test_cut
    expected = {"valid": {}, "test": {}}
    for user in range(data.num_users):
        start, stop = data.offsets[user : user + 2]
        times = data.timestamps[start:stop]
        assert split.train_stop[user] == start + np.count_nonzero(times < valid_cut)
        for part, begin, end in (("valid", valid_cut, test_cut), ("test", test_cut, 61)):
            inside = [i for i in range(start, stop) if begin <= data.timestamps[i] < end]
            if inside and inside[place] > start:
                expected[part][user] = inside[place]
    assert len(expected["valid"]) > 10
    assert len(expected["test"]) > 10
    assert dict(zip(split.valid_users.tolist(), split.valid_targets.tolist())) == expected["valid"]
    assert dict(zip(split.test_users.tolist(), split.test_targets.tolist())) == expected["test"]
    assert (43 in split.valid_users) == (period_target == "last")
    trained = set(data.items[np.asarray(data.timestamps) < valid_cut].tolist())
    unseen = sum(data.items[target] not in trained for target in expected["test"].values())
    assert f"{unseen} test targets are items that no training event has" in split.description
    assert f"the {period_target} event in it" in split.description


@pytest.mark.parametrize(
    "share, events",
    [(0.001, 1), (0.03, 3), (0.04, 4), (0.1, 9)],  # 0.09, 2.7, 3.6 and 9 of 90 events
)
def test_a_temporal_test_period_has_the_rounded_share_of_events(tmp_path, share, events):
    # Users 0 to 8 take turns, so that every period has users with a history. Each item has two
    # consecutive events.
    data = dataset_of(tmp_path, [(time % 9, 100 + time // 2, time) for time in range(90)])
    config = SplitConfig(kind="temporal", test_share=share, valid_share=0.1)
    split = split_dataset(data, config)
    assert len(split.test_users) == events
    assert f"{events} test targets are items that no training event has" in split.description


@pytest.mark.parametrize(
    "kind, events, header, message",
    [
        ("temporal", 5, "user,item", "needs timestamps, and log has none"),
        ("temporal", 5, "user,item,timestamp", "no training events"),  # all at the same time
        ("leave_one_out", 2, "user,item,timestamp", "no validation targets"),
    ],
)
def test_impossible_splits_are_rejected(tmp_path, kind, events, header, message):
    columns = 3 if "timestamp" in header else 2
    rows = [(user, item, 7)[:columns] for user in range(3) for item in range(events)]
    data = dataset_of(tmp_path, rows, header)
    with pytest.raises(UserError, match=message):
        split_dataset(data, SplitConfig(kind=kind))
