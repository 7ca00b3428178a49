# SPDX-License-Identifier: Apache-2.0
"""Runs trials on this machine: one process per worker with its share of CPUs, GPUs and memory."""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from bert4rec_jax import config as config_lib
from experiments.sweep import Overrides
from experiments.sweeping import sweep_file, trials
from experiments.sweeping.adaptive import Study

POLL_SECONDS = 0.2
COMMAND_NOT_FOUND = 127  # exit code of shells
# Exit codes of a stopped run; the last two if it was stopped before it installed its handlers.
_STOPPED_CODES = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
LOG_LINES = 15


@dataclass(frozen=True)
class Slot:
    """A worker's share of the machine; an empty share keeps the scheduler's settings."""

    cpus: tuple[int, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def divide(workers: int, cpus: Sequence[int], gpus: Sequence[str]) -> list[Slot]:
    """Divides CPUs and GPUs between workers.

    With fewer workers than GPUs, each gets several; otherwise workers share a GPU and its memory.

    Args:
      workers: number of slots.
      cpus: numbers of the available CPUs.
      gpus: GPU names for CUDA_VISIBLE_DEVICES; may be empty.
    """
    slots = []
    for worker in range(workers):
        first = len(cpus) * worker // workers
        last = len(cpus) * (worker + 1) // workers
        share = tuple(cpus[first:last]) or (cpus[worker % len(cpus)],)
        # Without these, each process starts one thread per CPU of the machine in BLAS and in XLA.
        environment = {"OMP_NUM_THREADS": str(len(share)), "OPENBLAS_NUM_THREADS": str(len(share))}
        if gpus and workers <= len(gpus):
            each = len(gpus) // workers
            own_gpus = gpus[worker * each : (worker + 1) * each]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own_gpus)
        elif gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
            sharers = -(-workers // len(gpus))
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharers:.2f}"
        slots.append(Slot(share, environment))
    return slots


def visible_cpus() -> list[int]:
    """Returns the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def visible_gpus() -> list[str]:
    """Returns the names of the NVIDIA GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name and name != "-1"]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    count = sum(line.startswith("GPU") for line in listing.stdout.splitlines())
    return [str(number) for number in range(count)]


