# SPDX-License-Identifier: Apache-2.0
"""Fixtures of several tests: a small synthetic data set and the smallest useful configuration."""

import atexit
import os
import shutil
import signal
import tempfile

# Set before JAX starts: unoptimised code compiles in half the time, and these models are tiny.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# All test processes share one compilation cache. JAX does not write its files atomically; it
# notices an incomplete file when it reads it, and compiles the program again.
os.environ.update(
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="0"
)
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Under nohup or after `&` in a shell, these signals are ignored, also in the processes of tests.
for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)
# The workers share the cores. XLA and the libraries of NumPy would start a thread for every core.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
for _name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(
        _name, str(max(1, CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
    )

import dataclasses
import fcntl
import itertools

import commands
import numpy as np
import pytest

import bert4rec_jax
from bert4rec_jax import config as config_lib


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Returns the number of workers of `-n auto`: the cores that this process may use."""
    return min(CORES, 4)


def pytest_collection_modifyitems(items):
    """Gives slow tests an hour instead of the minutes in `pyproject.toml`."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


def small_config(tmp_path, **overrides):
    """Returns the configuration of a tiny model; overrides are like `model.width=8`."""
    config = config_lib.base()
    config.data.update(source="synthetic", cache_dir=str(tmp_path))
    config.data.synthetic.update(users=120, num_items=60, genres=4, mean_length=12)
    config.model.update(
        width=16, layers=2, heads=2, ffn_width=32, max_length=16, dropout=0.0, attention_dropout=0.0
    )
    config.train.update(steps=6, batch_rows=8, eval_every=3, checkpoint_every=3, log_every=2)
    config.eval.update(batch_rows=8)
    with config.unlocked():
        config.update_from_flattened_dict(overrides)
    return config_lib.resolve(config)


def with_repeats(experiment):
    """Returns the experiment with repeated items in histories and as targets."""
    items, offsets = np.array(experiment.dataset.items), experiment.dataset.offsets
    for start, stop in itertools.pairwise(offsets):
        items[start + 2 : stop : 3] = items[start : stop - 2 : 3]
    experiment.dataset = dataclasses.replace(experiment.dataset, items=items)
    return experiment


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A data directory that all tests share, so that the synthetic log is generated once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A function (name, make) that returns a folder on which one worker has called make."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def once(name: str, make):
        folder = shared / name
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                making = shared / f"{name}.making"
                shutil.rmtree(making, ignore_errors=True)
                making.mkdir()
                make(making)
                making.rename(folder)
        return folder

    return once


@pytest.fixture(autouse=True)
def nothing_left_running():
    """Ends the processes that a test started and did not wait for, for example when it failed."""
    yield
    commands.end_all()


@pytest.fixture(scope="session")
def undisturbed(made_once):
    """The folder that contains `undisturbed`, the finished small run of `commands.py`."""
    return made_once(
        "runs",
        lambda folder: commands.succeed(commands.train_command(folder / "undisturbed"), folder),
    )


@pytest.fixture(scope="session")
def small_run(cache, tmp_path_factory):
    """The directory of a finished run of `small_config`; tests that change it use a copy."""
    folder = tmp_path_factory.mktemp("small") / "run"
    bert4rec_jax.train(small_config(cache), str(folder))
    return folder
