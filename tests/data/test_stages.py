# SPDX-License-Identifier: Apache-2.0
"""Preparation under kills, full disks, little memory, Ctrl-C and a second process."""

import fcntl
import glob
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import SPARK, data_and_filter, folder_bytes

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data import load_dataset
from bert4rec_jax.data.engines import duckdb_engine, stage_cache
from bert4rec_jax.data.engines.memory import memory_limit
from bert4rec_jax.errors import Stopped, UserError

# Forks, as Python and its libraries take seconds to start: a child is killed in stage after stage.
SCRIPT = """
    import os, signal, sys
    from bert4rec_jax.config import DataConfig, FilterConfig
    from bert4rec_jax.data import load_dataset
    from bert4rec_jax.data.engines import pipeline, stage_cache

    config = DataConfig(source="table", path=sys.argv[1], rating_column="rating", engine="duckdb",
                        cache_dir=sys.argv[2])
    filters = FilterConfig(min_rating=1.0, duplicate_events="drop", user_core=3, item_core=2, first_users=-20)
    if sys.argv[1].endswith(".csv"):  # the last stages of long logs
        pipeline._LONG_ROWS, pipeline._RANGE_ROWS = 0, 300
    made, behind = [], False
    stage, finish = stage_cache.StageCache.stage, pipeline.Writer.finish

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def stage_or_die(self, name, make):
        def make_or_die(path):
            if not behind:
                open(path, "w").write("half of it")
                die()
            make(path)
            made.append(name)
        path = stage(self, name, make_or_die)
        if made:
            die()
        return path

    def finish_or_die(*arguments):
        if not os.path.exists(sys.argv[2] + "/finishing"):
            open(sys.argv[2] + "/finishing", "w").close()
            die()
        finish(*arguments)

    stage_cache.StageCache.stage, pipeline.Writer.finish = stage_or_die, finish_or_die
    for kills in range(100):
        behind = kills % 2 == 1  # in the middle of a stage, then right behind it
        child = os.fork()
        if child == 0:
            load_dataset(config, filters)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            break
    print(kills, os.WEXITSTATUS(status))
"""


def write_log(path, rows=2000):
    random = np.random.default_rng(0)
    times = pa.array(random.integers(0, 500, rows), mask=random.random(rows) < 0.1)
    columns = {
        "user": random.integers(0, 80, rows),
        "item": random.integers(0, 60, rows),
        "timestamp": times,
        "rating": random.integers(1, 6, rows),
    }
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_kill_in_any_stage_goes_on_with_that_stage(tmp_path, form):
    path = tmp_path / f"log.{form}"
    write_log(tmp_path / "log.parquet")
    if (
        form == "csv"
    ):  # whose ids are text: it is read by us first, and its items are numbered by a table
        frame = pd.read_parquet(tmp_path / "log.parquet", dtype_backend="numpy_nullable")
        frame.assign(
            user="u" + frame["user"].astype(str), item="i" + frame["item"].astype(str)
        ).to_csv(path, index=False)
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path), str(tmp_path / "killed")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert done.returncode == 0, done.stderr
    # Each child got one stage further at most, so the last one found all the stages before.
    kills, status = map(int, done.stdout.split())
    assert (15 if form == "parquet" else 21) < kills < 99 and status == 0
    (name,) = os.listdir(tmp_path / "killed/prepared")
    config, filters = data_and_filter(
        source="table",
        path=str(path),
        rating_column="rating",
        min_rating=1.0,
        duplicate_events="drop",
        user_core=3,
        item_core=2,
        first_users=-20,
        cache_dir=str(tmp_path / "whole"),
    )
    assert folder_bytes(tmp_path / "killed/prepared" / name) == folder_bytes(
        load_dataset(config, filters).folder
    )


