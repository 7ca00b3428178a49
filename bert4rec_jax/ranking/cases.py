# SPDX-License-Identifier: Apache-2.0
"""What is ranked, how it came out, and the sentence that says under which protocol."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bert4rec_jax.config import EvalConfig
from bert4rec_jax.data import Split


class Cases(NamedTuple):
    """What is ranked: for each case a history items[start:target] and the item at `target`.

    Attributes:
      users: int32[n].
      starts: int64[n], first event of the history.
      targets: int64[n], event to predict.
    """

    users: np.ndarray
    starts: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """The outcome for each case.

    Attributes:
      greater: int32[n], candidates that score higher than the target.
      ties: int32[n], other candidates that score the same.
      candidates: int32[n], items that were ranked, the target included.
      top: int32[n, k] best candidates, 0 where there are fewer than k; or None.
    """

    greater: np.ndarray
    ties: np.ndarray
    candidates: np.ndarray
    top: np.ndarray | None = None

    def ranks(self, ties: str) -> np.ndarray:
        """Returns 1-based ranks: behind all ties (`pessimistic`), or in their middle (`expected`)."""
        if ties == "pessimistic":
            return 1 + self.greater + self.ties
        return 1 + self.greater + self.ties / 2


def protocol(config: EvalConfig, split: Split) -> str:
    """Returns the sentence that goes with every number."""
    candidates = {"full": "ranked against the whole catalogue",
                  "pop100": "ranked against 100 negatives drawn by training popularity, never interacted with",
                  "uni100": "ranked against 100 negatives drawn uniformly, never interacted with"}[config.protocol]
    seen = "seen items removed" if config.filter_seen or config.protocol != "full" else "seen items kept"
    ties = {"pessimistic": "the target ranks behind all ties", "expected": "the target ranks in the middle of ties"}
    return f"{split.description}; {candidates}, {seen}; {ties[config.ties]}; one target a user"
