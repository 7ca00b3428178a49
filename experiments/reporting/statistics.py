# SPDX-License-Identifier: Apache-2.0
"""Statistics behind the tables: intervals over seeds, paired tests over users, Holm's correction."""

import numpy as np
from scipy import special


def spread(values: np.ndarray) -> tuple[float, float]:
    """Returns sample standard deviation and standard error of the mean of [n] values; nan if n = 1."""
    if len(values) < 2:
        return float("nan"), float("nan")
    deviation = float(np.std(values, ddof=1))
    return deviation, deviation / np.sqrt(len(values))


def half_width(values: np.ndarray, confidence: float = 0.95) -> float:
    """Returns half the width of Student's confidence interval for the mean of [n] values; 0 for n = 1."""
    if len(values) < 2:
        return 0.0
    return float(special.stdtrit(len(values) - 1, (1 + confidence) / 2) * spread(values)[1])


def paired_t(differences: np.ndarray) -> float:
    """Returns the two-sided p-value of a paired t-test; 1 where all differences are 0.

    Args:
      differences: [users], of one metric between two models.
    """
    if not np.any(differences):
        return 1.0
    error = spread(differences)[1]
    t = np.inf if error == 0 else np.mean(differences) / error
    # Student's distribution itself: scipy.stats takes longer to import than a report to make.
    return float(2 * special.stdtr(len(differences) - 1, -abs(t)))


def paired_bootstrap(
    differences: np.ndarray, resamples: int, seed: int = 0, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resamples users with replacement, the same users for every comparison.

    Args:
      differences: [users, comparisons].
      resamples: how many.
      seed: of the resampling; the same seed gives the same answer.
      confidence: of the intervals.

    Returns:
      Low and high ends of the percentile intervals of the mean difference, and two-sided p-values, each
      [comparisons]. The p-value is the share of resampled means at least as far from the observed mean as
      that is from 0 (itself counted: never 0).
    """
    users, _ = differences.shape
    generator = np.random.Generator(np.random.Philox(key=seed))
    means = np.empty((resamples, differences.shape[1]))
    for first in range(0, resamples, 64):  # a block at a time: one matrix product instead of 64 passes
        size = min(64, resamples - first)
        draws = [np.bincount(generator.integers(users, size=users), minlength=users) for _ in range(size)]
        means[first : first + size] = np.stack(draws).astype(np.float64) @ differences / users
    observed = differences.mean(axis=0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    # The tolerance makes differences that are all equal count as equally far in spite of rounding.
    extreme = np.abs(means - observed) >= np.abs(observed) * (1 - 1e-12)
    return low, high, (1 + extreme.sum(axis=0)) / (resamples + 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Returns Holm's adjusted p-values [tests]: errors of the whole family stay below alpha."""
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
