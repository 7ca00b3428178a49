# SPDX-License-Identifier: Apache-2.0
"""Extending a prepared folder by a new day gives the same bytes as preparing from scratch."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from prepared import data_and_filter, folder_bytes

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data import load_dataset, ranges
from bert4rec_jax.data.engines import incremental
from bert4rec_jax.errors import UserError


def day(number, rows=300, users=40):
    random = np.random.default_rng(number)
    return pd.DataFrame(
        {
            "user": random.integers(0, users + 5 * number, rows),
            "item": random.integers(0, 30 + 9 * number, rows),
            "timestamp": random.integers(0, 20, rows) + 10 * number,
        }
    )  # days overlap, with ties


def write(folder, number, change=lambda frame: frame, form="parquet"):
    folder.mkdir(exist_ok=True)
    frame = change(day(number))
    if form == "parquet":
        frame.to_parquet(folder / f"day-{number}.parquet")
    else:
        frame.to_csv(folder / f"day-{number}.csv.gz", index=False)


def as_texts(frame):
    return frame.assign(user="u" + frame["user"].astype(str), item="i" + frame["item"].astype(str))


@pytest.mark.parametrize("repeats", ["keep", "drop"])
@pytest.mark.parametrize("form", ["parquet", "csv"])
@pytest.mark.parametrize("change", [lambda frame: frame, as_texts])
def test_a_new_day(tmp_path, monkeypatch, repeats, form, change):
    monkeypatch.setattr(ranges, "EVENTS_PER_BLOCK", 50)
    items = tmp_path / "items.csv"
    items.write_text("item,title\n3,Three\ni4,Four\n")
    config = DataConfig(
        source="table",
        path=str(tmp_path / "log"),
        cache_dir=str(tmp_path / "cache"),
        items_path=str(items),
    )
    filters = FilterConfig(duplicate_events=repeats)
    added = []
    monkeypatch.setattr(
        incremental,
        "_merge",
        lambda *args, merge=incremental._merge: added.append(1) or merge(*args),
    )
    for number in range(2):
        write(tmp_path / "log", number, change, form)
    load_dataset(config, filters)
    for number in range(2, 4):
        write(tmp_path / "log", number, change, form)
        grown = load_dataset(config, filters)
    assert len(added) == 2
    elsewhere = dataclasses.replace(config, cache_dir=str(tmp_path / "fresh"))
    fresh = load_dataset(elsewhere, filters)
    assert (
        len(added) == 2 and grown.manifest["interactions"] == fresh.manifest["interactions"] > 500
    )
    assert folder_bytes(grown.folder) == folder_bytes(fresh.folder)


@pytest.mark.parametrize(
    ("options", "change", "reason"),
    [
        (
            {"item_core": 2},
            lambda frame: frame,
            "config.filter.item_core left out events that may count again",
        ),
        (
            {"user_core": 8, "item_core": 2},
            lambda frame: frame,
            "config.filter.user_core and config.filter.item_core left out",
        ),
        (
            {"min_rating": 1.0, "rating_column": "item"},
            lambda frame: frame,
            "config.filter.min_rating left out",
        ),
        ({"first_users": 1}, lambda frame: frame, "config.filter.first_users left out"),
        (
            {},
            lambda frame: frame.assign(timestamp=frame["timestamp"] + 0.5),
            "some of the new times have fractions",
        ),
        (
            {},
            lambda frame: frame.assign(
                timestamp=frame["timestamp"].astype("Int64").mask(frame["user"] == 3)
            ),
            "some of the new events lack a time",
        ),
        ({}, as_texts, "some user ids are numbers and others are text"),
    ],
)
def test_what_cannot_be_added_starts_over_and_says_why(
    tmp_path, monkeypatch, capsys, options, change, reason
):
    monkeypatch.setattr(incremental, "_merge", lambda *_: pytest.fail("these cannot be merged"))
    config, filters = data_and_filter(
        source="table", path=str(tmp_path / "log"), cache_dir=str(tmp_path / "cache"), **options
    )
    texts = change is as_texts
    first = (
        (lambda frame: frame.astype({"user": str, "item": str})) if texts else (lambda frame: frame)
    )
    for number in range(2):
        write(tmp_path / "log", number, first)
    load_dataset(config, filters)
    assert "prepared from scratch" not in capsys.readouterr().err
    write(tmp_path / "log", 2, change)
    grown = load_dataset(config, filters)
    (line,) = (
        line for line in capsys.readouterr().err.splitlines() if "prepared from scratch" in line
    )
    assert reason in line
    elsewhere = dataclasses.replace(config, cache_dir=str(tmp_path / "fresh"))
    fresh = load_dataset(elsewhere, filters)
    assert folder_bytes(grown.folder) == folder_bytes(fresh.folder)


@pytest.mark.parametrize("form", ["parquet", "csv"])
@pytest.mark.parametrize("dates_first", [False, True])
def test_times_of_another_kind_are_refused_as_in_a_fresh_preparation(tmp_path, form, dates_first):
    config = DataConfig(
        source="table", path=str(tmp_path / "log"), cache_dir=str(tmp_path / "cache")
    )
    kinds = [
        lambda frame: frame,
        lambda frame: frame.assign(timestamp=pd.to_datetime(frame["timestamp"], unit="D")),
    ]
    for number in range(2):
        write(tmp_path / "log", number, kinds[dates_first], form)
    load_dataset(config)
    write(tmp_path / "log", 2, kinds[not dates_first], form)
    said = []
    for cache in ("cache", "fresh"):
        with pytest.raises(UserError) as caught:
            load_dataset(DataConfig(**{**vars(config), "cache_dir": str(tmp_path / cache)}))
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_part_in_between_starts_over(tmp_path, monkeypatch):
    monkeypatch.setattr(incremental, "_merge", lambda *_: pytest.fail("these cannot be merged"))
    config = DataConfig(
        source="table", path=str(tmp_path / "log"), cache_dir=str(tmp_path / "cache")
    )
    for number in (0, 1, 3):
        write(tmp_path / "log", number)
    load_dataset(config)
    write(tmp_path / "log", 2)
    assert load_dataset(config).manifest["interactions"] == 1200
