# SPDX-License-Identifier: Apache-2.0
"""The state of training in addition to the parameters and the optimizer's moments."""

from dataclasses import dataclass, field


@dataclass
class Progress:
    """How far training has come; saved as JSON in every checkpoint.

    Attributes:
      seconds: training time so far, without validation.
      best_step: step with the best validation so far, or None.
      best_value: its metric.
      waited: validations since the best one.
      losses: losses of the steps since the last line of metrics.jsonl.
      validation_due: whether a signal stopped training between a step and its validation.
    """

    seconds: float = 0.0
    best_step: int | None = None
    best_value: float = float("-inf")
    waited: int = 0
    losses: list[float] = field(default_factory=list)
    validation_due: bool = False

    def note_validation(self, step: int, value: float) -> None:
        """Records the metric of a validation; of equal values, the first is the best."""
        self.validation_due = False
        if value > self.best_value:
            self.best_step = step
            self.best_value = value
            self.waited = 0
        else:
            self.waited += 1
