# SPDX-License-Identifier: Apache-2.0
"""Reading a run directory, complete, incomplete or damaged."""

import json
import os

import pytest
from hand_made_runs import make_run

from bert4rec_jax.errors import UserError
from bert4rec_jax.run_files import RunFiles, find_runs

READERS = {
    "config.json": RunFiles.config,
    "environment.json": RunFiles.environment,
    "metrics.jsonl": RunFiles.metrics,
    "results.json": RunFiles.results,
    "ranks_test.npz": RunFiles.ranks,
    "catalogue.parquet": RunFiles.items,
}


def test_a_record_is_read_whole(tmp_path):
    files = RunFiles(make_run(tmp_path / "run", seed=3))
    assert files.config()["seed"] == 3
    assert files.environment()["starts"][0]["mode"] == "train"
    assert files.results() == files.complete_results()
    assert [line["step"] for line in files.metrics()] == [25, 50, 100, 100]
    assert files.ranks()["rank"].shape == (300,)
    assert files.trained_from() == ""
    assert [run.folder for run in find_runs(tmp_path)] == [files.folder]


def test_a_missing_file_is_none_or_an_error(tmp_path):
    files = RunFiles(tmp_path)
    assert (files.config(), files.environment(), files.results()) == (None, None, None)
    assert (files.metrics(), files.checkpoint_steps()) == ([], [])
    for read in (files.ranks, files.items):
        with pytest.raises(UserError, match=r"is missing; is .* a run directory\?"):
            read()


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    content = path.read_bytes() if path.exists() else b"PAR1 and more"
    path.write_bytes(content[: len(content) // 2] + b"\n")


def a_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def a_named_pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_symlink_loop(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path)


@pytest.mark.parametrize("damage", [empty, truncated, a_folder, a_named_pipe, a_symlink_loop])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name, damage):
    folder = make_run(tmp_path / "run")
    damage(folder / name)
    if damage is empty and name == "metrics.jsonl":
        assert READERS[name](RunFiles(folder)) == []  # a run that has not logged anything yet
        return
    with pytest.raises(UserError, match=rf"{name} cannot be read: ") as error:
        READERS[name](RunFiles(folder))
    assert "\n" not in str(error.value)


def test_results_are_complete_when_the_baselines_are_ranked(tmp_path):
    folder = make_run(tmp_path / "run", results={"baselines_pending": True})
    files = RunFiles(folder)
    assert files.results() is not None
    assert files.complete_results() is None


def test_the_end_of_the_metrics_is_read_without_the_rest(tmp_path):
    lines = [json.dumps({"step": step, "split": "train"}) + "\n" for step in range(100)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 100, "spl')
    files = RunFiles(tmp_path)
    assert [line["step"] for line in files.metrics()] == list(range(100))
    assert [line["step"] for line in files.metrics(last_bytes=120)] == [97, 98, 99]
