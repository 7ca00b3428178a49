# SPDX-License-Identifier: Apache-2.0
"""Writes the metrics of a run to metrics.jsonl, to experiment trackers and to the terminal."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from bert4rec_jax.config import TrainConfig
from bert4rec_jax.errors import SaveError, failure_reason
from bert4rec_jax.files import replacing
from bert4rec_jax.terminal import say
from bert4rec_jax.training.run_directory import RunDirectory
from bert4rec_jax.training.trackers import Tracker, open_trackers
from bert4rec_jax.training.training_display import TrainingDisplay

_SHOWN_METRICS = ("ndcg@10", "hr@10")


class MetricWriter:
    """Writes metrics; a context manager.

    On opening, the lines of steps after `step` are removed from metrics.jsonl: a run that continues
    from a checkpoint writes them again, so the file has neither gaps nor repeats.

    Attributes:
      visible: whether this is the process of the job that writes files and prints messages.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: TrainConfig,
        tokens_per_step: float,
        step: int,
        validation_due: bool = False,
    ):
        """Opens the file and the trackers.

        Args:
          run: the run directory.
          config: names the trackers and the number of steps.
          tokens_per_step: items that a step learns from, on average.
          step: number of finished steps.
          validation_due: whether `step` will be validated again.
        """
        self.visible = run.writes
        self._path = run.files.metrics_path
        self._file: IO | None = None
        self._trackers: list[Tracker] = []
        self._display = TrainingDisplay(config.steps, tokens_per_step)
        if not self.visible:
            return
        _remove_later_lines(self._path, step, validation_due)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._trackers = open_trackers(config.writers, run.files.folder)
        if step:
            say(f"continuing at step {step}")

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            with contextlib.suppress(OSError):  # `write` has raised the error already
                self._file.close()
        for tracker in self._trackers:
            tracker.close()
        self._display.close()

    def write(self, step: int, split: str, seconds: float, values: dict[str, float]) -> None:
        """Writes one line of metrics.jsonl and passes the values to the trackers.

        Args:
          step: number of finished steps.
          split: train or valid.
          seconds: training time so far.
          values: the metrics; NaN and infinite values become null.

        Raises:
          SaveError: the disk is full or not writable.
        """
        if self._file is None:
            return
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        try:
            self._file.write(_line(step, split, seconds, dict.fromkeys(values) | finite))
            self._file.flush()
        except OSError as error:
            raise SaveError(f"{self._path} cannot be written", failure_reason(error)) from error
        named = {f"{split}/{name}": value for name, value in finite.items()}
        for tracker in self._trackers:
            tracker.log(step, named)
        if split == "train" and "loss" in finite:
            self._display.set_loss(finite["loss"])

    def show_progress(self, step: int, seconds: float) -> None:
        """Updates the progress bar, or prints a line periodically if stderr is not a terminal.

        Args:
          step: number of finished steps.
          seconds: training time so far, without validation.
        """
        if self.visible:
            self._display.update(step, seconds)

    def show_validation(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        """Prints the metrics of one validation.

        Args:
          step: the step that was validated.
          metrics: all validation metrics.
          is_best: whether this is the best validation so far.
        """
        if self.visible:
            shown = {name: metrics[name] for name in _SHOWN_METRICS if name in metrics}
            self._display.show_validation(step, shown, is_best)


def write_test_line(path: Path, step: int, seconds: float, values: dict[str, float]) -> None:
    """Makes the test metrics the last line of metrics.jsonl and removes an earlier test line."""
    _rewrite(path, lambda entry: entry["split"] != "test", _line(step, "test", seconds, values))


def _line(step: int, split: str, seconds: float, values: Mapping[str, float | None]) -> str:
    entry = {"step": step, "split": split, "seconds": round(seconds, 3), **values}
    return json.dumps(entry) + "\n"


def _remove_later_lines(path: Path, step: int, validation_due: bool) -> None:
    """Removes the lines of later steps, test lines, and an incomplete last line."""

    def keep(entry: dict) -> bool:
        if validation_due and entry["step"] == step and entry["split"] == "valid":
            return False  # this validation will be repeated
        return entry["step"] <= step and entry["split"] != "test"

    _rewrite(path, keep, "")


def _rewrite(path: Path, keep: Callable[[dict], bool], end: str) -> None:
    """Rewrites metrics.jsonl with the entries for which keep() is true, followed by `end`."""
    lines: list[str] = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            lines = file.readlines()
    kept = []
    for line in lines:
        try:
            if line.endswith("\n") and keep(json.loads(line)):
                kept.append(line)
        except (ValueError, KeyError):  # a line that was not written completely
            continue
    with replacing(path) as file:
        file.writelines([*kept, end])
