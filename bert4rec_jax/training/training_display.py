# SPDX-License-Identifier: Apache-2.0
"""Shows the progress of training on stderr: speed, remaining time, loss and validations."""

import sys
import time

from tqdm import tqdm

from bert4rec_jax.progress import LINE_SECONDS
from bert4rec_jax.terminal import say

_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left, {rate_fmt}{postfix}]"


class TrainingDisplay:
    """A progress bar in a terminal, or an occasional line in a log."""

    def __init__(self, steps: int, tokens_per_step: float):
        """Nothing is shown yet.

        Args:
          steps: number of steps of the run.
          tokens_per_step: items that a step learns from, on average.
        """
        self._steps = steps
        self._tokens_per_step = tokens_per_step
        self._loss: float | None = None
        self._first: tuple[int, float] | None = None  # step and seconds of the first update
        self._last_line = 0.0
        self._bar: tqdm | None = None

    def set_loss(self, loss: float) -> None:
        """Sets the training loss to show."""
        self._loss = loss

    def update(self, step: int, seconds: float) -> None:
        """Moves the bar, or prints a line if the last one was printed some time ago.

        Args:
          step: number of finished steps.
          seconds: training time so far, without validation.
        """
        if self._first is None:  # the first step is left out of the speed: it includes compilation
            self._first = (step, seconds)
            self._last_line = time.monotonic()
            if sys.stderr.isatty():
                self._bar = self._open_bar(step)
        loss = "" if self._loss is None else f"loss {self._loss:.4f}"
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(loss, refresh=False)
        elif time.monotonic() - self._last_line > LINE_SECONDS or step == self._steps:
            self._last_line = time.monotonic()
            parts = [f"step {step}/{self._steps}", *self._timing(step, seconds), loss]
            say("  ".join(part for part in parts if part))

    def show_validation(self, step: int, metrics: dict[str, float], is_best: bool) -> None:
        """Prints the result of a validation.

        Args:
          step: the step that was validated.
          metrics: validation metrics to show.
          is_best: whether no earlier validation was at least as good.
        """
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        best = "  (best so far)" if is_best else ""
        say(f"step {step}/{self._steps}  validation  {values}{best}")

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def _timing(self, step: int, seconds: float) -> list[str]:
        assert self._first is not None
        first_step, first_seconds = self._first
        if step == first_step or seconds <= first_seconds:
            return []
        speed = (step - first_step) / (seconds - first_seconds)
        return [
            f"{speed:.2f} steps/s",
            f"{speed * self._tokens_per_step:,.0f} tokens/s",
            f"{(self._steps - step) / speed:.0f} s left",
        ]

    def _open_bar(self, step: int) -> tqdm:
        return tqdm(
            total=self._steps, initial=step, unit="step", dynamic_ncols=True, bar_format=_BAR
        )
