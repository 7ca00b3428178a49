# SPDX-License-Identifier: Apache-2.0
"""An independent preparation in plain Python, and helpers to compare prepared folders."""

import collections
import dataclasses
import importlib.util
import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data import Dataset, load_dataset
from bert4rec_jax.data.sources.find import find_source
from bert4rec_jax.data.sources.log import RestartReading
from bert4rec_jax.errors import UserError

SPARK = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
        reason="PySpark or Java is not installed",
    ),
]


def data_and_filter(**options) -> tuple[DataConfig, FilterConfig]:
    """Sorts options into the two groups of the configuration that `load_dataset` takes."""
    names = {field.name for field in dataclasses.fields(FilterConfig)}
    filters = {name: value for name, value in options.items() if name in names}
    data = {name: value for name, value in options.items() if name not in names}
    return DataConfig(**data), FilterConfig(**filters)


def folder_bytes(path) -> dict[str, bytes]:
    """Returns the content of every file of a prepared folder."""
    return {name: open(os.path.join(path, name), "rb").read() for name in sorted(os.listdir(path))}


@dataclasses.dataclass
class Event:
    """One row of a log; the time is in whole seconds or microseconds, or a fraction of a second."""

    user: str
    item: str
    time: float | None = None
    rating: float = 0.0


def read_events(config: DataConfig, filters: FilterConfig) -> tuple[list[Event], int]:
    """Reads a log block by block; returns its events in file order, and the units of time per second."""
    reader = find_source(config, filters).open()
    while True:
        events = []
        unit = 1
        try:
            for table in reader.blocks():
                if "time" in table.column_names and pa.types.is_timestamp(table["time"].type):
                    unit = 1_000_000
                    place = table.column_names.index("time")
                    table = table.set_column(place, "time", pc.cast(table["time"], pa.int64()))
                events += [Event(**row) for row in table.to_pylist()]
            break
        except RestartReading:
            continue
    for event in events:
        event.user = event.user.strip()
        event.item = event.item.strip()
    return events, unit


def user_key(users):
    """Returns the sort key of users: numbers if all users are whole numbers of 64 bits, else text."""
    numeric = all(re.fullmatch(r"-?[0-9]+", user) for user in users)
    if numeric and all(-(2**63) <= int(user) < 2**63 for user in users):
        return lambda user: (int(user), user)
    return lambda user: user


def expected_histories(
    events: list[Event], filters: FilterConfig, unit: int = 1
) -> dict[str, list[tuple[str, int | None]]]:
    """Filters and orders events by the documented rules, one event at a time.

    Returns:
      {user: [(item, second)]}, in the order of a prepared folder; the seconds are None if the log
      lacks times.
    """
    key = user_key({event.user for event in events})
    by_user = collections.defaultdict(list)
    for event in events:
        by_user[event.user].append(event)
    known = [event.time for event in events if event.time is not None]
    times = {}
    for user, own in by_user.items():
        found = [event.time for event in own]
        for place, event in enumerate(own):
            before = [time for time in found[: place + 1] if time is not None]
            after = [time for time in found[place:] if time is not None]
            if known:
                times[id(event)] = before[-1] if before else after[0] if after else min(known)
        by_user[user] = sorted(own, key=lambda event: times.get(id(event), 0))
    kept = [event for user in sorted(by_user, key=key) for event in by_user[user]]
    if filters.min_rating > 0:
        kept = [e for e in kept if np.float32(e.rating) >= np.float32(filters.min_rating)]
    if filters.duplicate_events == "drop":
        first = {}
        for event in kept:
            first.setdefault((event.user, event.item), event)
        kept = list(first.values())
    while True:
        users = collections.Counter(event.user for event in kept)
        items = collections.Counter(event.item for event in kept)
        frequent = [
            event
            for event in kept
            if users[event.user] >= filters.user_core and items[event.item] >= filters.item_core
        ]
        if len(frequent) == len(kept):
            break
        kept = frequent
    users = list(dict.fromkeys(event.user for event in kept))
    first = filters.first_users
    users = users[:first] if first > 0 else users[first:] if first else users
    histories = {user: [] for user in users}
    for event in kept:
        if event.user in histories:
            second = int(times[id(event)] // unit) if known else None
            histories[event.user].append((event.item, second))
    return histories


def histories_of(dataset: Dataset) -> dict[str, list[tuple[str, int | None]]]:
    """Returns {user: [(item, second)]} of a prepared folder, in its order."""
    items = dataset.item_table()["item"].tolist()
    histories = {}
    for number, user in enumerate(dataset.user_table()["user"]):
        span = slice(dataset.offsets[number], dataset.offsets[number + 1])
        names = [items[item - 1] for item in dataset.items[span]]
        seconds = [None] * len(names)
        if dataset.timestamps is not None:
            seconds = dataset.timestamps[span].tolist()
        histories[user] = list(zip(names, seconds))
    return histories


def assert_as_documented(dataset: Dataset, events, filters, unit: int = 1) -> None:
    """Asserts that a folder contains the expected histories, and items by first appearance."""
    expected = expected_histories(events, filters, unit)
    assert list(histories_of(dataset).items()) == list(expected.items())
    by_appearance = list(dict.fromkeys(dataset.items.tolist()))
    assert by_appearance == list(range(1, dataset.num_items + 1))


def load_and_check(config: DataConfig, filters=FilterConfig()) -> Dataset | None:
    """Prepares a log and compares the result with the plain preparation.

    Asserts that only the prepared folder is left in the cache.

    Returns:
      The data, or None if the log was rejected in the words of its reader.
    """
    parent = os.path.join(config.cache_dir, "prepared")
    shutil.rmtree(config.cache_dir, ignore_errors=True)
    try:
        dataset = load_dataset(config, filters)
    except UserError as error:
        assert not os.path.exists(parent) or os.listdir(parent) == []
        try:
            events, unit = read_events(config, filters)
        except UserError as expected:
            assert str(error) == str(expected)
        else:
            assert not expected_histories(events, filters, unit)
            assert "leave no interactions" in str(error)
        return None
    assert os.listdir(parent) == [os.path.basename(dataset.folder)]
    events, unit = read_events(config, filters)
    assert_as_documented(dataset, events, filters, unit)
    return dataset
