# SPDX-License-Identifier: Apache-2.0
"""`--mode suggest`: the rules, the time estimate, and the command that it prints."""

import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from commands import ROOT, environment

from bert4rec_jax import config as config_lib
from bert4rec_jax.data.suggest import suggest


def suggested(users, items, length):
    dataset = SimpleNamespace(offsets=np.arange(users + 1) * length, num_items=items)
    return {s.field: s.value for s in suggest(dataset, users * (length - 2))}


@pytest.mark.parametrize(
    "users, items, length",
    [
        (3, 5, 3),
        (900, 1700, 100),
        (22_000, 12_000, 9),
        (6000, 3400, 170),
        (160_000, 60_000, 150),
        (10_000_000, 3_000_000, 50),
    ],
)
def test_suggestions_form_a_valid_config_with_forty_passes(users, items, length):
    values = config_lib.recommended()
    values.update_from_flattened_dict(suggested(users, items, length))
    config = config_lib.resolve(values)
    positions = config.train.steps * config.train.batch_rows * config.model.max_length
    passes = positions / (users * (length - 2))
    assert config.train.steps == 1000 or 38 < passes < 42
    assert config.model.max_length >= min(length, 200)
    assert config.train.eval_every * 12 <= config.train.steps


def test_dropout_decreases_with_events_per_item():
    dropouts = [suggested(1000, items, 50)["model.dropout"] for items in (10_000, 700, 400, 100)]
    assert dropouts == [0.5, 0.3, 0.2, 0.1]


def test_width_increases_with_events_and_items():
    by_events = [suggested(users, 1000, 100)["model.width"] for users in (1000, 100_000, 2_000_000)]
    assert by_events == [64, 128, 256]
    by_items = [suggested(1000, items, 100)["model.width"] for items in (9999, 10_000)]
    assert by_items == [64, 128]


def test_the_length_fits_most_histories():
    lengths = [suggested(1000, 1000, length)["model.max_length"] for length in (20, 90, 500)]
    assert lengths == [50, 100, 200]


def run_suggest(command, folder):
    return subprocess.run(
        command, cwd=ROOT, env=environment(folder), text=True, capture_output=True, check=True
    ).stdout


def test_the_printed_command_repeats_the_given_flags_and_takes_the_suggestions(tmp_path):
    given = ["--config", "synthetic", "--config.data.synthetic.users=300", "--config.seed=3"]
    start = [sys.executable, "-m", "bert4rec_jax.main"]
    replaced = "--config.model.width=16"
    text = run_suggest([*start, *given, replaced, "--mode", "suggest"], tmp_path)
    assert "300 users" in text
    assert "Training takes about" in text
    assert max(map(len, text.splitlines())) <= 80
    words = shlex.split(text.split("The command that trains:")[1].replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "bert4rec_jax.main"]
    assert words[3:7] == given
    assert words[7:9] == ["--workdir", "runs/mine"]
    fields = words[9:]
    assert len(fields) == 8
    assert "--config.model.width=64" in fields
    again = run_suggest([*start, *given, *fields, "--mode=suggest"], tmp_path)
    assert again == text
