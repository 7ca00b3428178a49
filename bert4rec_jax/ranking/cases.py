# SPDX-License-Identifier: Apache-2.0
"""What is ranked, how it came out, and the sentence that says under which protocol."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from bert4rec_jax.config import EvalConfig
from bert4rec_jax.data import Dataset, Split, expand_ranges, split_by_size

_CASES_AT_ONCE = 1 << 16


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

    def events(self, items: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (place among the `chosen` numbers of cases, item) of every event of their histories, in order.

        Args:
          items: int32, the log.
          chosen: int64[c].
        """
        place, position = expand_ranges(self.starts[chosen], self.targets[chosen])
        return place, items[position]

    def blocks(
        self, chosen: np.ndarray | None = None, most: int = _CASES_AT_ONCE
    ) -> Iterator[np.ndarray]:
        """Yields numbers of cases, of the `chosen` ones or of all, as many at once as have few events in all."""
        chosen = np.arange(len(self.users)) if chosen is None else chosen
        ends = np.cumsum(self.targets[chosen] - self.starts[chosen])
        for first, last in split_by_size(np.append(0, ends)):
            for begin in range(first, last, most):
                yield chosen[begin : min(begin + most, last)]


@dataclass(frozen=True)
class Ranking:
    """The outcome for each case.

    Attributes:
      greater: int32[n], candidates that score higher than the target.
      ties: int32[n], other candidates that score the same.
      candidates: int32[n], items that were ranked, the target included.
      top: int32[n, k] best candidates, 0 where there are fewer than k; or None.
      negatives: int32[n, C] sampled candidates; C = 0 where all items are. None for the baselines.
    """

    greater: np.ndarray
    ties: np.ndarray
    candidates: np.ndarray
    top: np.ndarray | None = None
    negatives: np.ndarray | None = None

    def ranks(self, ties: str) -> np.ndarray:
        """Returns 1-based ranks: behind all ties (`pessimistic`), or in their middle (`expected`)."""
        if ties == "pessimistic":
            return 1 + self.greater + self.ties
        return 1 + self.greater + self.ties / 2

    def with_last(self, chosen: np.ndarray) -> "Ranking":
        """Returns the outcome with the chosen cases, bool[n], behind all their candidates."""
        return replace(
            self,
            greater=np.where(chosen, self.candidates - 1, self.greater),
            ties=np.where(chosen, 0, self.ties),
        )


def repeated_targets(dataset: Dataset, cases: Cases) -> np.ndarray:
    """Returns bool[n]: whether the user has met the item to predict before."""
    result = np.zeros(len(cases.users), bool)
    for chosen in cases.blocks():
        place, item = cases.events(dataset.items, chosen)
        result[chosen[place[item == dataset.items[cases.targets[chosen]][place]]]] = True
    return result


def ranks_last(config: EvalConfig, dataset: Dataset, cases: Cases) -> np.ndarray:
    """Returns bool[n]: whose target ranks last because the user has met it before, see `eval.seen_targets`."""
    if config.protocol == "full" and config.filter_seen and config.seen_targets == "rank_last":
        return repeated_targets(dataset, cases)
    return np.zeros(len(cases.users), bool)


def tied_targets(dataset: Dataset, cases: Cases) -> np.ndarray | None:
    """Returns bool[n]: whether a target has the time of the event before it, or None where there are no times.

    Which of the two is predicted is then a matter of the order in the file, which a model may learn.
    """
    if dataset.timestamps is None:
        return None
    return (cases.targets > cases.starts) & (
        dataset.timestamps[cases.targets] == dataset.timestamps[np.maximum(cases.targets - 1, 0)]
    )


def digest(dataset: Dataset, cases: Cases, ranking: Ranking) -> str:
    """Returns 16 hex digits that tell whether two runs ranked the same: users, targets, candidates, negatives."""
    content = hashlib.sha256()
    for array in (
        cases.users,
        dataset.items[cases.targets],
        cases.targets - cases.starts,
        ranking.candidates,
        ranking.negatives,
    ):
        for first in range(0, len(array), _CASES_AT_ONCE):
            content.update(
                np.ascontiguousarray(array[first : first + _CASES_AT_ONCE], np.int64).tobytes()
            )
    return content.hexdigest()[:16]


def protocol(config: EvalConfig, split: Split, repeated: int) -> str:
    """Returns the sentence that goes with every number.

    Args:
      config: how cases are ranked.
      split: where they come from.
      repeated: how many targets their users have met before.
    """
    candidates = {
        "full": "ranked against the whole catalogue",
        "pop100": "ranked against 100 negatives drawn by training popularity, never interacted with",
        "uni100": "ranked against 100 negatives drawn uniformly, never interacted with",
    }[config.protocol]
    seen = (
        "seen items removed"
        if config.filter_seen or config.protocol != "full"
        else "seen items kept"
    )
    if repeated and config.protocol == "full" and config.filter_seen:
        seen += {
            "rank_last": f", and {repeated} targets among them, which rank last",
            "keep": f", but for {repeated} targets among them",
        }[config.seen_targets]
    elif repeated:
        seen += f", {repeated} targets among them"
    ties = {
        "pessimistic": "the target ranks behind all ties",
        "expected": "the target ranks in the middle of ties",
    }
    return f"{split.description}; {candidates}, {seen}; {ties[config.ties]}; one target a user"
