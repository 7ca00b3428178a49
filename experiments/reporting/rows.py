# SPDX-License-Identifier: Apache-2.0
"""Groups runs into the rows of a table: one row per setting or baseline, one value per seed."""

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
            known = run.results.get(split, {})
            if metric not in known:
                metrics = ", ".join(known) or "no metrics of this split"
                raise UserError(f"{run.path} lacks {split} {metric}; it has {metrics}.")
        return np.array([run.results[split][metric] for run in self.runs], np.float64)

    def ranks(self, run: Run) -> np.ndarray:
        """Returns [cases], the ranks of this row's model in one of its runs."""
        return run.ranks[f"{self.baseline}_rank" if self.baseline else "rank"]

    def per_case(self, metric: str) -> np.ndarray:
        """Returns float64[cases, runs], the metric of each test case in every run."""
        return np.stack([per_user(metric, self.ranks(run)) for run in self.runs], axis=1)

    def per_user(self, metric: str) -> np.ndarray:
        """Returns float64[users, runs], the mean over the cases of each user.

        The cases of a user are not independent, so they are one observation.
        """
        _, users = np.unique(self.runs[0].ranks["user"], return_inverse=True)
        counts = np.bincount(users)
        means = [np.bincount(users, values) / counts for values in self.per_case(metric).T]
        return np.stack(means, axis=1)

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
    found = _baseline_rows(runs)
    commons = {}
    for model, settings in _runs_by_setting(runs).items():
        fields = [group[0].fields for group in settings]
        varying = [
            name
            for name in fields[0]
            if not name.startswith(_NOT_A_SETTING)
            and len({repr(values.get(name)) for values in fields}) > 1
        ]
        common = {}
        if len(varying) > 2:
            # Among equally common values, the first run decides: an ablation starts with its base.
            for name in varying:
                counts = Counter(values[name] for values in fields)
                common[name] = counts.most_common(1)[0][0]
            commons[model] = common
        for group, values in zip(settings, fields):
            _require_distinct_seeds(group)
            changes = {
                name: values[name]
                for name in varying
                if name not in common or values[name] != common[name]
            }
            title = ", ".join([model, *describe(changes, varying)])
            found.append(Row(title, tuple(group), "", changes))
    return found, commons


def _runs_by_setting(runs: Sequence[Run]) -> dict[str, list[list[Run]]]:
    """Returns, per model, the runs of each setting in the order of their seeds."""
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        setting = {
            name: value for name, value in run.fields.items() if not name.startswith(_NOT_A_SETTING)
        }
        settings = groups.setdefault(run.results["model"], {})
        settings.setdefault(json.dumps(setting, sort_keys=True), []).append(run)
    return {
        model: [sorted(group, key=lambda run: run.seed) for group in settings.values()]
        for model, settings in groups.items()
    }


def describe(changes: dict, among: Sequence[str]) -> list[str]:
    """Returns fields as `width=64`, with their groups if `among` has two fields of one name.

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
    exact = [row for row in found if row.name == name]
    matches = exact or [row for row in found if name in row.name]
    if len(matches) != 1:
        names = "; ".join(row.name for row in found)
        raise UserError(f"--baseline {name!r} matches {len(matches)} rows; the rows are: {names}.")
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