class Runner:
    """Runs trials of one sweep until it is stopped.

    Attributes:
      stop: set to end running trials with SIGTERM, which saves them, and to start no more.
      kill: set to end them at once.
    """

    def __init__(
        self,
        sweep: sweep_file.Sweep,
        root: Path,
        program: Sequence[str],
        study: Study | None,
        grace: float,
    ):
        """Prepares a runner; starts nothing.

        Args:
          sweep: the sweep.
          root: its folder.
          program: training command without its flags.
          study: study of an adaptive sweep.
          grace: seconds between SIGTERM, which makes a run save, and SIGKILL.
        """
        self.stop = threading.Event()
        self.kill = threading.Event()
        self._sweep = sweep
        self._root = root
        self._program = list(program)
        self._study = study
        self._grace = grace
        self._values = config_lib.read(sweep.config)

    def run(self, index: int, slot: Slot) -> str:
        """Starts or resumes a trial and waits for it; returns its state afterwards.

        `running` means that another launcher runs it. Finished and pruned trials are not started.
        """
        folder = trials.directory(self._root, index)
        claim = trials.Claim.take(folder)
        if claim is None:
            return trials.RUNNING
        try:
            state = self._stored_state(index)
            if state not in trials.DONE:
                state = self._attempt(index, folder, slot, claim)
            self._conclude(index, folder, state)
            return state
        finally:
            claim.release()

    def drain(self, indices: Sequence[int], slots: Sequence[Slot]) -> list[threading.Thread]:
        """Starts and returns one thread per slot that takes trials from `indices` in order."""
        pending: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in indices:
            pending.put(index)

        def work(slot: Slot) -> None:
            if slot.cpus and hasattr(os, "sched_setaffinity"):
                # Of this thread; its child processes inherit it.
                os.sched_setaffinity(0, slot.cpus)
            while not self.stop.is_set():
                try:
                    index = pending.get_nowait()
                except queue.Empty:
                    return
                self.run(index, slot)

        threads = [threading.Thread(target=work, args=(slot,)) for slot in slots]
        for thread in threads:
            thread.start()
        return threads

    def _stored_state(self, index: int) -> str:
        """Returns the state on disk, ignoring running launchers, including this one."""
        folder = trials.directory(self._root, index)
        if trials.finished(folder):
            return trials.FINISHED
        return trials.read_json(folder / "status.json").get("state", trials.WAITING)

    def _attempt(self, index: int, folder: Path, slot: Slot, claim: trials.Claim) -> str:
        """Runs a trial once; writes status.json and returns the state."""
        overrides = self._overrides(index, folder)
        (folder / "status.json").unlink(missing_ok=True)
        log_path = folder / "log.txt"
        with open(log_path, "ab") as log:
            start = log.tell()
            process = self._start(folder, overrides, slot, log)
            pruned = False
            code = COMMAND_NOT_FOUND
            if process is not None:
                claim.add_process(process.pid)
                metric = sweep_file.apply(self._values, overrides).eval.metric
                pruned = self._wait(process, index, metric, claim)
                code = process.returncode
        if trials.finished(folder):
            state = trials.FINISHED
        elif pruned:
            state = trials.PRUNED
        elif code in _STOPPED_CODES:
            state = trials.INTERRUPTED
        else:
            state = trials.FAILED
        status = {
            "state": state,
            "exit": code,
            "ended": time.time(),
            "log": _last_lines(log_path, start, code),
        }
        trials.write_json(folder / "status.json", status)
        return state

    def _overrides(self, index: int, folder: Path) -> Overrides:
        """Returns the overrides of a trial, which are fixed in trial.json from its first start."""
        overrides = trials.read_json(folder / "trial.json").get("overrides")
        if overrides is None:
            overrides = self._sweep.overrides(index)
            if overrides is None:  # a trial without changes has {}
                overrides = self._study.overrides(index)
            trials.write_json(folder / "trial.json", {"index": index, "overrides": overrides})
        return overrides

    def _start(
        self, folder: Path, overrides: Overrides, slot: Slot, log: BinaryIO
    ) -> subprocess.Popen | None:
        """Starts the training process, or returns None if the program cannot be started."""
        command = [
            *self._program,
            "--config",
            self._sweep.config,
            *sweep_file.arguments(overrides),
            "--workdir",
            str(folder),
        ]
        try:
            # Its own session: Ctrl-C in the terminal reaches only the launcher, which stops each
            # run with SIGTERM.
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **slot.environment},
            )
        except OSError as error:
            log.write(f"{command[0]}: {error}\n".encode())
            return None

    def _wait(
        self, process: subprocess.Popen, index: int, metric: str, claim: trials.Claim
    ) -> bool:
        """Waits for a process, forwards stop and kill, and returns whether it was pruned."""
        stopped_at = None
        pruned = False
        last_step = -1
        while process.poll() is None:
            claim.heartbeat()
            if self._study and stopped_at is None:
                valid = trials.trial_status(self._root, index, None).valid
                step = valid.get("step", -1)
                if step > last_step and metric in valid:
                    last_step = step
                    pruned = self._study.is_hopeless(index, step, valid[metric])
            if stopped_at is None and (pruned or self.stop.is_set()):
                stopped_at = time.monotonic()
                _signal_group(process, signal.SIGTERM)
            if stopped_at is not None:
                overdue = time.monotonic() - stopped_at > self._grace
                if overdue or self.kill.is_set():
                    _signal_group(process, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        return pruned

    def _conclude(self, index: int, folder: Path, state: str) -> None:
        if not self._study or state == trials.INTERRUPTED:
            return
        value = None
        if state == trials.FINISHED:
            overrides = trials.read_json(folder / "trial.json")["overrides"]
            metric = sweep_file.apply(self._values, overrides).eval.metric
            value = trials.finished(folder)["valid"][metric]
        self._study.conclude(index, state, value)


def _signal_group(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _last_lines(log: Path, start: int, code: int) -> list[str]:
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    if code == -signal.SIGKILL:
        lines.append("(killed with SIGKILL: out of memory?)")
    return lines[-LOG_LINES:]