SPARK_SCRIPT = """
    import sys
    from bert4rec_jax.config import DataConfig, FilterConfig
    from bert4rec_jax.data import load_dataset
    from bert4rec_jax.errors import UserError

    try:
        load_dataset(DataConfig(source="table", path=sys.argv[1], engine="spark", memory="1GiB", cache_dir=sys.argv[2]),
                     FilterConfig(duplicate_events="drop", user_core=3, item_core=2))
    except UserError as error:
        sys.exit(str(error))
"""


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=SPARK) for n in (signal.SIGKILL, signal.SIGINT)]
)
def test_spark_goes_on_after_a_signal_too(tmp_path, number):
    write_log(tmp_path / "log.parquet")
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(SPARK_SCRIPT),
        str(tmp_path / "log.parquet"),
        str(tmp_path / "c"),
    ]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    stopped, begun = 0, []
    for _ in range(20):
        child = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        # Until it has a stage more than the one before.
        while child.poll() is None and len(
            stages := glob.glob(f"{tmp_path}/c/prepared/.stages-*/*.parquet")
        ) <= len(begun):
            time.sleep(0.05)
        if child.poll() is not None:
            break
        begun, stopped = stages, stopped + 1
        os.killpg(child.pid, number) if number == signal.SIGKILL else child.send_signal(number)
        said = child.communicate(timeout=300)[1]
        if child.returncode == 0:  # it finished before the signal arrived
            break
        assert number == signal.SIGKILL or "SIGINT: preparation has stopped" in said
        # Sizes are deleted once the stage that needed them is finished.
        kept = {stage for stage in begun if not os.path.basename(stage).startswith("size_")}
        # It may have finished more before it heard: the next one is not to be stopped while Python itself begins.
        begun = glob.glob(f"{tmp_path}/c/prepared/.stages-*/*.parquet")
        assert kept <= set(begun)
    assert child.wait() == 0 and stopped >= 2
    (name,) = os.listdir(tmp_path / "c/prepared")
    whole = load_dataset(
        *data_and_filter(
            source="table",
            path=str(tmp_path / "log.parquet"),
            duplicate_events="drop",
            user_core=3,
            item_core=2,
            cache_dir=str(tmp_path / "whole"),
        )
    )
    assert folder_bytes(tmp_path / "c/prepared" / name) == folder_bytes(whole.folder)


