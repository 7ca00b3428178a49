# SPDX-License-Identifier: Apache-2.0
"""A stop signal in every phase of a command: training saves its state, other commands end."""

import contextlib
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from commands import digest, outcome, run
from conftest import small_config
from pages import ROOT

import bert4rec_jax
from bert4rec_jax import command_line, experiment
from bert4rec_jax.data import TrainingBatches, prepare
from bert4rec_jax.data.engines import pipeline
from bert4rec_jax.errors import Stopped
from bert4rec_jax.ranking import Ranker
from bert4rec_jax.training import Checkpoints, loop

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]  # SIGUSR1 uses the same code


def prepared_folders(cache) -> list[str]:
    """Returns the published data sets; finished stages are kept in hidden folders."""
    return [name for name in os.listdir(cache / "prepared") if not name.startswith(".")]


def always(*_, **__) -> bool:
    return True


# The signal comes during one call per phase: owner and name of the function, and which call.
# The phases are in the order in which a run that is continued after each signal reaches them.
PHASES = {
    "prepare": (pipeline, "publish", always),
    "compile": (loop, "waiting", lambda title, visible: "compiling" in title),
    "train": (TrainingBatches, "batch", always),
    "validate": (Ranker, "rank", always),
    "save": (Checkpoints, "save", always),
    "rank": (Ranker, "rank", lambda *arguments, **_: "test users" in str(arguments)),
    "baselines": (experiment.baselines, "rank_all", always),
}


@pytest.mark.parametrize("number", SIGNALS)
def test_training_stops_in_any_phase_and_the_same_call_continues(
    small_run, tmp_path, monkeypatch, capfd, number
):
    config, workdir = small_config(tmp_path), tmp_path / "run"
    for phase, (owner, name, chosen) in PHASES.items():
        original, sent = getattr(owner, name), []

        def signalled(*arguments, original=original, sent=sent, chosen=chosen, **named):
            if not sent and chosen(*arguments, **named):
                sent.append(number)
                os.kill(os.getpid(), number)
            return original(*arguments, **named)

        stopped = False
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, signalled)
            try:
                bert4rec_jax.train(config, str(workdir))
            except Stopped as stop:
                stopped = stop.number == number
        if phase == "prepare":  # there is nothing to save yet
            assert not prepared_folders(tmp_path)
        said = capfd.readouterr().err
        assert sent, f"no call of {name} in this phase"
        assert said.count(f"{number.name}: saving and stopping") == 1 and "Traceback" not in said, (
            phase
        )
        if phase == "compile":  # and not at the next validation
            assert [name for name in os.listdir(workdir / "checkpoints") if name.isdigit()] == ["1"]
        # The baselines are the last phase, so the run finishes.
        assert stopped == (not (workdir / "results.json").exists()) == (phase != "baselines"), phase
    assert outcome(workdir) == outcome(small_run)
    assert digest(workdir, config.train.steps) == digest(small_run, config.train.steps)


# Sends a signal to a command when it calls a function of a class or module for the first time.
SIGNAL_IN = """
import importlib, os, runpy, sys
module, name, number, command = sys.argv[1:5]
del sys.argv[1:5]
owner = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
original = getattr(owner, name)
def signalled(*arguments, **named):
    os.kill(os.getpid(), int(number))
    return original(*arguments, **named)
setattr(owner, name, signalled)
runpy.run_module(command, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_callback_that_cannot_raise_is_not_lost(number):
    # Like a callback of the garbage collector, suppress() swallows the exception.
    with (
        pytest.raises(Stopped, match=number.name),
        prepare._stop_on_signals(),
        contextlib.suppress(Stopped),
    ):
        os.kill(os.getpid(), number)
        time.sleep(60)
    with pytest.raises(KeyboardInterrupt):
        command_line._report_unraisable(SimpleNamespace(exc_value=KeyboardInterrupt(), object=None))
        time.sleep(60)


def test_ctrl_c_during_the_imports_shows_no_traceback(tmp_path):
    # The signal comes while main imports its first library.
    (tmp_path / "absl.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    done = run(
        [sys.executable, "-m", "bert4rec_jax.main", "--config", "synthetic"],
        tmp_path,
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]),
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


PREPARING = ("bert4rec_jax.data.engines.pipeline", "publish", "bert4rec_jax.main")


@pytest.mark.parametrize(
    "mode, code, last",
    [
        (
            "train",
            0,
            "stopped by a signal; everything is saved. Run the same command again to continue.",
        ),
        (
            "suggest",
            143,
            "SIGTERM: preparation has stopped, and nothing half-made is left; the same command "
            "continues after the finished stages.",
        ),
    ],
)
def test_a_stop_signal_during_preparation_is_not_an_error(tmp_path, mode, code, last):
    module, name, main = PREPARING
    done = run(
        [
            sys.executable,
            "-c",
            SIGNAL_IN,
            module,
            name,
            str(int(signal.SIGTERM)),
            main,
            "--config",
            "synthetic",
            "--mode",
            mode,
            *(["--workdir", str(tmp_path / "run")] if mode == "train" else []),
        ],
        tmp_path,
    )
    assert done.returncode == code and done.stderr.splitlines()[-1] == last and not done.stdout
    assert not prepared_folders(tmp_path / "data")


COMMANDS = {
    "recommend": (
        "bert4rec_jax.serving",
        "Recommender.recommend_numbers",
        "bert4rec_jax.recommend",
        ["--history", "Genre 1, item 1"],
    ),
    "export": (
        "bert4rec_jax.export.stablehlo",
        "write",
        "bert4rec_jax.export",
        ["--format", "stablehlo", "--out", "{out}"],
    ),
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", COMMANDS)
def test_other_commands_end_at_once_and_leave_no_complete_output(
    small_run, tmp_path, command, number
):
    module, name, main, flags = COMMANDS[command]
    flags = [flag.format(out=tmp_path / "out") for flag in flags]
    done = run(
        [
            sys.executable,
            "-c",
            SIGNAL_IN,
            module,
            name,
            str(int(number)),
            main,
            "--workdir",
            str(small_run),
            *flags,
        ],
        tmp_path,
    )
    # Ctrl-C prints a line; the other signals end the process directly.
    assert done.returncode == (130 if number == signal.SIGINT else -number), done.stderr
    said = [
        line for line in done.stderr.splitlines() if not line.endswith(" s so far")
    ]  # on a slow machine
    assert said == (["interrupted"] if number == signal.SIGINT else [])
    assert "Traceback" not in done.stderr and not done.stdout
    assert not (tmp_path / "out" / "README.md").exists()
