# SPDX-License-Identifier: Apache-2.0
"""The training loop: takes steps, validates and saves until the last step or early stopping."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert4rec_jax.config import TrainConfig
from bert4rec_jax.data import prefetch
from bert4rec_jax.devices import StopSignal
from bert4rec_jax.errors import Stopped, UserError
from bert4rec_jax.progress import waiting
from bert4rec_jax.training.checkpoint import Checkpoints, CheckpointState
from bert4rec_jax.training.metric_writers import MetricWriter
from bert4rec_jax.training.progress import Progress
from bert4rec_jax.training.step import TrainState


@dataclass(frozen=True)
class TrainingTask:
    """The functions that the loop calls. They hide the data and the devices from it.

    Attributes:
      update: (state, batch) -> (new state, device scalars `loss`, `grad_norm`, `targets`); it
        consumes the state.
      batch: maps a step number to its batch.
      validate: maps parameters to validation metrics; raises `Stopped` on a stop signal.
      metric: name of the metric that chooses the best step.
    """

    update: Callable[[TrainState, Any], tuple[TrainState, dict]]
    batch: Callable[[int], Any]
    validate: Callable[[Any], dict[str, float]]
    metric: str


class Loop:
    """Trains a model from a state to the last step."""

    def __init__(
        self,
        config: TrainConfig,
        task: TrainingTask,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        stop: StopSignal,
    ):
        """Takes the parts of the loop.

        Args:
          config: number of steps, and intervals between validations, checkpoints and log lines.
          task: functions for steps, batches and validations.
          checkpoints: where to save.
          writer: where to write metrics.
          stop: reports stop signals.
        """
        self._config = config
        self._task = task
        self._checkpoints = checkpoints
        self._writer = writer
        self._stop = stop

    def run(self, start: CheckpointState) -> Progress:
        """Trains from `start`, whose state is consumed, and returns the final progress.

        Raises:
          Stopped: a stop signal came; the state is saved.
          UserError: the loss or the gradient is not finite.
        """
        self._state = start.state
        self._progress = start.progress
        self._step = int(start.state.step)
        self._unread: list[tuple[int, dict]] = []  # steps whose losses are still on the device
        self._compiled = False
        with prefetch(self._task.batch, self._step, self._config.steps) as batches:
            if self._progress.validation_due:
                self._validate()
                self._save(replace=True)
            try:
                while not self._is_finished():
                    self._take_step(batches)
            except Stopped:
                self._save()
                self._checkpoints.wait()
                raise
        self._checkpoints.wait()
        return self._progress

    def _is_finished(self) -> bool:
        patience = self._config.patience
        out_of_patience = patience > 0 and self._progress.waited >= patience
        return self._step >= self._config.steps or out_of_patience

    def _take_step(self, batches: Iterator[Any]) -> None:
        """Takes one step, then logs, validates and saves if these are due.

        Raises:
          Stopped: a stop signal came.
        """
        begin = time.perf_counter()
        visible = self._writer.visible and not self._compiled
        with waiting("compiling the training step", visible):
            self._state, metrics = self._task.update(self._state, next(batches))
        self._compiled = True
        self._step += 1
        self._unread.append((self._step, metrics))
        stopping = self._stop.requested(self._step)
        validation_due = self._is_due(self._config.eval_every, at_end=True)
        self._progress.validation_due = validation_due
        validate_now = validation_due and not stopping
        save_now = validate_now or self._is_due(self._config.checkpoint_every)
        log_now = self._is_due(self._config.log_every, at_end=True)
        # The device computes this step while the host reads the loss of the step before it.
        self._read_losses(keep=0 if stopping or save_now or log_now else 1)
        self._progress.seconds += time.perf_counter() - begin
        if log_now:
            self._log(metrics)
        self._writer.show_progress(self._step, self._progress.seconds)
        if stopping:
            raise self._stop.stopped()
        if validate_now:
            self._validate()
        if save_now:
            self._save()

    def _is_due(self, every: int, at_end: bool = False) -> bool:
        return self._step % every == 0 or (at_end and self._step == self._config.steps)

    def _validate(self) -> None:
        metrics = self._task.validate(self._state.params)
        self._progress.note_validation(self._step, metrics[self._task.metric])
        is_best = self._progress.best_step == self._step
        self._writer.write(self._step, "valid", self._progress.seconds, metrics)
        self._writer.show_validation(self._step, metrics, is_best)

    def _save(self, replace: bool = False) -> None:
        saved = CheckpointState(self._state, self._progress)
        self._checkpoints.save(self._step, saved, replace)

    def _log(self, metrics: dict) -> None:
        """Writes the mean loss since the last line, and the other numbers of the newest step."""
        values = {
            "loss": _finite_mean(self._progress.losses),
            "grad_norm": float(metrics["grad_norm"]),
            "targets": float(metrics["targets"]),
            "skipped": int(self._state.skipped),
        }
        self._writer.write(self._step, "train", self._progress.seconds, values)
        self._progress.losses = []

    def _read_losses(self, keep: int) -> None:
        """Reads the losses of all steps except the newest `keep`, and waits for those steps."""
        while len(self._unread) > keep:
            step, metrics = self._unread.pop(0)
            loss = float(metrics["loss"])
            norm = float(metrics["grad_norm"])
            if self._config.on_nan == "stop" and not np.isfinite(loss + norm):
                raise self._diverged(step, loss, norm)
            self._progress.losses.append(loss)

    def _diverged(self, step: int, loss: float, norm: float) -> UserError:
        self._checkpoints.wait()
        last = max(self._checkpoints.steps(), default=None)
        where = (
            f"the last good checkpoint is of step {last}" if last else "no checkpoint exists yet"
        )
        return UserError(
            f"step {step}: the loss is {loss} and the gradient norm is {norm}; {where}. Lower "
            "config.optimizer.learning_rate, set config.optimizer.clip_norm, or skip such steps "
            "with config.train.on_nan=skip."
        )


def _finite_mean(losses: list[float]) -> float:
    """Returns the mean of the finite losses, or NaN if none is finite."""
    finite = [loss for loss in losses if np.isfinite(loss)]
    return sum(finite) / len(finite) if finite else float("nan")
