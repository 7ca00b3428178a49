# SPDX-License-Identifier: Apache-2.0
"""Builds the table of a data set from its runs: means, both errors, best and second, comparisons,
published numbers.

The table is independent of the format; `writing` writes it as Markdown, LaTeX, CSV and HTML.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert4rec_jax.errors import UserError
from experiments.reporting import statistics
from experiments.reporting.comparisons import BETTER, PER_USER, WORSE, Comparison, compare
from experiments.reporting.published import Published, published
from experiments.reporting.records import Run
from experiments.reporting.rows import Row, describe, find_row, rows

# More popular recommendations are neither better nor worse.
_UNDIRECTED = ("popularity",)


@dataclass(frozen=True)
class Options:
    """Options of a table; they are written into it, so that it can be checked.

    Attributes:
      metrics: columns.
      split: `test` or `valid`.
      baseline: row to compare the others with; empty for no comparison.
      spread: over seeds: `sd` or `se`.
      alpha: level of significance.
      resamples: number of bootstrap resamples.
      digits: decimals.
      margin: largest difference that counts as equal, as a share of the baseline's value.
    """

    metrics: tuple[str, ...] = ("ndcg@10", "hr@10", "mrr")
    split: str = "test"
    baseline: str = ""
    spread: str = "se"
    alpha: float = 0.05
    resamples: int = 10_000
    digits: int = 4
    margin: float = 0.05


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Attributes:
      mean: over seeds; nan if a baseline lacks the metric.
      sd: standard deviation over seeds; nan with one seed.
      se: standard error of the mean over seeds; nan with one seed.
      users: standard error over users of one run; nan if the metric does not exist per user.
      place: 1 for the best in its column, 2 for the second, else 0.
      significant: significantly different from the baseline.
    """

    mean: float
    sd: float
    se: float
    users: float
    place: int
    significant: bool


@dataclass(frozen=True)
class Table:
    """The table of one data set.

    Attributes:
      name: of the data set.
      options: options of the table.
      rows: of the table.
      cells: [rows][metrics].
      ties: (row, metric, on targets tied in time with their predecessor, on others),
        if runs record them.
      comparisons: with the baseline; empty without one.
      published: published rows on the same data and candidates; never among the rows.
      notes: sentences below the table.
      reproducibility: (name, value) pairs.
    """

    name: str
    options: Options
    rows: list[Row]
    cells: list[list[Cell]]
    ties: list[tuple[str, str, float, float]]
    comparisons: list[Comparison]
    published: list[Published]
    notes: list[str]
    reproducibility: list[tuple[str, str]]


def build(name: str, runs: Sequence[Run], options: Options) -> Table:
    """Builds the table of runs on one data set under one protocol.

    Raises:
      UserError: a metric is missing, or the comparison is impossible.
    """
    found, commons = rows(runs)
    found = [
        row
        for row in found
        if not np.isnan([row.values(m, options.split) for m in options.metrics]).all()
    ]
    comparisons = []
    if options.baseline:
        if options.split != "test":
            raise UserError(
                "--baseline needs --split test: ranks per user are stored for the test set only."
            )
        base = find_row(found, options.baseline)
        options = dataclasses.replace(options, baseline=base.name)  # its full name from here on
        comparisons = compare(
            found, base, options.metrics, options.alpha, options.resamples, options.margin
        )
    significant = {(c.row, c.metric) for c in comparisons if c.verdict in (BETTER, WORSE)}
    columns = [_column(found, metric, significant, options) for metric in options.metrics]
    return Table(
        name,
        options,
        found,
        [list(row) for row in zip(*columns)],
        _ties(found, options),
        comparisons,
        published(runs[0], options.metrics) if options.split == "test" else [],
        _notes(runs, commons, comparisons, options),
        _reproducibility(found, runs),
    )


