# SPDX-License-Identifier: Apache-2.0
"""Run directories: which run may use one, and what a start records."""

import json

import jax
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


def test_a_run_on_other_events_of_the_same_data_is_rejected(cache, tmp_path):
    config, counts = small_config(cache), np.arange(61)
    claim(config, tmp_path, "train")
    claim(config, tmp_path, "train", counts)  # nothing has been trained yet
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


def test_a_run_continues_after_changes_that_do_not_affect_results(cache, tmp_path):
    claim(small_config(cache), tmp_path, "train")
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    fields = {
        "train.log_every": 5,
        "train.checkpoint_every": 5,
        "eval.batch_rows": 16,
        "model.remat": True,
    }
    assert len(claim(small_config(cache, **fields), tmp_path, "train")) == 2


def test_a_run_older_than_a_field_continues(cache, tmp_path):
    config = small_config(cache)
    claim(config, tmp_path, "train")
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["data"]["features"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert len(claim(config, tmp_path, "train")) == 2


def test_a_run_cannot_end_before_its_newest_checkpoint(cache, tmp_path):
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


def write_metrics(folder, *entries):
    lines = [json.dumps({"step": step, "split": split}) + "\n" for step, split in entries]
    (folder / "metrics.jsonl").write_text("".join(lines))


def test_lost_checkpoints_are_rejected_or_reported(cache, tmp_path, capsys):
    every_ten = {"train.eval_every": 10, "train.checkpoint_every": 10}
    run = RunDirectory(str(tmp_path), small_config(cache, **every_ten))
    run.check_fresh_start()
    assert capsys.readouterr().err == ""
    # The save of step 10 may not have been complete when the run was killed.
    write_metrics(tmp_path, (10, "train"), (10, "valid"), (15, "train"))
    run.check_fresh_start()
    assert "reached step 15; training starts again from step 0" in capsys.readouterr().err
    write_metrics(tmp_path, (10, "train"), (40, "train"))
    with pytest.raises(
        UserError, match="contains no checkpoint, although this run reached step 40"
    ):
        run.check_fresh_start()
    # The results of another run's model do not need checkpoints.
    write_metrics(tmp_path, (40, "test"))
    (tmp_path / "results.json").write_text("{}")
    run.check_fresh_start()
    write_metrics(tmp_path, (5, "train"), (5, "test"))
    with pytest.raises(UserError, match="this run reached step 5"):
        run.check_fresh_start()


def test_a_resume_under_other_settings_of_jax_is_rejected(cache, tmp_path):
    config = small_config(cache)
    claim(config, tmp_path, "train")
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with (
        jax.default_matmul_precision("float32"),
        pytest.raises(UserError, match="jax_default_matmul_precision = None. It is now 'float32'"),
    ):
        claim(config, tmp_path, "train")
    assert len(claim(config, tmp_path, "train")) == 2


def test_a_rejected_run_leaves_nothing_behind(cache, tmp_path):
    config = small_config(cache)
    with pytest.raises(UserError, match="wrong"), RunDirectory(str(tmp_path / "new"), config):
        raise UserError("something is wrong")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(UserError, match="wrong"), RunDirectory(str(tmp_path / "old"), config):
        raise UserError("something is wrong")
    assert (tmp_path / "old").exists()