@pytest.fixture
def many(tmp_path):
    """A log that does not fit into the least memory that may be set."""
    random = np.random.default_rng(0)
    rows = 6_000_000
    columns = {
        "user": random.integers(0, 10_000, rows),
        "item": random.integers(0, 1000, rows),
        "timestamp": random.integers(0, 1 << 40, rows),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    return DataConfig(
        source="table",
        path=str(tmp_path / "log.parquet"),
        engine="duckdb",
        memory="220MiB",
        cache_dir=str(tmp_path / "cache"),
        spill_dir=str(tmp_path / "spill"),
    )


def test_a_full_spill_disk_is_one_clear_error_and_a_second_start_goes_on(many, monkeypatch):
    connect = duckdb_engine.DuckDB.__init__

    def small_disk(self, memory, spill):
        connect(self, memory, spill)
        self._connection.execute("SET max_temp_directory_size = '5MiB'")

    monkeypatch.setattr(duckdb_engine.DuckDB, "__init__", small_disk)
    with pytest.raises(
        UserError,
        match=r"the disk of .*spill.* is full; free space there, or set config.data.spill_dir",
    ):
        load_dataset(many)
    (left,) = os.listdir(many.spill_dir)
    assert (
        left.startswith(stage_cache.STAGE_PREFIX)
        and os.listdir(os.path.join(many.cache_dir, "prepared")) == []
    )
    assert os.path.exists(os.path.join(many.spill_dir, left, "counts.json"))
    monkeypatch.undo()
    assert load_dataset(many).manifest["interactions"] == 6_000_000
    assert (
        os.listdir(many.spill_dir) == []
        and len(os.listdir(os.path.join(many.cache_dir, "prepared"))) == 1
    )


def test_a_full_disk_under_the_arrays_keeps_the_stages(tmp_path, monkeypatch):
    write_log(tmp_path / "log.parquet")
    config = DataConfig(
        source="table",
        path=str(tmp_path / "log.parquet"),
        engine="duckdb",
        cache_dir=str(tmp_path),
    )
    filters = FilterConfig(duplicate_events="drop")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bert4rec_jax.data.writer._Array.write", full)
    with pytest.raises(UserError, match=r"No space left.*cache_dir"):
        load_dataset(config, filters)
    monkeypatch.undo()
    (left,) = os.listdir(tmp_path / "prepared")
    assert os.path.exists(tmp_path / "prepared" / left / "first_events.parquet")
    load_dataset(config, filters)
    assert [name for name in os.listdir(tmp_path / "prepared") if name.startswith(".")] == []


def test_two_at_once_wait_for_each_other(tmp_path, capfd):
    write_log(tmp_path / "log.parquet")
    config = DataConfig(
        source="table", path=str(tmp_path / "log.parquet"), engine="duckdb", cache_dir=str(tmp_path)
    )
    load_dataset(config)
    (name,) = os.listdir(tmp_path / "prepared")
    os.rename(tmp_path / "prepared" / name, tmp_path / "aside")
    # The other one holds the lock, then publishes.
    folder = tmp_path / "prepared" / f"{stage_cache.STAGE_PREFIX}duckdb-{name}"
    with stage_cache.StageCache(str(folder)):
        second = threading.Thread(target=load_dataset, args=(config,))
        second.start()
        time.sleep(1)
        assert second.is_alive()
        os.rename(tmp_path / "aside", tmp_path / "prepared" / name)
    second.join(60)
    assert not second.is_alive() and os.listdir(tmp_path / "prepared") == [name]
    assert "another process prepares the same data; waiting for it" in capfd.readouterr().err


def test_a_lock_that_went_with_its_folder_locks_nothing(tmp_path):
    second = stage_cache.StageCache(str(tmp_path / "work"))
    with stage_cache.StageCache(str(tmp_path / "work")) as first:
        waiting = threading.Thread(target=second.__enter__)
        waiting.start()
        time.sleep(0.3)
        assert waiting.is_alive()
        first.remove()
    waiting.join(60)
    with open(second.path("lock")) as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second.__exit__(None, None, None)


def test_a_broken_item_table_does_not_cost_a_sort(tmp_path, monkeypatch):
    write_log(tmp_path / "log.parquet")
    (tmp_path / "items.csv").write_text("title\nOne\n")
    monkeypatch.setattr(
        "bert4rec_jax.data.engines.pipeline._Preparation._apply_filters",
        lambda *_: pytest.fail("too late"),
    )
    with pytest.raises(UserError, match="lacks the column 'item'"):
        load_dataset(
            DataConfig(
                source="table",
                path=str(tmp_path / "log.parquet"),
                cache_dir=str(tmp_path),
                items_path=str(tmp_path / "items.csv"),
                engine="duckdb",
            )
        )
    assert os.listdir(tmp_path / "prepared") == []


def test_ctrl_c_ends_a_preparation_at_once(many, monkeypatch):
    begun, run = [], duckdb_engine.DuckDB._run

    def noted(self, command, title):
        begun.append(title)
        if begun.count("sorting events") == 1 and title == "sorting events":
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return run(self, command, title)

    monkeypatch.setattr(duckdb_engine.DuckDB, "_run", noted)
    with pytest.raises(
        Stopped, match="SIGINT: preparation has stopped, and nothing half-made is left"
    ):
        load_dataset(many)
    assert os.listdir(os.path.join(many.cache_dir, "prepared")) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert begun[-1] == "sorting events", "it continued with the remaining stages"
    assert load_dataset(many).num_users == 10_000


def test_the_memory_limit_of_an_engine(monkeypatch):
    assert memory_limit(DataConfig(memory="1.5GiB")) == 3 << 29
    assert memory_limit(DataConfig(memory="2GB")) == 2 * 10**9
    with pytest.raises(UserError, match="is too small; set at least"):
        memory_limit(DataConfig(memory="10MiB"))
    for free, limit in ((8 << 30, 4 << 30), (1 << 20, 1 << 29), (None, 4 << 30)):
        monkeypatch.setattr(
            "bert4rec_jax.data.engines.memory.free_host_memory", lambda free=free: free
        )
        assert memory_limit(DataConfig()) == limit


def test_more_items_than_int32_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("bert4rec_jax.data.writer.MOST_ITEMS", 50)
    write_log(tmp_path / "log.parquet")
    config = DataConfig(source="table", path=str(tmp_path / "log.parquet"), cache_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"more than 50 items; raise config.filter.item_core"):
        load_dataset(config)
