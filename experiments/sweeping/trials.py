# SPDX-License-Identifier: Apache-2.0
"""The trials of a sweep on disk: `ROOT/sweep.json` and one run directory per trial, `ROOT/007`.

All state is in these files, so any machine that sees the folder can continue. In addition to the
run's own files, a trial has `trial.json` (index, overrides), `log.txt` (output of every attempt),
`status.json` (how the last attempt ended) and, while a launcher runs it, `claim.json`.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from bert4rec_jax import files
from bert4rec_jax.errors import UserError
from bert4rec_jax.files import write_json
from bert4rec_jax.run_files import RunFiles
from experiments.sweep import Overrides
from experiments.sweeping.sweep_file import Sweep

_TAIL_BYTES = 65536  # of metrics.jsonl; enough for the newest validation
HEARTBEAT_SECONDS = 10
STALE_SECONDS = 90  # a claim without a heartbeat for this long belongs to a dead machine

WAITING = "waiting"
RUNNING = "running"
INTERRUPTED = "interrupted"
FINISHED = "finished"
PRUNED = "pruned"
FAILED = "failed"
DONE = (FINISHED, PRUNED)


@dataclass(frozen=True)
class TrialStatus:
    """The state of one trial, read from its files.

    Attributes:
      index: number of the trial.
      state: waiting, running, interrupted, finished, pruned or failed.
      overrides: changed fields; None if the search has not proposed it yet.
      step: last step in metrics.jsonl.
      valid: last validation metrics.
      seconds: training wall seconds so far.
      results: results.json of a finished trial.
      failure: last lines of the log of a failed one.
    """

    index: int
    state: str
    overrides: Overrides | None
    step: int
    valid: dict[str, float]
    seconds: float
    results: dict
    failure: tuple[str, ...]


def directory(root: Path, index: int) -> Path:
    """Returns the run directory of a trial."""
    return root / f"{index:03d}"


def read_json(path: Path) -> dict:
    """Returns the object in a JSON file, or {} if the file is missing or damaged."""
    try:
        return files.read_json(path)
    except (OSError, ValueError):
        return {}


def open_root(root: Path, sweep: Sweep) -> dict:
    """Makes `root` the folder of `sweep`, or checks that it already is.

    Returns the content of sweep.json.

    A sweep file may grow between starts, but started trials must not change.

    Raises:
      UserError: `root` contains trials of another sweep.
    """
    root.mkdir(parents=True, exist_ok=True)
    known = read_json(root / "sweep.json")
    for index in range(len(sweep)):
        started = read_json(directory(root, index) / "trial.json")
        expected = sweep.overrides(index)
        if started and expected is not None and started["overrides"] != expected:
            raise UserError(
                f"{directory(root, index)} contains {started['overrides']}, but trial {index} of "
                f"{sweep.file} is {expected}; choose another --root, or delete that folder."
            )
    if known and (known["config"], known["adaptive"]) != (sweep.config, sweep.search is not None):
        raise UserError(
            f"{root} contains the sweep {known['sweep']} of {known['config']}; choose another "
            "--root."
        )
    record = {
        "sweep": sweep.file,
        "config": sweep.config,
        "adaptive": sweep.search is not None,
        "count": len(sweep),
        "trials": [sweep.overrides(i) for i in range(len(sweep))],
        "id": known.get("id", uuid.uuid4().hex[:12]),
    }
    if known != record:
        write_json(root / "sweep.json", record)
    return record


def read_root(root: Path) -> dict:
    """Returns sweep.json of a sweep started here or elsewhere.

    Raises:
      UserError: sweep.json is missing.
    """
    record = read_json(root / "sweep.json")
    if not record:
        raise UserError(f"{root} does not contain a sweep: sweep.json is missing.")
    return record


def finished(folder: Path) -> dict:
    """Returns results.json of a finished trial, or {} if its baselines are not ranked yet."""
    try:
        return RunFiles(folder).complete_results() or {}
    except UserError:  # a damaged file: the trial has to run again
        return {}


def trial_status(root: Path, index: int, overrides: Overrides | None) -> TrialStatus:
    """Reads the status of one trial from its files.

    Args:
      root: folder of the sweep.
      index: number of the trial.
      overrides: changed fields of the trial, if it has not started yet.
    """
    folder = directory(root, index)
    trial = read_json(folder / "trial.json")
    status = read_json(folder / "status.json")
    results = finished(folder)
    if results:
        state = FINISHED
    elif _claim_is_live(folder):
        state = RUNNING
    else:
        state = status.get("state", INTERRUPTED if trial else WAITING)
    step, valid, seconds = _last_metrics(RunFiles(folder))
    return TrialStatus(
        index=index,
        state=state,
        overrides=trial.get("overrides", overrides),
        step=step,
        valid=valid,
        seconds=seconds,
        results=results,
        failure=tuple(status.get("log", ())) if state == FAILED else (),
    )


def all_statuses(root: Path) -> list[TrialStatus]:
    """Reads the status of every trial of the sweep in `root`."""
    record = read_root(root)
    return [trial_status(root, index, record["trials"][index]) for index in range(record["count"])]


class Claim:
    """The right to work on a trial, held by one launcher at a time."""

    def __init__(self, path: Path, token: str):
        self._path = path
        self._token = token
        self._beat = time.monotonic()

    @classmethod
    def take(cls, folder: Path) -> "Claim | None":
        """Claims the trial in `folder`, also if the previous holder died."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "claim.json"
        if _claim_is_live(folder):
            return None
        _remove_stale(path)
        claim = cls(path, uuid.uuid4().hex)
        try:
            with open(path, "x") as file:
                json.dump(claim._holder(), file)
        except FileExistsError:
            return None
        return claim

    def add_process(self, pid: int) -> None:
        """Records the training process, which may survive its launcher."""
        write_json(self._path, self._holder(pid))

    def heartbeat(self) -> None:
        """Updates the heartbeat; cheap to call often."""
        if time.monotonic() - self._beat > HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            os.utime(self._path)

    def release(self) -> None:
        """Releases the trial."""
        self._path.unlink(missing_ok=True)

    def _holder(self, *processes: int) -> dict:
        pids = [os.getpid(), *processes]
        return {"token": self._token, "host": socket.gethostname(), "pids": pids}


def _claim_is_live(folder: Path) -> bool:
    path = folder / "claim.json"
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    holder = read_json(path)
    if holder.get("host") == socket.gethostname():  # the process can be checked directly
        return any(_lives(pid, folder) for pid in holder["pids"])
    return age < STALE_SECONDS


def _lives(pid: int, folder: Path) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    if pid == os.getpid():
        return True
    try:  # process ids are reused: check that it is a launcher or a run
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state != "Z" and (str(folder) in words or "launch" in words)


def _remove_stale(path: Path) -> None:
    judged = read_json(path).get("token")
    aside = path.with_name(f".claim.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if read_json(aside).get("token") != judged:  # another launcher took it between the two checks
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()


def _last_metrics(run: RunFiles) -> tuple[int, dict, float]:
    """Returns the last step, the last validation and the seconds of training in metrics.jsonl."""
    try:
        lines = run.metrics(_TAIL_BYTES)
    except UserError:  # a damaged file: the run itself reports it
        lines = []
    step = 0
    valid: dict = {}
    seconds = 0.0
    for line in lines:
        if line["split"] == "test":
            continue
        step = line["step"]
        seconds = line.get("seconds", seconds)
        if line["split"] == "valid":
            valid = line
    return step, valid, seconds
