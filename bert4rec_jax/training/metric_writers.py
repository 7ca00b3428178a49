# SPDX-License-Identifier: Apache-2.0
"""Where numbers go while a run is under way: metrics.jsonl always, a progress bar, trackers that were asked for."""

import contextlib
import hashlib
import json
import math
import os
import sys
import time

from tqdm import tqdm

from bert4rec_jax.config import TrainConfig
from bert4rec_jax.errors import SaveError, UserError
from bert4rec_jax.files import replacing
from bert4rec_jax.progress import LINE_SECONDS
from bert4rec_jax.training.run_directory import RunDirectory

_SHOWN = ("loss", "ndcg@10", "hr@10")
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left, {rate_fmt}{postfix}]"


class MetricWriter:
    """Writes metrics; a context manager.

    On opening, lines of steps beyond `step` are cut off: a run that goes on from a checkpoint writes them again, so
    metrics.jsonl has neither gaps nor repeats.

    Attributes:
      speaks: whether this is the process that writes the run's files and speaks to people.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: TrainConfig,
        tokens_per_step: float,
        step: int,
        validation_due: bool = False,
    ):
        """Opens the writers.

        Args:
          run: the run directory.
          config: names the trackers and the length of the run.
          tokens_per_step: items that a step learns from, on average.
          step: updates done.
          validation_due: whether `step` is to be validated again.
        """
        self.speaks = run.writes
        self._steps, self._tokens_per_step, self._shown = config.steps, tokens_per_step, {}
        self._first: tuple[int, float] | None = (
            None  # step and seconds at the first call of show_progress
        )
        self._last_line = 0.0  # when a line was last printed
        self._file, self._trackers, self._bar = None, [], None
        if not self.speaks:
            return
        self._folder = str(run.files.folder)
        path = str(run.files.metrics_path)
        _cut(path, step, validation_due)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._trackers = [
            _tracker(name.strip(), run) for name in config.writers.split(",") if name.strip()
        ]
        if step:
            print(f"continuing at step {step}", file=sys.stderr)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            with contextlib.suppress(OSError):  # what could not be written has been said by `write`
                self._file.close()
        for tracker in self._trackers:
            tracker.close()
        if self._bar is not None:
            self._bar.close()

    def write(self, step: int, split: str, seconds: float, values: dict) -> None:
        """Writes one line: `step`, `split` (train, valid or test), `seconds` of training so far, values.

        Raises:
          SaveError: the disk is full or not writable.
        """
        if not self.speaks:
            return
        # JSON knows no NaN.
        values = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = (
            json.dumps({"step": step, "split": split, "seconds": round(seconds, 3), **values})
            + "\n"
        )
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise SaveError(
                f"metrics.jsonl in {self._folder} cannot be written", SaveError.reason(error)
            ) from error
        values = {name: value for name, value in values.items() if value is not None}
        for tracker in self._trackers:
            tracker.log(step, {f"{split}/{name}": value for name, value in values.items()})
        prefix = "" if split == "train" else f"{split} "
        self._shown |= {prefix + name: values[name] for name in _SHOWN if name in values}

    def show_progress(self, step: int, seconds: float) -> None:
        """Moves the bar, or prints a line now and then where there is no terminal.

        Args:
          step: updates done.
          seconds: training time so far, validation left out.
        """
        if not self.speaks:
            return
        if self._first is None:  # estimates start after the first step, which was compiled
            self._first, self._last_line = (step, seconds), time.monotonic()
            if sys.stderr.isatty():
                self._bar = tqdm(
                    total=self._steps,
                    initial=step,
                    unit="step",
                    dynamic_ncols=True,
                    bar_format=_BAR,
                )
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self._shown.items())
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(
                "  ".join(shown.split("  ")[:2]), refresh=False
            )  # 80 columns have room for two
        elif time.monotonic() - self._last_line > LINE_SECONDS or step == self._steps:
            self._last_line = time.monotonic()
            first_step, first_seconds = self._first
            speed = (step - first_step) / (seconds - first_seconds) if step > first_step else None
            timing = (
                ""
                if not speed
                else (
                    f"{speed:.2f} steps/s  {speed * self._tokens_per_step:,.0f} tokens/s  "
                    f"{(self._steps - step) / speed:.0f} s left  "
                )
            )
            print(f"step {step}/{self._steps}  {timing}{shown}", file=sys.stderr)


def write_test_line(path: str, step: int, seconds: float, values: dict) -> None:
    """Makes the test metrics the last line of metrics.jsonl; an earlier test line goes."""
    line = (
        json.dumps({"step": step, "split": "test", "seconds": round(seconds, 3), **values}) + "\n"
    )
    _rewrite(path, lambda entry: entry["split"] != "test", line)


def _cut(path: str, step: int, validation_due: bool) -> None:
    """Drops lines of later steps, test lines, and a last line that was not written whole."""

    def keep(entry: dict) -> bool:
        repeated = validation_due and entry["step"] == step and entry["split"] == "valid"
        return entry["step"] <= step and entry["split"] != "test" and not repeated

    _rewrite(path, keep, "")


def _rewrite(path: str, keep, end: str) -> None:
    kept, lines = [], []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            lines = file.readlines()
    for line in lines:
        try:
            if line.endswith("\n") and keep(json.loads(line)):
                kept.append(line)
        except (ValueError, KeyError):
            continue
    with replacing(path) as file:
        file.writelines([*kept, end])


def _tracker(name: str, run: RunDirectory):
    kinds = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow}
    try:
        return kinds[name](run)
    except ImportError:
        raise UserError(
            f"config.train.writers = {name!r} needs a package: pip install 'bert4rec_jax[{name}]'."
        ) from None


class _TensorBoard:
    def __init__(self, run: RunDirectory):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(run.files.folder / "tensorboard"))

    def log(self, step: int, values: dict) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, run: RunDirectory):
        import wandb

        folder = run.files.folder
        # Trials of all sweeps are called 000, 001, ...: their paths tell them apart.
        identity = hashlib.sha256(f"{folder}/".encode()).hexdigest()[:16]
        self._run = wandb.init(
            project="bert4rec_jax", name=folder.name, id=identity, resume="allow", dir=str(folder)
        )

    def log(self, step: int, values: dict) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, run: RunDirectory):
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment("bert4rec_jax")
        mlflow.start_run(run_name=run.files.folder.name)

    def log(self, step: int, values: dict) -> None:
        self._mlflow.log_metrics(
            {name.replace("@", "_at_"): value for name, value in values.items()}, step=step
        )

    def close(self) -> None:
        self._mlflow.end_run()
