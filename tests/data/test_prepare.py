# SPDX-License-Identifier: Apache-2.0
"""Filters and order against a plain reference; the prepared folder under reuse, damage, kill and concurrency."""

import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data import load_dataset, open_dataset
from bert4rec_jax.data.arrange import arrange
from bert4rec_jax.data.sources.log import Ids, Log
from bert4rec_jax.errors import UserError


def reference(rows, config):
    """The same rules as `arrange`, one row at a time; rows are (user, item, rating, time or None)."""
    known = [t for *_, t in rows if t is not None]
    if known:
        for user in {row[0] for row in rows}:
            mine = [i for i, row in enumerate(rows) if row[0] == user]
            times = [rows[i][3] for i in mine]
            for place, i in enumerate(mine):
                earlier = [t for t in times[: place + 1] if t is not None]
                later = [t for t in times[place:] if t is not None]
                time = earlier[-1] if earlier else later[0] if later else min(known)
                rows[i] = (*rows[i][:3], time)
    rows = [row for row in rows if row[2] >= config.min_rating]
    rows = sorted(rows, key=lambda row: (row[0], row[3] if known else 0))
    if config.duplicate_events == "drop":
        met = set()
        rows = [row for row in rows if row[:2] not in met and not met.add(row[:2])]
    while True:
        users = collections.Counter(row[0] for row in rows)
        items = collections.Counter(row[1] for row in rows)
        kept = [
            r for r in rows if users[r[0]] >= config.user_core and items[r[1]] >= config.item_core
        ]
        if len(kept) == len(rows):
            break
        rows = kept
    users = list(dict.fromkeys(row[0] for row in rows))
    n = config.first_users
    users = users[:n] if n > 0 else users[n:] if n else users
    return {str(u): [(str(r[1]), r[3]) for r in rows if r[0] == u] for u in users}


ROWS = st.lists(
    st.tuples(
        st.integers(0, 12), st.integers(0, 8), st.integers(1, 5), st.none() | st.integers(0, 6)
    ),
    min_size=1,
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(
    ROWS,
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 4),
    st.sampled_from(["keep", "drop"]),
    st.integers(-3, 3),
)
def test_filters_order_and_numbering_follow_the_reference(
    rows, user_core, item_core, min_rating, repeats, first_users
):
    config = FilterConfig(
        user_core=user_core,
        item_core=item_core,
        min_rating=float(min_rating),
        duplicate_events=repeats,
        first_users=first_users,
    )
    users, items, ratings, times = (list(column) for column in zip(*rows))
    encoded = [pa.array(map(str, column)).dictionary_encode() for column in (users, items)]
    missing = np.array([t is None for t in times])
    log = Log(
        *(Ids(e.indices.to_numpy(), e.dictionary) for e in encoded),
        times=None if missing.all() else np.array([t or 0 for t in times]),
        times_missing=missing if missing.any() and not missing.all() else None,
        ratings=np.array(ratings, np.float32),
    )
    expected = reference(list(rows), config)
    if not expected:
        with pytest.raises(UserError, match="leave no interactions"):
            arrange(log, config)
        return
    result = arrange(log, config)
    ids = result.item_ids.to_pylist()
    found = {}
    for u, user in enumerate(result.user_ids.to_pylist()):
        span = slice(result.offsets[u], result.offsets[u + 1])
        stamps = [None] * 99 if result.timestamps is None else result.timestamps[span].tolist()
        found[user] = [(ids[i - 1], t) for i, t in zip(result.items[span], stamps)]
    assert list(found.items()) == list(expected.items())
    assert list(dict.fromkeys(result.items.tolist())) == list(
        range(1, len(ids) + 1)
    )  # by first appearance


def test_far_apart_times_do_not_overflow_the_sort_key():
    ids = Ids(np.array([1, 0, 1, 0], np.int32), pa.array(["1", "2"]))
    log = Log(ids, ids, times=np.array([2**62, 5, -(2**62), 1]))
    assert arrange(log, FilterConfig()).timestamps.tolist() == [1, 5, -(2**62), 2**62]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "log.csv").write_text(
        "user,item,timestamp\n" + "".join(f"{i % 7},{i % 11},{i}\n" for i in range(100))
    )
    return DataConfig(
        source="table", path=str(tmp_path / "log.csv"), cache_dir=str(tmp_path / "cache")
    )


def prepared(config):
    return os.listdir(os.path.join(config.cache_dir, "prepared"))


