# SPDX-License-Identifier: Apache-2.0
"""What training remembers beside parameters and moments."""

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Goes into the checkpoint as JSON.

    Attributes:
      seconds: spent training, validation left out.
      best_step: with the best validation so far, or None.
      best_value: its metric.
      waited: validations since.
      losses: of the steps since the last line of metrics.jsonl.
      validation_due: a signal came between this step and its validation.
    """

    seconds: float = 0.0
    best_step: int | None = None
    best_value: float = float("-inf")
    waited: int = 0
    losses: list[float] = field(default_factory=list)
    validation_due: bool = False

    def note_validation(self, step: int, value: float) -> None:
        """Notes the metric of a validation at `step`; the first of equals stays the best."""
        self.validation_due = False
        if value > self.best_value:
            self.best_step, self.best_value, self.waited = step, value, 0
        else:
            self.waited += 1
