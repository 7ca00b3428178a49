# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from conftest import small_config

from bert4rec_jax.data import load_dataset
from bert4rec_jax.errors import UserError
from bert4rec_jax.training import RunDirectory, environment


def claim(config, workdir, mode, counts=None):
    with RunDirectory(str(workdir), config) as run:
        run.claim(
            load_dataset(config.data), np.zeros(61, np.int64) if counts is None else counts, mode
        )
    return json.loads((workdir / "environment.json").read_text())["starts"]


def test_every_start_is_kept(cache, tmp_path):
    config = small_config(cache)
    first = claim(config, tmp_path, "train")
    both = claim(config, tmp_path, "evaluate")
    assert [start["mode"] for start in both] == ["train", "evaluate"] and both[0] == first[0]
    assert {"git_commit", "git_dirty", "versions", "devices", "command", "started"} <= both[
        1
    ].keys()


def test_a_run_that_was_trained_on_other_events_of_the_same_data_is_refused(cache, tmp_path):
    config, counts = small_config(cache), np.arange(61)
    claim(config, tmp_path, "train")
    claim(config, tmp_path, "train", counts)  # nothing is trained yet
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    assert len(claim(config, tmp_path, "train", counts)) == 3
    for mode in ("train", "evaluate"):
        with pytest.raises(
            UserError,
            match="was trained on 1,830 events, but this version would train on 1,831 events of",
        ):
            claim(config, tmp_path, mode, counts + (np.arange(61) == 7))
    run = RunDirectory(str(tmp_path), config)
    (tmp_path / "results.json").write_text("{}")
    run.check_trained(load_dataset(config.data), counts)
    with pytest.raises(UserError, match="was trained on 1,830 events"):
        run.check_trained(load_dataset(config.data), counts[::-1] + counts[0])


def test_features_may_be_switched_on_until_there_is_a_checkpoint(cache, tmp_path):
    claim(small_config(cache), tmp_path, "train")
    rich = small_config(cache, **{"data.features": "genres"})
    assert len(claim(rich, tmp_path, "train")) == 2
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="config.data.features was 'genres' and is now ''"):
        claim(small_config(cache), tmp_path, "train")


def test_a_run_goes_on_with_what_changes_nothing_that_is_computed(cache, tmp_path):
    claim(small_config(cache), tmp_path, "train")
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    fields = {
        "train.log_every": 5,
        "train.checkpoint_every": 5,
        "eval.batch_rows": 16,
        "model.remat": True,
    }
    assert len(claim(small_config(cache, **fields), tmp_path, "train")) == 2


def test_a_run_that_is_older_than_a_field_goes_on(cache, tmp_path):
    config = small_config(cache)
    claim(config, tmp_path, "train")
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["data"]["features"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert len(claim(config, tmp_path, "train")) == 2


def test_a_run_ends_no_earlier_than_its_newest_checkpoint(cache, tmp_path):
    constant = {"optimizer.schedule": "constant"}
    claim(small_config(cache, **constant, **{"train.steps": 300}), tmp_path, "train")
    for step in ("100", "200"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
    for steps in (200, 400):
        assert claim(small_config(cache, **constant, **{"train.steps": steps}), tmp_path, "train")
    with pytest.raises(
        UserError,
        match="has a checkpoint of step 200, and config.train.steps is now 199; give 200 or",
    ):
        claim(small_config(cache, **constant, **{"train.steps": 199}), tmp_path, "train")
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 400


def test_a_change_anywhere_in_the_package_makes_it_dirty(monkeypatch):
    calls = []

    def git(*words):
        calls.append(words)
        return " M bert4rec_jax/model/encoder.py"

    monkeypatch.setattr(environment, "_git", git)
    assert environment.describe_start("train")["git_dirty"] is True
    assert any(words[-1].endswith("bert4rec_jax") for words in calls if words[0] == "status")
