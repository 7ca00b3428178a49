# SPDX-License-Identifier: Apache-2.0
"""What several tests need: a small synthetic data set and the smallest useful configuration."""

import os

# Before JAX starts: unoptimised code compiles in half the time, and these models compute next to nothing.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import dataclasses
import itertools

import commands
import numpy as np
import pytest

import bert4rec_jax
from bert4rec_jax import config as config_lib


def small_config(tmp_path, **overrides):
    """Returns a resolved configuration of a tiny model on synthetic data; overrides as `model.width=8`."""
    config = config_lib.base()
    config.data.update(source="synthetic", cache_dir=str(tmp_path))
    config.data.synthetic.update(users=120, num_items=60, genres=4, mean_length=12)
    config.model.update(width=16, layers=2, heads=2, ffn_width=32, max_length=16, dropout=0.0, attention_dropout=0.0)
    config.train.update(steps=6, batch_rows=8, eval_every=3, checkpoint_every=3, log_every=2)
    config.eval.update(batch_rows=8)
    with config.unlocked():
        config.update_from_flattened_dict(overrides)
    return config_lib.resolve(config)


def with_repeats(experiment):
    """Returns the experiment with users who meet some items again, in their histories and as targets."""
    items, offsets = np.array(experiment.dataset.items), experiment.dataset.offsets
    for start, stop in itertools.pairwise(offsets):
        items[start + 2:stop:3] = items[start:stop - 2:3]
    experiment.dataset = dataclasses.replace(experiment.dataset, items=items)
    return experiment


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A data directory that all tests share, so that the synthetic log is made once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The small run of `commands.py`, finished without any disturbance: the folder that it and others share."""
    folder = tmp_path_factory.mktemp("runs")
    commands.succeed(commands.train_command(folder / "undisturbed"), folder)
    return folder


@pytest.fixture(scope="session")
def small_run(cache, tmp_path_factory):
    """The directory of a finished run of `small_config`; whoever changes it takes a copy."""
    folder = tmp_path_factory.mktemp("small") / "run"
    bert4rec_jax.train(small_config(cache), str(folder))
    return folder
