# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped and continued gives the same bits as a run that never stopped."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import (
    SMALL,
    digest,
    environment,
    metric_lines,
    outcome,
    run,
    start,
    start_with,
    succeed,
    train_command,
    wait_for,
)

STEPS = SMALL["train.steps"]
# Sends a signal to the command when it calls Ranker.rank for the NUMBER-th time.
SIGNAL_WHILE_RANKING = """
import os, runpy, sys
from bert4rec_jax.ranking.ranker import Ranker
number, signal = int(sys.argv.pop(1)), int(sys.argv.pop(1))
rank, calls = Ranker.rank, []
def signalled(*arguments, **named):
    calls.append(arguments)
    if len(calls) == number:
        os.kill(os.getpid(), signal)
    return rank(*arguments, **named)
Ranker.rank = signalled
runpy.run_module("bert4rec_jax.main", run_name="__main__", alter_sys=True)
"""


def assert_same_run(workdir, other):
    assert outcome(workdir) == outcome(other)
    assert digest(workdir, STEPS) == digest(other, STEPS)


def test_two_halves_in_two_processes_equal_one_run(undisturbed):
    halves = undisturbed / "halves"
    succeed(train_command(halves, {"train.steps": STEPS // 2}), undisturbed)
    done = succeed(train_command(halves), undisturbed)
    assert f"continuing at step {STEPS // 2}" in done.stderr
    assert_same_run(halves, undisturbed / "undisturbed")
    steps = [line["step"] for line in metric_lines(halves) if line["split"] == "train"]
    assert steps == list(range(10, STEPS + 1, 10))


def stop_while_training(workdir, folder, number):
    before = len(metric_lines(workdir))
    process = start(train_command(workdir), folder)
    wait_for(lambda: len(metric_lines(workdir)) > before + 2, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0 and "stopped by a signal" in stderr
    assert max(line["step"] for line in metric_lines(workdir)) < STEPS
    assert not (workdir / "results.json").exists()


def stop_while_ranking(workdir, folder, call, number):
    command = train_command(workdir)
    done = run(
        [sys.executable, "-c", SIGNAL_WHILE_RANKING, str(call), str(int(number)), *command[3:]],
        folder,
    )
    assert done.returncode == 0 and "stopped by a signal" in done.stderr, done.stderr
    assert not (workdir / "results.json").exists()


def test_signals_save_and_exit_in_training_and_ranking(undisturbed):
    workdir = undisturbed / "signals"
    stop_while_training(workdir, undisturbed, signal.SIGTERM)
    stop_while_training(workdir, undisturbed, signal.SIGUSR1)
    stop_while_training(workdir, undisturbed, signal.SIGHUP)
    # Stop in the last of four validations.
    validated = sum(line["split"] == "valid" for line in metric_lines(workdir))
    stop_while_ranking(workdir, undisturbed, 4 - validated, signal.SIGTERM)
    assert sum(line["split"] == "valid" for line in metric_lines(workdir)) == 3
    # That validation is repeated; then validation users and test users are ranked at the end.
    stop_while_ranking(workdir, undisturbed, 3, signal.SIGUSR1)
    succeed(train_command(workdir), undisturbed)
    assert_same_run(workdir, undisturbed / "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_while_xla_compiles(undisturbed, tmp_path, number):
    large = {"model.width": 256, "model.layers": 8, "model.max_length": 64, "model.ffn_width": 512}
    with open(tmp_path / "said", "w+") as said:
        process = start_with(
            train_command(tmp_path / "run", large),
            stderr=said,
            stdout=subprocess.DEVNULL,
            env=environment(undisturbed, JAX_ENABLE_COMPILATION_CACHE="0"),
        )

        def heard() -> str:
            return (tmp_path / "said").read_text()

        wait_for(lambda: "compiling the training step" in heard(), process)
        process.send_signal(number)
        wait_for(lambda: f"{number.name}: saving and stopping" in heard(), process)
        time.sleep(1.2)  # two signals within a second count as one
        process.send_signal(number)
        # Without the second signal it would save after compiling, and end with 0.
        assert process.wait(timeout=300) == 128 + number
        assert "again: quitting at once" in heard() and "Traceback" not in heard()
        assert not metric_lines(tmp_path / "run")


@pytest.mark.parametrize(
    "parallel",
    [{"parallel.item_shards": 2}, pytest.param({"parallel.mode": "pmap"}, marks=pytest.mark.slow)],
)
def test_resuming_on_other_devices_changes_only_rounding(undisturbed, parallel):
    short = {
        "train.steps": 40,
        "train.eval_every": 20,
        "train.checkpoint_every": 20,
        "model.dropout": 0.0,
    }
    straight, changed = undisturbed / "short", undisturbed / f"short-{next(iter(parallel))}"
    if not straight.exists():
        succeed(train_command(straight, short), undisturbed)
    succeed(train_command(changed, short | {"train.steps": 20}), undisturbed)
    succeed(train_command(changed, short | parallel), undisturbed, devices=2)
    expected, lines = metric_lines(straight), metric_lines(changed)
    assert [(line["step"], line["split"]) for line in lines] == [
        (line["step"], line["split"]) for line in expected
    ]
    losses = [
        [line["loss"] for line in run_lines if line["split"] == "train"]
        for run_lines in (expected, lines)
    ]
    assert digest(changed, 40) != digest(straight, 40), (
        "one of the two did not run on other devices"
    )
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
