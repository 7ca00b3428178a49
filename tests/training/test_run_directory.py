# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
from conftest import small_config

from bert4rec_jax.data import load_dataset
from bert4rec_jax.training import RunDirectory, run_directory


def claim(config, workdir, mode):
    with RunDirectory(str(workdir), config) as run:
        run.claim(load_dataset(config.data), np.zeros(61, np.int64), mode)
    return json.loads((workdir / "environment.json").read_text())["starts"]


def test_every_start_is_kept(cache, tmp_path):
    config = small_config(cache)
    first = claim(config, tmp_path, "train")
    both = claim(config, tmp_path, "evaluate")
    assert [start["mode"] for start in both] == ["train", "evaluate"] and both[0] == first[0]
    assert {"git_commit", "git_dirty", "versions", "devices", "command", "started"} <= both[1].keys()


def test_a_change_anywhere_in_the_package_makes_it_dirty(monkeypatch):
    asked = []
    monkeypatch.setattr(run_directory, "_git", lambda *words: asked.append(words) or " M bert4rec_jax/model/encoder.py")
    assert run_directory._start("train")["git_dirty"] is True
    assert any(words[-1].endswith("bert4rec_jax") for words in asked if words[0] == "status")