def _column(found: Sequence[Row], metric: str, significant: set, options: Options) -> list[Cell]:
    values = [row.values(metric, options.split) for row in found]
    means = [float(v.mean()) for v in values]
    # Numbers that print alike share a rank.
    shown = [round(mean, options.digits) for mean in means]
    known = {mean for mean in shown if not math.isnan(mean)}
    ladder = (
        []
        if metric.split("@")[0] in _UNDIRECTED or len(known) < 2
        else sorted(known, reverse=True)[:2]
    )
    by_user = options.split == "test" and PER_USER.fullmatch(metric)
    return [
        Cell(
            mean,
            *statistics.spread(v),
            row.users_error(metric) if by_user else math.nan,
            ladder.index(s) + 1 if s in ladder else 0,
            (row.name, metric) in significant,
        )
        for row, v, mean, s in zip(found, values, means, shown)
    ]


def _ties(found: Sequence[Row], options: Options) -> list[tuple[str, str, float, float]]:
    """Returns separate test metrics for targets that are tied in time with their predecessor and
    for the others.
    """
    lines = []
    for row in found:
        if row.baseline or not all(
            {"test_tied", "test_untied"} <= run.results.keys() for run in row.runs
        ):
            continue
        for metric in options.metrics:
            if PER_USER.fullmatch(metric):
                tied, untied = (
                    float(row.values(metric, f"test_{part}").mean()) for part in ("tied", "untied")
                )
                lines.append((row.name, metric, tied, untied))
    return lines


def _notes(
    runs: Sequence[Run], commons: dict, comparisons: Sequence[Comparison], options: Options
) -> list[str]:
    data = runs[0].dataset
    notes = [
        f"{data['name']}: {data['users']:,} users, {data['items']:,} items, "
        f"{data['interactions']:,} interactions. Protocol: {runs[0].results['protocol']}."
    ]
    kind = {"sd": "standard deviation", "se": "standard error of the mean"}[options.spread]
    notes.append(
        f"Means over seeds, {options.split} set; ±s: {kind} over seeds, ±u: standard error over "
        "users of one run. "
        "The best value of a column is bold, the second underlined."
    )
    if early := [run for run in runs if run.interrupted]:
        steps = [
            ("/".join(run.path.parts[-2:]), run.validations[-1], run.fields["train.steps"])
            for run in early
        ]
        named = ", ".join(
            f"{path}, validated up to step {done:,} of {planned:,}" for path, done, planned in steps
        )
        notes.append(f"Ranked in the middle of training: {named}.")
    for model, common in commons.items():
        notes.append(
            f"{model} rows name what differs from: {', '.join(describe(common, list(common)))}."
        )
    if comparisons:
        notes.append(
            f"† differs from {options.baseline}: with the variance of users and of seeds, both in "
            "Student's test "
            "(two-way random effects) and in a bootstrap of users and seeds "
            f"({options.resamples:,} resamples), p < "
            f"{options.alpha:g} after Holm's correction over {len(comparisons)} comparisons."
        )
    return notes


def _reproducibility(found: Sequence[Row], runs: Sequence[Run]) -> list[tuple[str, str]]:
    def distinct(values) -> str:
        return ", ".join(dict.fromkeys(str(v) for v in values))

    starts = [start for run in runs for start in run.starts]
    versions: dict[str, list[str]] = {}
    for start in starts:
        for package, version in start["versions"].items():
            versions.setdefault(package, []).append(version)
    return [
        *(
            (f"{row.name}, seed {run.seed}", f"{run.command()}  # commit {run.commits}")
            for row in found
            if not row.baseline
            for run in row.runs
        ),
        (
            "versions",
            "; ".join(
                f"{package} {distinct(found)}" for package, found in sorted(versions.items())
            ),
        ),
        (
            "devices",
            distinct(
                f"{s['device_count']} x {distinct(s['devices']).replace(', ', ' / ')}"
                for s in starts
            ),
        ),
        ("data fingerprint", distinct(run.dataset["fingerprint"] for run in runs)),
        ("protocol", distinct(run.results["protocol"] for run in runs)),
        ("device-hours", f"{sum(run.device_hours for run in runs):.3f} in {len(runs)} runs"),
    ]


def dump_options(options: Options) -> str:
    """Returns options as JSON on one line."""
    return json.dumps(vars(options))


def load_options(text: str) -> Options:
    """Reads what `dump_options` wrote."""
    values = json.loads(text)
    return Options(**{**values, "metrics": tuple(values["metrics"])})
