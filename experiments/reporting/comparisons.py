# SPDX-License-Identifier: Apache-2.0
"""Compares every row of a table with a baseline row: better, worse, equal or undecided."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert4rec_jax.errors import UserError
from experiments.reporting import statistics
from experiments.reporting.rows import Row

PER_USER = re.compile(r"mrr|(ndcg|hr|recall|mrr|map)@\d+")
BETTER = "better"
WORSE = "worse"
EQUAL = "equal"
UNDECIDED = "undecided"
ONE_SEED = "one seed"


@dataclass(frozen=True)
class Comparison:
    """A row compared with the baseline on one metric.

    The p-values have Holm's correction over the whole table.

    Attributes:
      row: name of the row.
      metric: name of the metric.
      difference: mean over users and seeds, this row minus the baseline.
      low: low end of the 95 % interval, from users and seeds.
      high: high end.
      se_users: standard error from the users.
      se_seeds: standard error from the seeds; nan if a trained row has one seed. Then the interval
        and the p-values hold only for these runs, and the verdict is `one seed`.
      p_t: p-value of no difference, Student's test with both variances.
      p_bootstrap: p-value of no difference, resampling users and seeds.
      p_equivalent: p-value of a difference of `margin` or more.
      margin: largest difference that counts as equal.
      verdict: `better` or `worse` if both tests of no difference are below alpha, else `equal` if
        the test of equivalence is, else `undecided`.
    """

    row: str
    metric: str
    difference: float
    low: float
    high: float
    se_users: float
    se_seeds: float
    p_t: float
    p_bootstrap: float
    p_equivalent: float
    margin: float
    verdict: str


def compare(
    found: Sequence[Row],
    base: Row,
    metrics: Sequence[str],
    alpha: float,
    resamples: int,
    margin: float,
) -> list[Comparison]:
    """Compares every other row with `base`.

    Args:
      found: all rows.
      base: the baseline row.
      metrics: columns of the table; only metrics that exist per user are compared.
      alpha: level of significance.
      resamples: number of bootstrap resamples.
      margin: largest difference that counts as equal, as a share of the baseline's value.

    Raises:
      UserError: there is nothing to compare, rows ranked different cases, or significance is
        impossible.
    """
    metrics = [metric for metric in metrics if PER_USER.fullmatch(metric)]
    pairs = [(row, metric) for row in found if row is not base for metric in metrics]
    _require_comparable(found, pairs, alpha, resamples)
    per_user = {(row.name, metric): row.per_user(metric) for row in found for metric in metrics}
    differences = []
    margins = []
    for row, metric in pairs:
        values = per_user[row.name, metric]
        base_values = per_user[base.name, metric]
        trained = (not row.baseline, not base.baseline)
        differences.append(statistics.compare(values, base_values, trained))
        margins.append(margin * float(base_values.mean()))
    p_t = statistics.holm([difference.p_value() for difference in differences])
    p_bootstrap = statistics.holm(_bootstrap(per_user, pairs, base, resamples))
    p_equivalent = statistics.holm([d.p_equivalent(m) for d, m in zip(differences, margins)])
    compared = []
    for i, (row, metric) in enumerate(pairs):
        difference = differences[i]
        low, high = difference.interval()
        p_different = max(p_t[i], p_bootstrap[i])
        compared.append(
            Comparison(
                row=row.name,
                metric=metric,
                difference=difference.mean,
                low=low,
                high=high,
                se_users=difference.se_users,
                se_seeds=difference.se_seeds,
                p_t=float(p_t[i]),
                p_bootstrap=float(p_bootstrap[i]),
                p_equivalent=float(p_equivalent[i]),
                margin=margins[i],
                verdict=_verdict(difference, p_different, p_equivalent[i], alpha),
            )
        )
    return compared


def _require_comparable(
    found: Sequence[Row], pairs: Sequence[tuple[Row, str]], alpha: float, resamples: int
) -> None:
    if not pairs:
        raise UserError(
            "--baseline needs another row to compare, and a metric that exists per user "
            "(ndcg@K, hr@K, recall@K, mrr@K, map@K or mrr)."
        )
    _require_same_cases(found)
    # The smallest p-value that a bootstrap can give, times the tests of Holm's first step.
    if 0 < alpha <= len(pairs) / (resamples + 1):
        raise UserError(
            f"with --resamples={resamples} none of {len(pairs)} comparisons could be significant "
            f"at {alpha:g}; give --resamples={len(pairs) / alpha + 1:.0f} or more."
        )


def _verdict(
    difference: statistics.Difference, p_different: float, p_equivalent: float, alpha: float
) -> str:
    if math.isnan(difference.se_seeds):
        return ONE_SEED
    if p_different < alpha:
        return BETTER if difference.mean > 0 else WORSE
    return EQUAL if p_equivalent < alpha else UNDECIDED


def _bootstrap(
    per_user: dict, pairs: Sequence[tuple[Row, str]], base: Row, resamples: int
) -> np.ndarray:
    keys = list(per_user)
    ends = np.cumsum([per_user[key].shape[1] for key in keys])
    groups = [list(range(end - per_user[key].shape[1], end)) for key, end in zip(keys, ends)]
    columns = np.concatenate([per_user[key] for key in keys], axis=1)
    places = [
        (keys.index((row.name, metric)), keys.index((base.name, metric))) for row, metric in pairs
    ]
    return statistics.hierarchical_bootstrap(columns, groups, places, resamples)


def _require_same_cases(found: Sequence[Row]) -> None:
    runs = list({id(run): run for row in found for run in row.runs}.values())
    for run in runs[1:]:
        if run.cases_digest != runs[0].cases_digest:
            raise UserError(
                f"{runs[0].path} and {run.path} ranked different test cases or candidates, so they "
                "cannot be compared user by user."
            )
