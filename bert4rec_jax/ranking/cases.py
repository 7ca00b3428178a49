# SPDX-License-Identifier: Apache-2.0
"""The cases to rank, the outcome of ranking them, and the description of the protocol."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from bert4rec_jax.config import EvalConfig
from bert4rec_jax.data import Dataset, Split, split_by_size
from bert4rec_jax.ranking.history_spans import HistorySpans

_CASES_PER_BLOCK = 1 << 16


class Cases(NamedTuple):
    """The events to predict: for each case a history items[start:target] and the item at `target`.

    Attributes:
      users: int32[n].
      starts: int64[n], first event of the history.
      targets: int64[n], event to predict.
    """

    users: np.ndarray
    starts: np.ndarray
    targets: np.ndarray

    def spans(self, dataset: Dataset) -> HistorySpans:
        """Returns the histories of all cases."""
        return HistorySpans(dataset.items, self.starts, self.targets)

    def target_items(
        self, dataset: Dataset, chosen: np.ndarray | slice = slice(None)
    ) -> np.ndarray:
        """Returns the item to predict in each chosen case, int32."""
        return np.asarray(dataset.items[self.targets[chosen]], np.int32)

    def blocks(
        self, chosen: np.ndarray | None = None, most: int = _CASES_PER_BLOCK
    ) -> Iterator[np.ndarray]:
        """Splits the chosen cases, or all, into blocks with a bounded number of events.

        Args:
          chosen: int64, numbers of cases; None: all.
          most: largest number of cases in a block.

        Yields:
          Numbers of cases, int64.
        """
        if chosen is None:
            chosen = np.arange(len(self.users))
        lengths = self.targets[chosen] - self.starts[chosen]
        for first, last in split_by_size(np.append(0, np.cumsum(lengths))):
            for begin in range(first, last, most):
                yield chosen[begin : min(begin + most, last)]


@dataclass(frozen=True)
class Ranking:
    """The outcome for each case.

    Attributes:
      greater: int32[n], candidates that score higher than the target.
      ties: int32[n], other candidates with the same score.
      candidates: int32[n], number of ranked items, including the target.
      top: int32[n, k], best candidates, 0 if there are fewer than k; or None.
      negatives: int32[n, S], sampled candidates. S = 0 if all items are candidates. None for the
        baselines.
    """

    greater: np.ndarray
    ties: np.ndarray
    candidates: np.ndarray
    top: np.ndarray | None = None
    negatives: np.ndarray | None = None

    def ranks(self, ties: str) -> np.ndarray:
        """Returns ranks from 1: after all ties (`pessimistic`) or in their middle (`expected`)."""
        if ties == "pessimistic":
            return 1 + self.greater + self.ties
        return 1 + self.greater + self.ties / 2

    def force_last(self, chosen: np.ndarray) -> "Ranking":
        """Returns the outcome with the target of each chosen case, bool[n], after all
        candidates.
        """
        return replace(
            self,
            greater=np.where(chosen, self.candidates - 1, self.greater),
            ties=np.where(chosen, 0, self.ties),
        )


def repeated_targets(dataset: Dataset, cases: Cases) -> np.ndarray:
    """Returns bool[n], whether the history of each case contains its target."""
    result = np.zeros(len(cases.users), bool)
    spans = cases.spans(dataset)
    for chosen in cases.blocks():
        index, items = spans.events(chosen)
        is_target = items == cases.target_items(dataset, chosen)[index]
        result[chosen[index[is_target]]] = True
    return result


def ranks_last(config: EvalConfig, dataset: Dataset, cases: Cases) -> np.ndarray:
    """Returns bool[n], whether a target ranks last because the user has seen it, see
    `eval.seen_targets`.
    """
    if config.protocol == "full" and config.filter_seen and config.seen_targets == "rank_last":
        return repeated_targets(dataset, cases)
    return np.zeros(len(cases.users), bool)


def tied_targets(dataset: Dataset, cases: Cases) -> np.ndarray | None:
    """Returns bool[n]: whether a target has the time of the event before it, or None for data
    without times.

    Which of the two is predicted is then a matter of the order in the file, which a model may
    learn.
    """
    if dataset.timestamps is None:
        return None
    return (cases.targets > cases.starts) & (
        dataset.timestamps[cases.targets] == dataset.timestamps[np.maximum(cases.targets - 1, 0)]
    )


def digest(dataset: Dataset, cases: Cases, ranking: Ranking) -> str:
    """Returns 16 hex digits that tell whether two runs ranked the same: users, targets, candidates,
    negatives.
    """
    content = hashlib.sha256()
    arrays: tuple[Any, ...] = (
        cases.users,
        dataset.items[cases.targets],
        cases.targets - cases.starts,
        ranking.candidates,
        ranking.negatives,
    )
    for array in arrays:
        for first in range(0, len(array), _CASES_PER_BLOCK):
            content.update(
                np.ascontiguousarray(array[first : first + _CASES_PER_BLOCK], np.int64).tobytes()
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
        "pop100": "ranked against 100 negatives drawn by training popularity, never interacted "
        "with",
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
