# SPDX-License-Identifier: Apache-2.0
"""Runs grouped into the rows of a table: one row per setting, one value per seed;
a baseline is a row of one run.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert4rec_jax.config import NOT_IDENTITY
from bert4rec_jax.errors import UserError
from bert4rec_jax.ranking.metrics import per_user
from experiments.reporting import statistics
from experiments.reporting.records import Run

_NOT_A_SETTING = ("seed", *NOT_IDENTITY)


@dataclass(frozen=True)
class Row:
    """A model in one setting, or a baseline.

    Attributes:
      name: as shown.
      runs: one per seed; of a baseline, which depends on no seed, one.
      baseline: empty, or which of the runs' baselines this is.
      changes: dotted fields in which the row differs from others of its model.
    """

    name: str
    runs: tuple[Run, ...]
    baseline: str
    changes: dict

    def values(self, metric: str, split: str) -> np.ndarray:
        """Returns float64[runs], one metric per seed; nan if a baseline lacks it.

        Args:
          metric: such as ndcg@10.
          split: part of results.json: test, valid, test_tied or test_untied.

        Raises:
          UserError: a run lacks the metric.
        """
        if self.baseline:
            parts = [run.results["baselines"][self.baseline].get(split, {}) for run in self.runs]
            return np.array([part.get(metric, np.nan) for part in parts], np.float64)
        for run in self.runs:
            if metric not in (known := run.results.get(split, {})):
                raise UserError(
                    f"{run.path} lacks {split} {metric}; it has "
                    f"{', '.join(known) or 'no metrics of this split'}."
                )
        return np.array([run.results[split][metric] for run in self.runs], np.float64)

    def ranks(self, run: Run) -> np.ndarray:
        """Returns [cases], the ranks of this row's model in one of its runs."""
        return run.ranks[f"{self.baseline}_rank" if self.baseline else "rank"]

    def per_case(self, metric: str) -> np.ndarray:
        """Returns float64[cases, runs], the metric of each test case in every run."""
        return np.stack([per_user(metric, self.ranks(run)) for run in self.runs], axis=1)

    def per_user(self, metric: str) -> np.ndarray:
        """Returns float64[users, runs]. A user's cases are not independent,
        so their mean is one observation.
        """
        _, places = np.unique(self.runs[0].ranks["user"], return_inverse=True)
        counts = np.bincount(places)
        return np.stack(
            [np.bincount(places, case) / counts for case in self.per_case(metric).T], axis=1
        )

    def users_error(self, metric: str) -> float:
        """Returns the standard error of one run's metric over users."""
        return statistics.users_error(self.per_user(metric))


def rows(runs: Sequence[Run]) -> tuple[list[Row], dict]:
    """Groups runs of one data set into rows; the baselines come first.

    If up to two fields vary within a model, its rows name them all; otherwise a row names the
    fields that differ from their most common value.

    Returns:
      The rows, and per model the most common values that its rows omit (empty if none are omitted).

    Raises:
      UserError: two runs of one setting have the same seed, or a baseline differs between two runs.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        setting = {k: v for k, v in run.fields.items() if not k.startswith(_NOT_A_SETTING)}
        groups.setdefault((run.results["model"], json.dumps(setting, sort_keys=True)), []).append(
            run
        )
    found, commons = _baseline_rows(runs), {}
    for model in dict.fromkeys(key[0] for key in groups):
        own = [
            sorted(group, key=lambda run: run.seed)
            for key, group in groups.items()
            if key[0] == model
        ]
        varying = [
            name
            for name in own[0][0].fields
            if not name.startswith(_NOT_A_SETTING)
            and len({repr(group[0].fields.get(name)) for group in own}) > 1
        ]
        common = {}
        if len(varying) > 2:
            # Among equally common values, the first run decides: an ablation starts with its base.
            common = {n: Counter(g[0].fields[n] for g in own).most_common(1)[0][0] for n in varying}
            commons[model] = common
        for group in own:
            _require_distinct_seeds(group)
            changes = {
                n: group[0].fields[n]
                for n in varying
                if n not in common or group[0].fields[n] != common[n]
            }
            found.append(
                Row(", ".join([model, *describe(changes, varying)]), tuple(group), "", changes)
            )
    return found, commons


def describe(changes: dict, among: Sequence[str]) -> list[str]:
    """Returns fields as `width=64`, with the group's name only if `among` has two fields of
    that name.

    A field called `name` is shown as its group: `loss=gbce`.
    """
    short = {name: name.removesuffix(".name").rpartition(".")[2] for name in among}
    counts = Counter(short.values())
    return [
        f"{short[name] if counts[short[name]] == 1 else name}={value}"
        for name, value in changes.items()
    ]


def find_row(found: Sequence[Row], name: str) -> Row:
    """Returns the row with this name, or the only one whose name contains it.

    Raises:
      UserError: no row matches, or several do.
    """
    matches = [row for row in found if row.name == name] or [
        row for row in found if name in row.name
    ]
    if len(matches) != 1:
        raise UserError(
            f"--baseline {name!r} matches {len(matches)} rows; the rows are: "
            + "; ".join(row.name for row in found)
            + "."
        )
    return matches[0]


def _baseline_rows(runs: Sequence[Run]) -> list[Row]:
    """Returns the baselines. They do not depend on a seed, so each is one row for all runs."""
    first: dict[str, Run] = {}
    for run in runs:
        for name in run.results.get("baselines", {}):
            other = first.setdefault(name, run)
            if not np.array_equal(run.ranks[f"{name}_rank"], other.ranks[f"{name}_rank"]):
                raise UserError(
                    f"the baseline {name} differs between {other.path} and {run.path}: they ranked "
                    "different candidates or used different versions. Report them separately, or "
                    "run one again."
                )
    return [Row(name, (run,), name, {}) for name, run in first.items()]


def _require_distinct_seeds(runs: Sequence[Run]) -> None:
    for first, second in itertools.pairwise(runs):
        if first.seed == second.seed:
            raise UserError(
                f"{first.path} and {second.path} are the same setting with the same seed; "
                "remove one, or it counts twice."
            )
