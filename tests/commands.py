# SPDX-License-Identifier: Apache-2.0
"""Runs commands in processes of their own, with a log and a model that take seconds."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = {
    "data.synthetic.users": 150,
    "data.synthetic.num_items": 60,
    "data.synthetic.genres": 5,
    "data.synthetic.mean_length": 12,
    "model.width": 16,
    "model.ffn_width": 32,
    "model.layers": 1,
    "model.max_length": 16,
    "optimizer.warmup_steps": 5,
    "optimizer.schedule": "constant",
    "train.steps": 400,
    "train.batch_rows": 8,
    "train.eval_every": 100,
    "train.checkpoint_every": 50,
    "train.log_every": 10,
    "eval.batch_rows": 8,
}
_started: list[subprocess.Popen] = []


def environment(folder, devices: int = 1, **more: str) -> dict[str, str]:
    """Returns the environment of a process whose data are in `folder`."""
    # Unoptimised code compiles in half the time.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return (
        os.environ
        | {
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "BERT4REC_DATA": str(folder / "data"),
        }
        | more
    )


def train_command(workdir, changes: dict | None = None, *flags: str) -> list[str]:
    """Returns the command of the small run with changed fields."""
    fields = SMALL | (changes or {})
    return [
        sys.executable,
        "-m",
        "bert4rec_jax.main",
        "--config",
        "configs/synthetic.py",
        "--workdir",
        str(workdir),
        *(f"--config.{name}={value}" for name, value in fields.items()),
        *flags,
    ]


def start(command: list[str], folder, devices: int = 1, **more: str) -> subprocess.Popen:
    """Starts a command; its output is text in pipes."""
    return start_with(
        command,
        env=environment(folder, devices, **more),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def start_with(command: list[str], **options) -> subprocess.Popen:
    """Starts a command in the checkout; `end_all` ends it after the test."""
    _started.append(subprocess.Popen(command, cwd=ROOT, **options))
    return _started[-1]


def end_all() -> None:
    """Ends all started processes that are still running."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


def run(command: list[str], folder, devices: int = 1, **more: str) -> subprocess.CompletedProcess:
    """Runs a command to its end."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(folder, devices, **more),
        text=True,
        capture_output=True,
        timeout=900,
        check=False,
    )


def succeed(
    command: list[str], folder, devices: int = 1, **more: str
) -> subprocess.CompletedProcess:
    """Runs a command that must succeed."""
    done = run(command, folder, devices, **more)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def user_error(command: list[str], folder, **more: str) -> str:
    """Runs a command that must end in one line on stderr and exit code 2; returns the line."""
    done = run(command, folder, **more)
    assert done.returncode == 2, (done.returncode, done.stderr[-3000:])
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and done.stderr.rstrip().endswith(lines[0]), done.stderr
    return lines[0]


def wait_for(condition, process: subprocess.Popen, seconds: float = 400) -> None:
    """Waits until condition() holds while the process runs."""
    begin = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() - begin < seconds
        time.sleep(0.01)


def metric_lines(workdir) -> list[dict]:
    """Returns the complete lines of metrics.jsonl without the times."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def outcome(workdir) -> dict:
    """Returns everything in which two equal runs must agree: results, ranks, metrics, no times."""
    workdir = pathlib.Path(workdir)
    results = json.loads((workdir / "results.json").read_text())
    for name in ("train_seconds", "eval_seconds", "users_per_second"):
        del results[name]
    with np.load(workdir / "ranks_test.npz") as file:
        ranks = {name: file[name].tolist() for name in file.files}
    return {"results": results, "ranks": ranks, "metrics": metric_lines(workdir)}


def digest(workdir, step: int) -> list[int]:
    """Returns the digest of every bit of the state in a checkpoint."""
    path = pathlib.Path(workdir) / "checkpoints" / str(step) / "progress" / "metadata"
    return json.loads(path.read_text())["digest"]
