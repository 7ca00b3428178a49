# SPDX-License-Identifier: Apache-2.0
"""Builds the table of a data set from its runs: means over seeds, best and second, paired significance.

What is built here is independent of the format; `rendering` writes it as Markdown, LaTeX, CSV and HTML.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert4rec_jax.errors import UserError
from bert4rec_jax.ranking.metrics import from_ranks
from experiments.reporting import statistics
from experiments.reporting.records import Row, Run, describe, item_digest, rows

PER_USER = re.compile(r"mrr|(ndcg|hr|recall|mrr|map)@\d+")
# More popular recommendations are neither better nor worse.
_UNDIRECTED = ("popularity",)


@dataclass(frozen=True)
class Options:
    """What decides a table beside its runs; written into it, so that it can be checked.

    Attributes:
      metrics: columns.
      split: `test` or `valid`.
      baseline: row that the others are compared with; empty for no comparison.
      spread: `sd` or `se` behind the means.
      alpha: level of significance.
      resamples: of the bootstrap.
      digits: after the point.
    """

    metrics: tuple[str, ...] = ("ndcg@10", "hr@10", "mrr")
    split: str = "test"
    baseline: str = ""
    spread: str = "sd"
    alpha: float = 0.05
    resamples: int = 10_000
    digits: int = 4


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Attributes:
      mean: over seeds; nan where a baseline does not have the metric.
      sd: standard deviation over seeds; nan with one seed.
      se: standard error of the mean; nan with one seed.
      place: 1 for the best in its column, 2 for the second, else 0.
      significant: both corrected tests tell it from the baseline.
    """

    mean: float
    sd: float
    se: float
    place: int
    significant: bool


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline on one metric, paired over users.

    Attributes:
      row: name of the row.
      metric: name of the metric.
      difference: mean over users of the difference of means over seeds.
      low: low end of the 95 % bootstrap interval.
      high: high end.
      p_t: of the paired t-test, corrected by Holm's method over the whole table.
      p_bootstrap: of the bootstrap, corrected likewise.
    """

    row: str
    metric: str
    difference: float
    low: float
    high: float
    p_t: float
    p_bootstrap: float


@dataclass(frozen=True)
class Table:
    """The table of one data set.

    Attributes:
      name: of the data set.
      options: what it was made with.
      rows: of the table.
      cells: [rows][metrics].
      comparisons: with the baseline; empty without one.
      notes: sentences below the table.
      reproducibility: (what, value) pairs.
    """

    name: str
    options: Options
    rows: list[Row]
    cells: list[list[Cell]]
    comparisons: list[Comparison]
    notes: list[str]
    reproducibility: list[tuple[str, str]]


def build(name: str, runs: Sequence[Run], options: Options) -> Table:
    """Builds the table of runs on one data set under one protocol.

    Raises:
      UserError: a metric is missing, or the comparison asked for is impossible.
    """
    found, commons = rows(runs)
    found = [row for row in found if not np.isnan([row.values(m, options.split) for m in options.metrics]).all()]
    if options.baseline:  # from here on by its full name
        options = dataclasses.replace(options, baseline=find_row(found, options.baseline).name)
    comparisons = _compare(found, options) if options.baseline else []
    significant = {(c.row, c.metric) for c in comparisons if max(c.p_t, c.p_bootstrap) < options.alpha}
    columns = [_column(found, metric, significant, options) for metric in options.metrics]
    cells = [list(row) for row in zip(*columns)]
    return Table(
        name,
        options,
        found,
        cells,
        comparisons,
        _notes(runs, commons, comparisons, options),
        _reproducibility(found, runs),
    )


def verify(runs: Sequence[Run]) -> None:
    """Recomputes the test metrics of runs and of their baselines from the ranks.

    Raises:
      UserError: a number in results.json does not follow from ranks_test.npz; names it.
    """
    for run in runs:
        parts = {"": run.results["test"]} | {k: v["test"] for k, v in run.results.get("baselines", {}).items()}
        for baseline, recorded in parts.items():
            derived = from_ranks(Row("", (run,), baseline, {}).ranks(run))
            for metric in recorded.keys() & derived.keys():
                if abs(recorded[metric] - derived[metric]) > 1e-6:
                    raise UserError(
                        f"{run.path}: results.json says {baseline or 'test'} {metric} = "
                        f"{recorded[metric]:.6f}, but ranks_test.npz gives {derived[metric]:.6f}."
                    )


def _column(found: Sequence[Row], metric: str, significant: set, options: Options) -> list[Cell]:
    values = [row.values(metric, options.split) for row in found]
    means = [float(v.mean()) for v in values]
    # Numbers that print alike share a place.
    shown = [round(mean, options.digits) for mean in means]
    known = {mean for mean in shown if not math.isnan(mean)}
    ladder = [] if metric.split("@")[0] in _UNDIRECTED or len(known) < 2 else sorted(known, reverse=True)[:2]
    return [
        Cell(
            mean,
            *statistics.spread(v),
            ladder.index(s) + 1 if s in ladder else 0,
            (row.name, metric) in significant,
        )
        for row, v, mean, s in zip(found, values, means, shown)
    ]


def find_row(found: Sequence[Row], name: str) -> Row:
    """Returns the row with this name, or the only one whose name contains it.

    Raises:
      UserError: none or several.
    """
    matches = [row for row in found if row.name == name] or [row for row in found if name in row.name]
    if len(matches) != 1:
        raise UserError(
            f"--baseline {name!r} fits {len(matches)} rows; the rows are: " + "; ".join(row.name for row in found) + "."
        )
    return matches[0]


def _compare(found: Sequence[Row], options: Options) -> list[Comparison]:
    if options.split != "test":
        raise UserError("--baseline needs --split test: ranks of single users are kept for the test alone.")
    base = find_row(found, options.baseline)
    metrics = [m for m in options.metrics if PER_USER.fullmatch(m)]
    others = [row for row in found if row is not base]
    if not metrics or not others:
        raise UserError(
            "--baseline needs another row to compare, and a metric that every single user has "
            "(ndcg@K, hr@K, recall@K, mrr@K, map@K or mrr)."
        )
    _require_same_cases(found)
    users, places = np.unique(base.runs[0].ranks["user"], return_inverse=True)

    def per_user_mean(row: Row, metric: str) -> np.ndarray:
        # A user with several test cases is one observation: her cases are not independent.
        return np.bincount(places, row.per_case(metric)) / np.bincount(places)

    references = {metric: per_user_mean(base, metric) for metric in metrics}
    pairs = [(row, metric) for row in others for metric in metrics]
    differences = np.stack([per_user_mean(row, metric) - references[metric] for row, metric in pairs], axis=1)
    assert differences.shape == (len(users), len(pairs))
    low, high, p_bootstrap = statistics.paired_bootstrap(differences, options.resamples)
    p_t = statistics.holm([statistics.paired_t(column) for column in differences.T])
    p_bootstrap = statistics.holm(p_bootstrap)
    return [
        Comparison(
            row.name,
            metric,
            float(differences[:, i].mean()),
            float(low[i]),
            float(high[i]),
            float(p_t[i]),
            float(p_bootstrap[i]),
        )
        for i, (row, metric) in enumerate(pairs)
    ]


def _require_same_cases(found: Sequence[Row]) -> None:
    first = found[0].runs[0]
    for run in {id(run): run for row in found for run in row.runs}.values():
        for array, of in (("user", lambda ranks: ranks["user"]), ("item", item_digest)):
            if not np.array_equal(of(run.ranks), of(first.ranks)):
                raise UserError(
                    f"{first.path} and {run.path} ranked different test cases (array {array!r} of "
                    "ranks_test.npz), so they cannot be paired."
                )


def _notes(runs: Sequence[Run], commons: dict, comparisons: Sequence[Comparison], options: Options) -> list[str]:
    data = runs[0].dataset
    notes = [
        f"{data['name']}: {data['users']:,} users, {data['items']:,} items, "
        f"{data['interactions']:,} interactions. Protocol: {runs[0].results['protocol']}."
    ]
    kind = {"sd": "standard deviation", "se": "standard error of the mean"}[options.spread]
    notes.append(
        f"Mean over seeds ± {kind}, {options.split} set; the best value of a column is bold, the second underlined."
    )
    for model, common in commons.items():
        notes.append(f"{model} rows name what differs from: {', '.join(describe(common, list(common)))}.")
    if comparisons:
        notes.append(
            f"† differs from {options.baseline}: paired t-test and paired bootstrap "
            f"({options.resamples:,} resamples) over users on means over seeds, both with p < "
            f"{options.alpha:g} after Holm's correction over {len(comparisons)} comparisons."
        )
    return notes


def _reproducibility(found: Sequence[Row], runs: Sequence[Run]) -> list[tuple[str, str]]:
    def distinct(values) -> str:
        return ", ".join(dict.fromkeys(str(v) for v in values))

    versions: dict[str, list[str]] = {}
    for run in runs:
        for package, version in run.environment["versions"].items():
            versions.setdefault(package, []).append(version)
    block = [
        (row.name, f"{row.runs[0].command()} (seeds {', '.join(str(run.seed) for run in row.runs)})")
        for row in found
        if not row.baseline
    ]
    return [
        *block,
        ("commit", distinct(run.environment["git_commit"] or "unknown" for run in runs)),
        (
            "versions",
            "; ".join(f"{package} {distinct(found)}" for package, found in sorted(versions.items())),
        ),
        ("devices", distinct(f"{run.environment['device_count']} x {_device(run)}" for run in runs)),
        ("data fingerprint", distinct(run.dataset["fingerprint"] for run in runs)),
        ("protocol", distinct(run.results["protocol"] for run in runs)),
        ("device-hours", f"{sum(run.device_hours for run in runs):.3f} in {len(runs)} runs"),
    ]


def _device(run: Run) -> str:
    return " / ".join(dict.fromkeys(map(str, run.environment["devices"])))


def dump_options(options: Options) -> str:
    """Returns options as JSON on one line."""
    return json.dumps(vars(options))


def load_options(text: str) -> Options:
    """Reads what `dump_options` wrote."""
    values = json.loads(text)
    return Options(**{**values, "metrics": tuple(values["metrics"])})
