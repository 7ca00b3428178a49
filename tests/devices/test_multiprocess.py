# SPDX-License-Identifier: Apache-2.0
"""Several real processes on this machine, joined by environment variables like the hosts of a cluster."""

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


def start_job(workdir, folder, changes, processes=2):
    """Starts all processes of a job, each with one device."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = train_command(workdir, changes, "--distributed")
    started = []
    for number in range(processes):
        variables = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(number),
        }
        started.append(start(command, folder, **variables))
    return started


def finish(processes) -> list[str]:
    """Waits until all processes have succeeded; returns the stderr of each."""
    printed = [process.communicate(timeout=300)[1] for process in processes]
    for process, text in zip(processes, printed):
        assert process.returncode == 0, text[-3000:]
    return printed


def assert_nearly_equal(actual, expected):
    """Compares nested values, floats up to rounding."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_nearly_equal(actual[key], value)
    elif isinstance(expected, list) and not isinstance(expected[0], int):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected):
            assert_nearly_equal(one, other)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-4)
    else:
        assert actual == expected


def test_two_processes_give_the_results_of_one_process_with_two_devices(undisturbed, tmp_path):
    succeed(train_command(tmp_path / "one", SHORT), undisturbed, devices=2)
    printed = finish(start_job(tmp_path / "two", undisturbed, SHORT))
    assert_nearly_equal(outcome(tmp_path / "two"), outcome(tmp_path / "one"))
    environment = json.loads((tmp_path / "two" / "environment.json").read_text())
    (first,) = environment["starts"]
    assert first["process_count"] == 2 and first["device_count"] == 2
    assert "step 40/40" in printed[0], "the first process reports progress"
    assert "step" not in printed[1], "the other process does not"


@pytest.mark.parametrize(
    "victim, processes",
    [
        (1, 2),
        pytest.param(0, 2, marks=pytest.mark.slow),
        pytest.param(2, 4, marks=pytest.mark.slow),
    ],
)
def test_if_a_process_dies_the_others_end_and_a_restart_continues(
    undisturbed, tmp_path, victim, processes
):
    workdir = tmp_path / "run"
    job = start_job(workdir, undisturbed, ENDLESS, processes)
    wait_for(lambda: len(metric_lines(workdir)) > 5, job[0])
    victim = job[victim]
    victim.kill()
    begin = time.monotonic()
    for process in job:
        if process is victim:
            continue
        printed = process.communicate(timeout=60)[1]
        assert process.returncode != 0
        # If the first process, the coordinator, dies, JAX ends the others with its own message.
        expected = "another process of this job has ended|coordination service"
        assert re.search(expected, printed), printed[-3000:]
    assert time.monotonic() - begin < 60
    last = max(line["step"] for line in metric_lines(workdir))
    longer = ENDLESS | {"train.steps": last + 20}
    printed = finish(start_job(workdir, undisturbed, longer, processes))
    assert "continuing at step" in printed[0]
    steps = [line["step"] for line in metric_lines(workdir) if line["split"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == last + 20


def test_a_signal_to_one_process_stops_both_at_the_same_step(undisturbed, tmp_path):
    job = start_job(tmp_path / "run", undisturbed, ENDLESS)
    wait_for(lambda: len(metric_lines(tmp_path / "run")) > 5, job[0])
    job[1].send_signal(signal.SIGTERM)
    assert all("stopped by a signal" in text for text in finish(job))


def test_pmap_in_several_processes_is_rejected_before_training(undisturbed, tmp_path):
    first, second = start_job(tmp_path / "run", undisturbed, SHORT | {"parallel.mode": "pmap"})
    printed = " ".join(first.communicate(timeout=300)[1].split())
    assert first.returncode == 2 and "Traceback" not in printed, printed[-3000:]
    assert "config.parallel.mode = 'pmap' works in one process only" in printed
    second.communicate(timeout=300)
    assert second.returncode != 0
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_variable_that_is_not_a_number_is_one_line(undisturbed, tmp_path):
    variables = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "two"}
    process = start(
        train_command(tmp_path / "run", SHORT, "--distributed"), undisturbed, **variables
    )
    printed = process.communicate(timeout=300)[1]
    assert process.returncode == 2 and "Traceback" not in printed, printed[-3000:]
    assert "JAX_NUM_PROCESSES = 'two' is not a whole number" in printed
