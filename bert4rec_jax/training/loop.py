# SPDX-License-Identifier: Apache-2.0
"""The loop around the step: batches in, checkpoints and metrics out, until the steps or the patience are used up.

In each round: take the step, look at the losses that are ready, validate when due, save. A signal stops the loop after
a step, with everything saved.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bert4rec_jax.config import TrainConfig
from bert4rec_jax.data import prefetch
from bert4rec_jax.devices import StopSignal
from bert4rec_jax.errors import UserError
from bert4rec_jax.progress import waiting
from bert4rec_jax.training.checkpoint import Checkpoints
from bert4rec_jax.training.metric_writers import MetricWriter
from bert4rec_jax.training.progress import Progress
from bert4rec_jax.training.step import TrainState


class Loop:
    """Trains; its parts are functions, so that it knows neither data nor devices."""

    def __init__(
        self,
        config: TrainConfig,
        update: Callable[[TrainState, Any], tuple[TrainState, dict]],
        batch: Callable[[int], Any],
        validate: Callable[[Any], dict[str, float] | None],
        metric: str,
        checkpoints: Checkpoints,
        writer: MetricWriter,
        stop: StopSignal,
    ):
        """Holds the parts.

        Args:
          config: length and cadence.
          update: (state, batch) -> (new state, device scalars `loss`, `grad_norm`, `targets`); consumes the state.
          batch: maps a step number to its batch.
          validate: maps parameters to metrics, or to None when a signal came in between.
          metric: the one that chooses the best step.
          checkpoints: where to save.
          writer: where numbers go.
          stop: says whether a signal came.
        """
        self._config, self._update, self._batch, self._validate, self._metric = (
            config,
            update,
            batch,
            validate,
            metric,
        )
        self._checkpoints, self._writer, self._stop = checkpoints, writer, stop

    def run(self, state: TrainState, progress: Progress) -> bool:
        """Takes steps from `state` on, which it consumes; False when stopped by a signal."""
        c, step = self._config, int(state.step)
        under_way = []  # (step, device scalars) of steps that may still be running
        with prefetch(self._batch, step, c.steps) as batches:
            if progress.validation_due:
                if not self._validated(state, step, progress):
                    return False
                self._checkpoints.save(
                    step, state, vars(progress), progress.best_step, replace=True
                )
            begin, compiled = time.perf_counter(), False
            while step < c.steps and not (c.patience and progress.waited >= c.patience):
                with waiting("compiling the training step", self._writer.speaks and not compiled):
                    state, metrics = self._update(state, next(batches))
                step, compiled = step + 1, True
                under_way.append((step, metrics))
                stopping = self._stop.requested(step)
                progress.validation_due = step % c.eval_every == 0 or step == c.steps
                validating = progress.validation_due and not stopping
                saving = stopping or validating or step % c.checkpoint_every == 0
                logging_now = step % c.log_every == 0 or step == c.steps
                # The device works on this step while the host looks at the one before it.
                while len(under_way) > (0 if saving or logging_now else 1):
                    progress.losses.append(self._checked_loss(*under_way.pop(0)))
                progress.seconds += time.perf_counter() - begin
                if logging_now:
                    self._writer.write(
                        step,
                        "train",
                        progress.seconds,
                        {
                            "loss": _finite_mean(progress.losses),
                            "grad_norm": float(metrics["grad_norm"]),
                            "targets": float(metrics["targets"]),
                            "skipped": int(state.skipped),
                        },
                    )
                    progress.losses = []
                self._writer.show_progress(step, progress.seconds)
                if validating:
                    stopping = not self._validated(state, step, progress)
                if saving:
                    self._checkpoints.save(step, state, vars(progress), progress.best_step)
                if stopping:
                    self._checkpoints.wait()
                    return False
                begin = time.perf_counter()
        self._checkpoints.wait()
        return True

    def _validated(self, state: TrainState, step: int, progress: Progress) -> bool:
        """Validates and notes whether this is the best step; False when a signal came in between."""
        metrics = self._validate(state.params)
        if metrics is None:
            return False
        self._writer.write(step, "valid", progress.seconds, metrics)
        progress.note_validation(step, metrics[self._metric])
        return True

    def _checked_loss(self, step: int, metrics: dict) -> float:
        """Waits for a step and returns its loss; one that is not finite ends the run unless it is to be skipped."""
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if self._config.on_nan == "stop" and not np.isfinite(loss + norm):
            self._checkpoints.wait()
            last = max(self._checkpoints.steps(), default=None)
            where = (
                f"the last good checkpoint is that of step {last}"
                if last
                else "there is no checkpoint yet"
            )
            raise UserError(
                f"step {step}: the loss is {loss} and the gradient's norm {norm}; {where}. Lower "
                "config.optimizer.learning_rate, set config.optimizer.clip_norm, or leave such steps out "
                "with config.train.on_nan=skip."
            )
        return loss


def _finite_mean(losses: list[float]) -> float:
    """Returns the mean of those that are finite, NaN where none is."""
    finite = [loss for loss in losses if np.isfinite(loss)]
    return sum(finite) / len(finite) if finite else float("nan")
