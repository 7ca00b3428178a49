# SPDX-License-Identifier: Apache-2.0
"""Filters and order against a plain reference; the prepared folder under reuse, damage, kill and concurrency."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import Event, assert_as_documented, expected_histories

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data import load_dataset, open_dataset
from bert4rec_jax.errors import UserError

ROWS = st.lists(
    st.tuples(
        st.integers(0, 12), st.integers(0, 8), st.integers(1, 5), st.none() | st.integers(0, 6)
    ),
    min_size=1,
    max_size=80,
)


@settings(max_examples=40, deadline=None)
@given(
    ROWS,
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 4),
    st.sampled_from(["keep", "drop"]),
    st.integers(-3, 3),
)
def test_filters_order_and_numbering_follow_the_reference(
    tmp_path_factory, rows, user_core, item_core, min_rating, repeats, first_users
):
    filters = FilterConfig(
        user_core=user_core,
        item_core=item_core,
        min_rating=float(min_rating),
        duplicate_events=repeats,
        first_users=first_users,
    )
    events = [Event(str(u), str(i), time, float(rating)) for u, i, rating, time in rows]
    folder = tmp_path_factory.mktemp("log")
    columns = list(zip(*rows))
    types = {"user": pa.int64(), "item": pa.int64(), "rating": pa.int64(), "timestamp": pa.int64()}
    arrays = {name: pa.array(c, kind) for (name, kind), c in zip(types.items(), columns)}
    pq.write_table(pa.table(arrays), folder / "log.parquet")
    config = DataConfig(
        source="table",
        path=str(folder / "log.parquet"),
        rating_column="rating",
        cache_dir=str(folder),
    )
    if not expected_histories(events, filters):
        with pytest.raises(UserError, match="leave no interactions"):
            load_dataset(config, filters)
        return
    assert_as_documented(load_dataset(config, filters), events, filters)


def test_far_apart_times_are_in_order(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(f"user,item,timestamp\n2,1,{2**61}\n1,1,5\n2,1,{-(2**61)}\n1,1,1\n")
    dataset = load_dataset(
        DataConfig(source="table", path=str(path), cache_dir=str(tmp_path / "cache"))
    )
    assert dataset.timestamps.tolist() == [1, 5, -(2**61), 2**61]


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
        "bert4rec_jax.data.engines.prepare", lambda *_: pytest.fail("prepared twice")
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
    from bert4rec_jax.data import load_dataset, writer
    from bert4rec_jax.data.engines import pipeline
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    if len(sys.argv) > 3:
        setattr(writer if hasattr(writer, sys.argv[3]) else pipeline, sys.argv[3], die)
    print(load_dataset(DataConfig(source="table", path=sys.argv[1], cache_dir=sys.argv[2])).fingerprint)
"""


def start(config, *kill):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), config.path, config.cache_dir, *kill]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )


@pytest.mark.parametrize(
    "moment", ["_item_table", "publish"]
)  # arrays written; everything written but the rename
def test_a_kill_leaves_nothing_that_passes_for_complete(config, moment):
    process = start(config, moment)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (left,) = prepared(config)
    assert left.startswith(".")
    dataset = load_dataset(config)
    assert dataset.num_users == 7 and os.path.basename(dataset.folder) in prepared(config)
    assert left not in prepared(config), "the second start continues there, and then removes it"


def test_stale_folders_of_killed_preparations_are_removed(config):
    parent = os.path.join(config.cache_dir, "prepared")
    ages = {".log-1": 2, ".log-2": 0, ".stages-duckdb-log-1": 20, ".stages-duckdb-log-2": 2}
    for name, days in ages.items():
        os.makedirs(os.path.join(parent, name))
        modified = time.time() - days * 86400
        os.utime(os.path.join(parent, name), (modified, modified))
    dataset = load_dataset(config)
    left = {".log-2", ".stages-duckdb-log-2", os.path.basename(dataset.folder)}
    assert set(prepared(config)) == left


def test_four_processes_at_once_agree(config):
    processes = [start(config) for _ in range(4)]
    answers = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert answers == {load_dataset(config).fingerprint} and len(prepared(config)) == 1


def test_a_full_disk_is_one_clear_error_and_leaves_only_finished_stages(config, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bert4rec_jax.data.writer._Array.write", full)
    with pytest.raises(UserError, match=r"No space left.*cache_dir"):
        load_dataset(config)
    assert all(name.startswith(".stages-") for name in prepared(config))


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
