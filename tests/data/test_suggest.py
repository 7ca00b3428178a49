# SPDX-License-Identifier: Apache-2.0
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
def test_suggestions_are_a_config_that_passes_over_the_data_forty_times(users, items, length):
    values = config_lib.recommended()
    fields = suggested(users, items, length)
    values.update_from_flattened_dict(fields)
    config = config_lib.resolve(values)
    passes = (
        config.train.steps
        * config.train.batch_rows
        * config.model.max_length
        / (users * (length - 2))
    )
    assert config.train.steps == 1000 or 38 < passes < 42
    assert config.model.max_length >= min(length, 200)
    assert config.train.eval_every * 12 <= config.train.steps


def test_few_events_an_item_take_more_dropout_and_many_events_or_items_more_width():
    dropouts = [suggested(1000, items, 50)["model.dropout"] for items in (10_000, 700, 400, 100)]
    assert dropouts == [0.5, 0.3, 0.2, 0.1]
    widths = [suggested(users, 1000, 100)["model.width"] for users in (1000, 100_000, 2_000_000)]
    assert widths == [64, 128, 256]
    assert [suggested(1000, items, 100)["model.width"] for items in (9999, 10_000)] == [64, 128]
    assert (
        suggested(1000, 1000, 20)["model.max_length"] == 50
        and suggested(1000, 1000, 90)["model.max_length"] == 100
    )


def test_the_command_prints_flags_that_the_program_takes(tmp_path):
    command = [sys.executable, "-m", "bert4rec_jax.main", "--config", "synthetic"]
    done = subprocess.run(
        [*command, "--mode", "suggest"],
        cwd=ROOT,
        env=environment(tmp_path),
        text=True,
        capture_output=True,
        check=True,
    )
    said = done.stdout.split("command that trains:\n\n")[1]
    assert max(map(len, said.splitlines())) <= 80
    flags = shlex.split(said.replace("\\\n", " "))
    assert len(flags) == 8 and "--config.model.width=64" in flags
    again = subprocess.run(
        [*command, *flags, "--mode", "suggest"],
        cwd=ROOT,
        env=environment(tmp_path),
        text=True,
        capture_output=True,
        check=True,
    )
    assert again.stdout == done.stdout