def test_prepared_once_and_again_when_source_or_options_change(config, monkeypatch):
    first = load_dataset(config)
    monkeypatch.setattr(
        "bert4rec_jax.data.prepare._write", lambda *_: pytest.fail("prepared twice")
    )
    again = load_dataset(config)
    assert again.folder == first.folder and again.fingerprint == first.fingerprint
    assert isinstance(again.items, np.memmap)
    assert again.statistics()["interactions"] == 100 and again.statistics()["max_length"] == 15
    monkeypatch.undo()
    other = load_dataset(config, FilterConfig(first_users=2))
    assert (
        other.folder != first.folder
        and other.num_users == 2
        and other.fingerprint != first.fingerprint
    )
    with open(config.path, "a") as file:
        file.write("0,99,100\n")
    assert load_dataset(config).num_items == first.num_items + 1


def test_same_content_has_the_same_fingerprint_wherever_it_is(config, tmp_path):
    elsewhere = tmp_path / "elsewhere.tsv"
    elsewhere.write_text(pathlib.Path(config.path).read_text().replace(",", "\t"))
    moved = DataConfig(
        **{**vars(config), "path": str(elsewhere), "cache_dir": str(tmp_path / "other")}
    )
    assert load_dataset(moved).fingerprint == load_dataset(config).fingerprint


@pytest.mark.parametrize(
    "name", ["items.npy", "offsets.npy", "timestamps.npy", "items.parquet", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_a_damaged_folder_is_refused_by_name_and_prepared_again(config, name, damage):
    sound = load_dataset(config)
    path = os.path.join(sound.folder, name)
    if damage == "delete":
        os.remove(path)
    else:
        os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(UserError, match="delete it"):
        open_dataset(sound.folder)
    again = load_dataset(config)
    assert again.fingerprint == sound.fingerprint and again.folder == sound.folder
    assert len(again.item_table()) == 11 and prepared(config) == [os.path.basename(sound.folder)]


SCRIPT = """
    import os, signal, sys
    from bert4rec_jax.config import DataConfig, FilterConfig
    from bert4rec_jax.data import load_dataset, prepare, writer
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    if len(sys.argv) > 3:
        setattr(writer if hasattr(writer, sys.argv[3]) else prepare, sys.argv[3], die)
    print(load_dataset(DataConfig(source="table", path=sys.argv[1], cache_dir=sys.argv[2])).fingerprint)
"""


def start(config, *kill):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), config.path, config.cache_dir, *kill]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )


@pytest.mark.parametrize(
    "moment", ["_item_table", "_publish"]
)  # arrays written; everything written but the rename
def test_a_kill_leaves_nothing_that_passes_for_complete(config, moment):
    process = start(config, moment)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (left,) = prepared(config)
    assert left.startswith(".")
    dataset = load_dataset(config)
    assert dataset.num_users == 7 and os.path.basename(dataset.folder) in prepared(config)
    # What the killed process left goes once no running one can own it.
    os.utime(os.path.join(config.cache_dir, "prepared", left), (0, 0))
    shutil.rmtree(dataset.folder)
    load_dataset(config)
    assert left not in prepared(config)


def test_four_processes_at_once_agree(config):
    processes = [start(config) for _ in range(4)]
    answers = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert answers == {load_dataset(config).fingerprint} and len(prepared(config)) == 1


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(config, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bert4rec_jax.data.writer._Array.write", full)
    with pytest.raises(UserError, match=r"No space left.*cache_dir"):
        load_dataset(config)
    assert prepared(config) == []


def test_an_unwritable_cache_is_one_clear_error(config, tmp_path):
    with pytest.raises(UserError, match=r"cannot write to .*log.csv.*cache_dir"):
        load_dataset(
            DataConfig(**{**vars(config), "cache_dir": str(tmp_path / "log.csv" / "cache")})
        )


def test_the_cache_may_be_named_in_the_environment(config, tmp_path, monkeypatch):
    monkeypatch.setenv("BERT4REC_DATA", str(tmp_path / "from_environment"))
    dataset = load_dataset(DataConfig(**{**vars(config), "cache_dir": ""}))
    assert dataset.folder.startswith(str(tmp_path / "from_environment"))
    manifest = json.loads(
        (tmp_path / "from_environment/prepared" / dataset.folder / "manifest.json").read_text()
    )
    assert manifest["order"].startswith("timestamp, ties in file order")
