# SPDX-License-Identifier: Apache-2.0
"""Two real processes on this machine, as two hosts of a cluster would be."""

import json
import re
import signal
import socket
import time

import pytest
from commands import metric_lines, outcome, start, succeed, train_command, wait_for

SHORT = {"train.steps": 40, "train.eval_every": 20, "train.checkpoint_every": 20}
ENDLESS = {
    "train.steps": 1_000_000,
    "train.eval_every": 1_000_000,
    "train.checkpoint_every": 20,
    "train.log_every": 10,
}


def start_two(workdir, folder, changes):
    """Starts both processes of a job, each with one device."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        start(
            train_command(workdir, changes, "--distributed"),
            folder,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
        )
        for number in range(2)
    ]


def finish(processes) -> list[str]:
    """Waits for the end of all; returns what each said on stderr."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    for process, text in zip(processes, said):
        assert process.returncode == 0, text[-3000:]
    return said


def assert_alike(actual, expected):
    """Compares nested values; numbers up to rounding."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(actual[key], value)
    elif isinstance(expected, list) and not isinstance(expected[0], int):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected):
            assert_alike(one, other)
    else:
        assert actual == (
            pytest.approx(expected, rel=1e-4) if isinstance(expected, float) else expected
        )


def test_two_processes_do_what_one_with_two_devices_does(undisturbed, tmp_path):
    succeed(train_command(tmp_path / "one", SHORT), undisturbed, devices=2)
    said = finish(start_two(tmp_path / "two", undisturbed, SHORT))
    assert_alike(outcome(tmp_path / "two"), outcome(tmp_path / "one"))
    environment = json.loads((tmp_path / "two" / "environment.json").read_text())
    (first,) = environment["starts"]
    assert first["process_count"] == 2 and first["device_count"] == 2
    assert "step 40/40" in said[0] and "step" not in said[1], (
        "one process reports, the other does not"
    )


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_loss_of_a_process_ends_the_other_and_a_restart_goes_on(undisturbed, tmp_path, victim):
    workdir = tmp_path / "run"
    processes = start_two(workdir, undisturbed, ENDLESS)
    wait_for(lambda: len(metric_lines(workdir)) > 5, processes[0])
    processes[victim].kill()
    begin = time.monotonic()
    said = processes[1 - victim].communicate(timeout=60)[1]
    assert processes[1 - victim].returncode != 0
    assert time.monotonic() - begin < 60
    # Where the first process goes, the one that coordinates, JAX ends the others with words of its own.
    assert re.search("another process of this job has ended|coordination service", said), said[
        -3000:
    ]
    last = max(line["step"] for line in metric_lines(workdir))
    said = finish(start_two(workdir, undisturbed, ENDLESS | {"train.steps": last + 20}))
    assert "continuing at step" in said[0]
    steps = [line["step"] for line in metric_lines(workdir) if line["split"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == last + 20


def test_a_signal_to_one_process_stops_both_at_the_same_step(undisturbed, tmp_path):
    processes = start_two(tmp_path / "run", undisturbed, ENDLESS)
    wait_for(lambda: len(metric_lines(tmp_path / "run")) > 5, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    assert all("stopped by a signal" in text for text in finish(processes))
