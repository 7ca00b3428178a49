# SPDX-License-Identifier: Apache-2.0
"""The changes in docs/extend.md apply to the current code and have the described effects."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import SMALL, environment
from pages import ROOT, apply, blocks

from bert4rec_jax.config import load, resolve
from bert4rec_jax.data.prepare import load_dataset

PAGE = "docs/extend.md"
CHECK = """
import jax.numpy as jnp
import numpy as np
from bert4rec_jax.model import losses
from bert4rec_jax.model.encoder import sinusoids
from bert4rec_jax.ranking.metrics import per_user

rng = np.random.default_rng(0)
target = rng.normal(size=5).astype("float32")
negative = rng.normal(size=(5, 3)).astype("float32")
expected = np.log1p(np.exp(negative - target[:, None])).mean(axis=1)
np.testing.assert_allclose(losses.bpr(jnp.asarray(target), jnp.asarray(negative)), expected, rtol=1e-5)
assert sinusoids(7, 5).shape == (7, 5) and len(np.unique(np.asarray(sinusoids(7, 4)), axis=0)) == 7
np.testing.assert_allclose(per_user("rbp", np.array([1, 2, 11])), [0.1, 0.09, 0.1 * 0.9 ** 10])
"""
TASK = """
import jax, numpy as np
from bert4rec_jax.config import MaskingConfig
from bert4rec_jax.data import Packed
from bert4rec_jax.model import mask_items
row = Packed(*(np.array([x], np.int32) for x in ([1, 2, 3, 4, 5, 6, 0], [1, 1, 1, 1, 2, 2, 0], [0, 1, 2, 3, 0, 1, 0],
                                                 [3, 2, 1, 0, 1, 0, 0])))
task = mask_items(MaskingConfig(probability=0.5, newest=True), row, 4, 9, jax.random.key(0), np.arange(1))
assert sorted(np.asarray(task.labels)[np.asarray(task.weights) > 0].tolist()) == [3, 4, 6], task
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the package with every change of the page."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("bert4rec_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    changes = [block.text for block in blocks(PAGE) if block.kind == "diff"]
    assert len(changes) == 5
    for change in changes:
        apply(change, folder)
    return folder


def run(command, folder, cache):
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(cache, PYTHONPATH=str(folder)),
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_loss_positions_task_and_metric_are_correct(extended, cache):
    run([sys.executable, "-c", CHECK + TASK], extended, cache)


@pytest.mark.slow
def test_extended_package_trains(extended, cache):
    fields = SMALL | {
        "train.steps": 60,
        "train.eval_every": 30,
        "train.checkpoint_every": 30,
        "loss.name": "bpr",
        "loss.negatives": 16,
        "model.positions": "sinusoidal",
        "masking.newest": True,
        "eval.metric": "rbp",
    }
    run(
        [
            sys.executable,
            "-m",
            "bert4rec_jax.main",
            "--config",
            "synthetic",
            "--workdir",
            "run",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        extended,
        cache,
    )
    results = json.loads((extended / "run" / "results.json").read_text())
    assert results["baselines"]["popular_users"]["test"]["rbp"] > 0 and results["test"]["rbp"] > 0
    train = [
        json.loads(line) for line in (extended / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["loss"] for line in train if line["split"] == "train"]
    assert np.mean(losses[-2:]) < losses[0]


def test_json_lines_are_a_source(tmp_path, monkeypatch):
    code = next(block.text for block in blocks(PAGE) if block.caption == "json_lines.py")
    (tmp_path / "json_lines.py").write_text(code)
    events = [
        {"who": who, "what": what, "at": at} for who in "abcd" for at, what in enumerate("xyzw")
    ]
    (tmp_path / "events.jsonl").write_text(
        "".join(json.dumps(event) + "\n" for event in reversed(events))
    )
    monkeypatch.chdir(tmp_path)
    config = load("json_lines.py")
    config.data.cache_dir = str(tmp_path / "cache")
    dataset = load_dataset(resolve(config).data, resolve(config).filter)
    names = dataset.item_table()["item"]
    assert [names.loc[n] for n in dataset.items[:4]] == list("xyzw")
