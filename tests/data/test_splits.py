# SPDX-License-Identifier: Apache-2.0
"""Splits against their definition, user by user."""

import dataclasses

import numpy as np
import pytest

from bert4rec_jax.config import DataConfig, SplitConfig
from bert4rec_jax.data import load_dataset, order_statistics, split_dataset
from bert4rec_jax.errors import UserError


def dataset_of(tmp_path, rows, header="user,item,timestamp"):
    (tmp_path / "log.csv").write_text(
        "\n".join([header, *(",".join(map(str, row)) for row in rows)])
    )
    time = "timestamp" if "timestamp" in header else ""
    path = str(tmp_path / "log.csv")
    return load_dataset(
        DataConfig(source="table", path=path, time_column=time, cache_dir=str(tmp_path / "cache"))
    )


def test_leave_one_out(tmp_path):
    lengths = {1: 5, 2: 2, 3: 3, 4: 1}
    data = dataset_of(tmp_path, [(u, i, i) for u, n in lengths.items() for i in range(n)])
    split = split_dataset(data)
    assert split.train_stop.tolist() == [3, 7, 8, 11]  # 5 - 2 | all of 2 | 3 - 2 | all of 1
    assert split.valid_users.tolist() == split.test_users.tolist() == [0, 2]
    assert split.valid_targets.tolist() == [3, 8] and split.test_targets.tolist() == [4, 9]
    assert "2 users with fewer than 3 events" in split.description


def test_some_users_validate_and_under_leave_one_out_the_others_train_on_what_would_have_been_theirs(
    tmp_path,
):
    rows = [(u, i, u + 50 * i) for u in range(40) for i in range(6)] + [(40, 0, 1), (40, 1, 2)]
    data = dataset_of(tmp_path, rows)
    few, more, every = (split_dataset(data, SplitConfig(valid_users=count)) for count in (5, 20, 0))
    assert (
        len(few.valid_users) == 5 and len(more.valid_users) == 20 and len(every.valid_users) == 40
    )
    assert set(few.valid_users) < set(more.valid_users)  # the first of one shuffle
    assert few.valid_users.tolist() != every.valid_users[:5].tolist() == list(range(5))
    stops = data.offsets[1:]
    for split in (few, more, every):
        validates = np.isin(np.arange(41), split.valid_users)
        assert (
            split.train_stop.tolist()
            == (stops - np.where(validates, 2, np.arange(41) < 40)).tolist()
        )
        assert split.valid_targets.tolist() == (stops[split.valid_users] - 2).tolist()
        assert (
            split.test_users.tolist() == list(range(40))
            and split.test_targets.tolist() == (stops[:40] - 1).tolist()
        )
    assert (
        "the second-last the validation target of 5 users drawn at random, trained on for the others"
        in (few.description)
    )
    assert (
        "drawn" not in every.description
        and split_dataset(data, SplitConfig(valid_users=40)).description == every.description
    )
    by_time = SplitConfig(kind="temporal", test_share=0.2, valid_share=0.2)
    some = split_dataset(data, dataclasses.replace(by_time, valid_users=5))
    all_users = split_dataset(data, by_time)
    assert len(some.valid_users) == 5 and set(some.valid_users) < set(all_users.valid_users)
    assert (
        f"(5 validation of {len(all_users.valid_users)}, drawn at random, and " in some.description
    )
    assert f"({len(all_users.valid_users)} validation and " in all_users.description
    targets = dict(zip(all_users.valid_users.tolist(), all_users.valid_targets.tolist()))
    assert [targets[user] for user in some.valid_users] == some.valid_targets.tolist()
    assert np.array_equal(some.train_stop, all_users.train_stop)
    assert np.array_equal(some.test_targets, all_users.test_targets)


@pytest.mark.parametrize("which, place", [("first", 0), ("last", -1)])
def test_temporal(tmp_path, monkeypatch, which, place):
    monkeypatch.setattr(
        order_statistics, "_INTERVALS", 4
    )  # the times' order statistics take several passes
    monkeypatch.setattr("bert4rec_jax.data.dataset._CACHE_FROM", 0)
    random = np.random.default_rng(0)
    rows = [
        (u, int(random.integers(30)), int(t)) for u in range(40) for t in random.integers(0, 60, 12)
    ]
    rows += [
        (40, 1, 59),
        (40, 2, 60),
        (41, 3, 1),
        (42, 99, 59),
    ]  # only new, only old, one new event
    rows += [
        (43, 5, 48),
        (43, 6, 50),
    ]  # begins in the validation period: only the second event has one before it
    rows += [(44, 1, 10), (44, 2, 58), (44, 98, 59)]  # an item that only the last target is
    data = dataset_of(tmp_path, rows)
    config = SplitConfig(kind="temporal", test_share=0.1, valid_share=0.2, period_target=which)
    # What is kept of the other choice is not taken for this one.
    split_dataset(
        data, dataclasses.replace(config, period_target="first" if which == "last" else "last")
    )
    split = split_dataset(data, config)
    newest = sorted(data.timestamps, reverse=True)
    test_cut, valid_cut = newest[round(0.1 * len(rows)) - 1], newest[round(0.3 * len(rows)) - 1]
    expected = {"valid": {}, "test": {}}
    for u in range(data.num_users):
        a, b = data.offsets[u : u + 2]
        assert split.train_stop[u] == a + sum(t < valid_cut for t in data.timestamps[a:b])
        for part, start, stop in (("valid", valid_cut, test_cut), ("test", test_cut, 61)):
            inside = [i for i in range(a, b) if start <= data.timestamps[i] < stop]
            if inside and inside[place] > a:
                expected[part][u] = inside[place]
    assert dict(zip(split.valid_users.tolist(), split.valid_targets.tolist())) == expected["valid"]
    assert dict(zip(split.test_users.tolist(), split.test_targets.tolist())) == expected["test"]
    assert len(expected["valid"]) > 10 and len(expected["test"]) > 10
    assert valid_cut <= 48 < 50 < test_cut and (43 in split.valid_users) == (which == "last")
    trained = {item for item, time in zip(data.items.tolist(), data.timestamps) if time < valid_cut}
    unseen = sum(data.items[target] not in trained for target in expected["test"].values())
    assert f"{unseen} test targets are items that no training event has" in split.description
    assert f"the {which} event in it" in split.description


def test_shares_of_a_temporal_split_are_rounded_and_never_empty(tmp_path):
    # Users 0 to 8 take turns, so that every period has users with a history. Every item comes twice, in a row.
    data = dataset_of(tmp_path, [(t % 9, 100 + t // 2, t) for t in range(90)])
    for share, events in ((0.001, 1), (0.03, 3), (0.04, 4), (0.1, 9)):  # 0.09, 2.7, 3.6 and 9 of 90
        split = split_dataset(data, SplitConfig(kind="temporal", test_share=share, valid_share=0.1))
        assert len(split.test_users) == events, share
        assert f"{events} test targets are items that no training event has" in split.description


def test_splits_that_cannot_be_made(tmp_path):
    temporal = SplitConfig(kind="temporal")
    untimed = dataset_of(tmp_path, [(u, i) for u in range(3) for i in range(5)], "user,item")
    with pytest.raises(UserError, match="needs timestamps, and log has none"):
        split_dataset(untimed, temporal)
    same = dataset_of(tmp_path, [(u, i, 7) for u in range(3) for i in range(5)])
    with pytest.raises(UserError, match="no training events"):
        split_dataset(same, temporal)
    short = dataset_of(tmp_path, [(u, i, 7) for u in range(3) for i in range(2)])
    with pytest.raises(UserError, match="no validation targets"):
        split_dataset(short)
