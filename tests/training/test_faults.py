# SPDX-License-Identifier: Apache-2.0
"""Faults: damaged checkpoints, full disks, a second process, divergence, kills at any moment."""

import contextlib
import fcntl
import os
import random
import shutil
import subprocess
import time

import jax
import numpy as np
import pytest
from commands import SMALL, digest, metric_lines, outcome, start, succeed, train_command, user_error
from conftest import small_config

from bert4rec_jax import experiment
from bert4rec_jax.devices import translate_errors
from bert4rec_jax.errors import SaveError, UserError
from bert4rec_jax.experiment import Experiment, train_and_evaluate
from bert4rec_jax.training import Checkpoints, CheckpointState, Progress, TrainState
from bert4rec_jax.training.metric_writers import MetricWriter
from bert4rec_jax.training.run_directory import RunDirectory

STEPS = SMALL["train.steps"]


@pytest.fixture()
def copy(undisturbed, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(undisturbed / "undisturbed", tmp_path / "copy")
    return tmp_path / "copy"


@contextlib.contextmanager
def mounted(folder, options: str):
    """Mounts a memory file system; skips the test where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def files_of(folder) -> list:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path, part: float = 0.5, mask: int = 0xFF):
    content = bytearray(path.read_bytes())
    begin = int(part * len(content))
    content[begin : begin + 8] = bytes(byte ^ mask for byte in content[begin : begin + 8])
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_training_continues_before_a_damaged_newest_checkpoint(undisturbed, copy, damage):
    # Where the values are differs from save to save, and other files are not read again.
    for path in files_of(copy / "checkpoints" / str(STEPS) / "rest"):
        if path.parent.name == "d":
            damage(path)
    done = succeed(train_command(copy), undisturbed)
    assert f"checkpoint {STEPS} is damaged" in done.stderr
    assert f"continuing at step {STEPS - 50}" in done.stderr
    assert outcome(copy) == outcome(undisturbed / "undisturbed")
    assert digest(copy, STEPS) == digest(undisturbed / "undisturbed", STEPS)
    assert (copy / f"checkpoint-{STEPS}.damaged").is_dir()


def test_damage_to_every_checkpoint_is_reported(undisturbed, copy):
    for folder in (copy / "checkpoints").iterdir():
        for path in files_of(folder / "params"):
            flip(path)
    assert "none of the checkpoints" in user_error(train_command(copy), undisturbed)


def small_state(value: float) -> TrainState:
    return TrainState(
        jax.numpy.zeros(3),
        {"a": jax.numpy.full(5000, value)},
        {"c": jax.numpy.ones((40, 9))},
        jax.numpy.zeros(3),
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's threads
def test_parameters_are_read_alone_and_a_damaged_best_checkpoint_gives_way_to_another(tmp_path):
    template = jax.eval_shape(lambda: small_state(0.0)).params
    with Checkpoints(tmp_path / "saved") as checkpoints:
        for step in (1, 2, 3):
            content = CheckpointState(small_state(float(step)), Progress(best_step=1))
            checkpoints.save(step, content)
    for path in files_of(tmp_path / "saved"):
        if "rest" in path.parts:
            path.unlink()  # moments are not needed for it
    with Checkpoints(tmp_path / "saved", read_only=True) as checkpoints:
        assert checkpoints.latest_progress() == Progress(best_step=1)
        step, params = checkpoints.restore_params(1, template)
        assert step == 1 and params["a"][0] == 1
    for path in files_of(tmp_path / "saved" / "1" / "params"):
        flip(path)
    with Checkpoints(tmp_path / "saved", read_only=True) as checkpoints:
        step, params = checkpoints.restore_params(1, template)
        assert step == 3 and params["a"][0] == 3, "newer checkpoints are as good as older ones"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's threads
@pytest.mark.parametrize(
    "part, mask", [(0.0, 0xFF), (0.05, 0x01), (0.5, 0xFF), (0.5, 0x01), (0.9, 0x10)]
)
def test_flipped_bytes_in_any_file_are_noticed_or_harmless(tmp_path, part, mask):
    # Orbax writes files that it never reads, so some damage does not matter.
    progress = Progress(waited=3, losses=[1.5, 2.5])
    state = TrainState(
        jax.numpy.arange(30),
        {"a": jax.numpy.arange(5000.0)},
        {"c": jax.numpy.ones((40, 9))},
        jax.numpy.zeros(3),
    )
    with Checkpoints(tmp_path / "saved") as checkpoints:
        checkpoints.save(1, CheckpointState(state, progress))
    noticed = 0
    for file in files_of(tmp_path / "saved" / "1"):
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "saved", copy)
        flip(copy / file.relative_to(tmp_path / "saved"), part, mask)
        try:
            with Checkpoints(copy, read_only=True) as checkpoints:
                restored = checkpoints.restore_latest(jax.eval_shape(lambda: state))
        except UserError:
            restored = None
        if restored is None:
            noticed += 1
        else:
            equal = jax.tree.map(np.array_equal, restored.state, state)
            assert all(jax.tree.leaves(equal)), file
            assert restored.progress == progress, file
        shutil.rmtree(copy)
    assert noticed >= 2


def test_changes_during_a_save_are_not_saved(tmp_path):
    progress = Progress(losses=[1.5])
    one = jax.numpy.ones(1)
    state = TrainState(one, {"a": jax.numpy.ones(10**6)}, {"c": one}, one)
    with Checkpoints(tmp_path / "saved") as checkpoints:
        checkpoints.save(1, CheckpointState(state, progress))
        progress.losses.append(2.5)
    with Checkpoints(tmp_path / "saved", read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(jax.eval_shape(lambda: state))
        assert restored.progress == Progress(losses=[1.5])


def test_a_full_disk_stops_with_the_reason_and_keeps_checkpoints(undisturbed, tmp_path):
    wide = {"model.width": 64, "model.ffn_width": 512}
    straight = tmp_path / "straight"
    succeed(train_command(straight, wide), undisturbed)
    with mounted(tmp_path / "disk", "size=3m") as disk:
        error = user_error(train_command(disk / "run", wide), undisturbed)
        assert "no space is left on the disk" in error and "earlier checkpoints are intact" in error
        remount(disk, "size=100m")
        done = succeed(train_command(disk / "run", wide), undisturbed)
        assert "continuing at step" in done.stderr and "damaged" not in done.stderr
        assert outcome(disk / "run") == outcome(straight)


def test_a_full_disk_is_reported_alike_for_metrics_and_saves(tmp_path):
    config = small_config(tmp_path)
    with (
        RunDirectory(str(tmp_path / "run"), config) as run,
        MetricWriter(run, config.train, 1.0, 0) as writer,
    ):
        os.dup2(os.open("/dev/full", os.O_WRONLY), writer._file.fileno())
        with pytest.raises(
            SaveError,
            match="metrics.jsonl cannot be written: no space is left on the disk; earlier checkpoints",
        ):
            writer.write(1, "train", 0.5, {"loss": 1.0})


def test_a_second_process_in_a_workdir_is_refused(undisturbed, copy):
    with open(copy / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process" in user_error(train_command(copy), undisturbed)


def test_a_read_only_workdir_is_refused(undisturbed, tmp_path):
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        assert "cannot be written" in user_error(train_command(disk / "run"), undisturbed)


def test_divergence_stops_with_the_step_and_the_last_good_checkpoint(undisturbed, tmp_path):
    diverging = {"optimizer.learning_rate": 1e30, "optimizer.warmup_steps": 0}
    error = user_error(train_command(tmp_path / "run", diverging), undisturbed)
    assert "step 2: the loss is" in error and "no checkpoint exists yet" in error
    # No checkpoint exists, so the remedy in the message works in the same workdir.
    mended = {"optimizer.learning_rate": 1e-3, "train.steps": 20, "train.eval_every": 20}
    succeed(train_command(tmp_path / "run", mended), undisturbed)
    assert [
        line["step"] for line in metric_lines(tmp_path / "run") if line["split"] == "train"
    ] == [10, 20]
    # The first step made the parameters useless, and all later steps were skipped.
    error = user_error(
        train_command(tmp_path / "skip", diverging | {"train.on_nan": "skip"}), undisturbed
    )
    assert "not finite" in error
    skipped = [
        line["skipped"] for line in metric_lines(tmp_path / "skip") if line["split"] == "train"
    ]
    assert skipped == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99]


def test_out_of_memory_names_the_size_and_the_fields_to_change(cache):
    # The error is faked: a real one may kill the process.
    experiment = Experiment(small_config(cache))
    with (
        pytest.raises(UserError) as raised,
        translate_errors(experiment.config, experiment.step_bytes),
    ):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 8796093022208 bytes."
        )
    error = str(raised.value)
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(experiment.template))
    assert state < experiment.step_bytes() < 100 * state
    for named in (
        "out of memory",
        f"{experiment.step_bytes() / 2**30:.2f} GiB on each device",
        "config.train.batch_rows",
        "config.train.accumulate",
        "config.model.remat",
        "config.loss.chunk_items",
        "config.loss.name",
    ):
        assert named in error


class Chaos:
    """Kills a run repeatedly at random moments; each finished run must equal the undisturbed one."""

    PHASES = ("start", "preparation", "steps", "save", "ranking")

    def __init__(self, undisturbed, folder, seed: int):
        self.expected = outcome(undisturbed / "undisturbed")
        self.digest = digest(undisturbed / "undisturbed", STEPS)
        self.folder, self.random = folder, random.Random(seed)
        self.workdir, self.kills, self.finished = folder / "run", dict.fromkeys(self.PHASES, 0), 0

    def reached(self, phase: str) -> bool:
        prepared, checkpoints = self.folder / "data" / "prepared", self.workdir / "checkpoints"
        return {
            "start": lambda: True,
            "preparation": lambda: prepared.exists(),
            "steps": lambda: (self.workdir / "metrics.jsonl").exists(),
            "save": lambda: (
                checkpoints.exists()
                and any("tmp" in entry.name for entry in os.scandir(checkpoints))
            ),
            "ranking": lambda: any(line["step"] == STEPS for line in metric_lines(self.workdir)),
        }[phase]()

    def attempt(self, phase: str) -> None:
        """Starts the run and kills it during a phase, unless it finishes earlier."""
        process = start(train_command(self.workdir), self.folder)
        while process.poll() is None and not self.reached(phase):
            time.sleep(0.002)
        longest = {"start": 4.0, "preparation": 0.1, "steps": 3.0, "save": 0.05, "ranking": 1.5}[
            phase
        ]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.random.uniform(0, longest))
        process.kill()
        _, stderr = process.communicate()
        if process.returncode == 0:
            self.check()
        else:
            assert process.returncode == -9, stderr[-3000:]
            self.kills[phase] += 1

    def finish(self) -> None:
        succeed(train_command(self.workdir), self.folder)
        self.check()

    def check(self) -> None:
        """Compares the finished run and starts over with an empty folder."""
        assert outcome(self.workdir) == self.expected
        assert digest(self.workdir, STEPS) == self.digest
        self.finished += 1
        shutil.rmtree(self.workdir)
        shutil.rmtree(self.folder / "data")


def test_kills_do_not_change_the_outcome(undisturbed, tmp_path):
    chaos = Chaos(undisturbed, tmp_path, seed=0)
    for phase in ("preparation", "steps", "save", "ranking"):
        chaos.attempt(phase)
    chaos.finish()
    assert sum(chaos.kills.values()) >= 2


@pytest.mark.slow
def test_many_kills_do_not_change_the_outcome(undisturbed, tmp_path):
    chaos = Chaos(undisturbed, tmp_path, seed=1)
    while sum(chaos.kills.values()) < 40:
        chaos.attempt(chaos.random.choice(Chaos.PHASES))
    chaos.finish()
    print(
        f"{sum(chaos.kills.values())} kills survived ({chaos.kills}), {chaos.finished} runs finished as undisturbed"
    )


def test_results_of_the_model_are_saved_before_the_baselines(small_run, tmp_path, monkeypatch):
    def failing(*_):
        assert (tmp_path / "run" / "results.json").exists()
        raise ZeroDivisionError

    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(experiment.baselines, "rank_all", failing)
        train_and_evaluate(small_config(tmp_path), str(tmp_path / "run"))
    found, whole = outcome(tmp_path / "run"), outcome(small_run)
    assert found["metrics"] == whole["metrics"]
    assert found["results"] == whole["results"] | {
        "baselines": {},
        "baselines_left_out": {},
        "baselines_pending": True,
    }
    assert found["ranks"] == {
        name: x
        for name, x in whole["ranks"].items()
        if name.removesuffix("_rank") not in whole["results"]["baselines"]
    }
    train_and_evaluate(small_config(tmp_path), str(tmp_path / "run"))
    assert outcome(tmp_path / "run") == whole and whole["results"]["baselines"]
    monkeypatch.setattr(experiment.baselines, "_MOST_EVENT_READS", 0)
    train_and_evaluate(small_config(tmp_path), str(tmp_path / "run"))
    left_out = outcome(tmp_path / "run")["results"]
    assert left_out["baselines"].keys() == whole["results"]["baselines"].keys() - {"markov"}
    assert left_out["baselines_left_out"].keys() == {"markov"}
