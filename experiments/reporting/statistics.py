# SPDX-License-Identifier: Apache-2.0
"""Statistics of the tables: errors over users and seeds, significance tests, Holm's correction.

A number in a table has two sources of error: the sample of users and the seed of the training. The
runs of a row rank the same users, so the values [users, seeds] are a crossed two-way layout.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True)
class Difference:
    """A mean difference between two rows, with the variance of both sources.

    Attributes:
      mean: over users and seeds, first row minus second.
      se_users: standard error from the users.
      se_seeds: standard error from the seeds; nan if a trained row has one seed.
      degrees: degrees of freedom of Student's distribution (Satterthwaite); with one seed,
        of the users alone.
    """

    mean: float
    se_users: float
    se_seeds: float
    degrees: float

    @property
    def error(self) -> float:
        """The standard error from both sources, or from the users alone if there is one seed."""
        return float(np.hypot(self.se_users, np.nan_to_num(self.se_seeds)))

    def p_value(self) -> float:
        """Returns the two-sided p-value of no difference; 1 where all differences are 0."""
        if self.mean == 0:
            return 1.0
        return 2 * self._tail(abs(self.mean))

    def p_equivalent(self, margin: float) -> float:
        """Returns the p-value of a difference of at least `margin` (two one-sided tests)."""
        return max(self._tail(margin - self.mean), self._tail(margin + self.mean))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Returns Student's confidence interval."""
        half = float(special.stdtrit(self.degrees, (1 + confidence) / 2)) * self.error
        return self.mean - half, self.mean + half

    def _tail(self, distance: float) -> float:
        """Returns the probability of a value that is `distance` or more above the true one."""
        if self.error == 0:
            return float(distance <= 0)
        # scipy.stats takes longer to import than a report takes to write.
        return float(special.stdtr(self.degrees, -distance / self.error))


def spread(values: np.ndarray) -> tuple[float, float]:
    """Returns standard deviation and standard error of the mean of [n] values; nan if n = 1."""
    if len(values) < 2:
        return float("nan"), float("nan")
    deviation = float(np.std(values, ddof=1))
    return deviation, deviation / np.sqrt(len(values))


def half_width(values: np.ndarray, confidence: float = 0.95) -> float:
    """Returns half of Student's confidence interval for the mean of [n] values; 0 for n = 1."""
    if len(values) < 2:
        return 0.0
    return float(special.stdtrit(len(values) - 1, (1 + confidence) / 2) * spread(values)[1])


def users_error(values: np.ndarray) -> float:
    """Returns the standard error over users of one run's mean, for values [users, runs].

    It is the root mean square over the runs, and nan for a single user.
    """
    if len(values) < 2:
        return float("nan")
    return float(np.sqrt(np.mean(np.var(values, axis=0, ddof=1)) / len(values)))


def compare(
    first: np.ndarray, second: np.ndarray, trained: tuple[bool, bool] = (True, True)
) -> Difference:
    """Compares two rows under a two-way random-effects model, users crossed with seeds.

    The variance of the difference of means is the sum of two parts: the variance of the users'
    differences (averaged over seeds) and the variance of each row's mean over its seeds. The
    residuals belong to both parts. They are counted twice rather than subtracted, because with few
    seeds the difference would be too small whenever seeds happen to agree.

    Args:
      first: float[users, seeds], one metric of every user in each run of a row.
      second: float[users, seeds], the same users; the number of seeds may differ.
      trained: whether each row depends on a seed; baselines do not.
    """
    users = len(first)
    if users < 2:  # the spread of one difference is unknown
        return Difference(float(first.mean() - second.mean()), *[float("nan")] * 3)
    parts = [(np.var(first.mean(axis=1) - second.mean(axis=1), ddof=1) / users, users - 1)]
    seeds_vary = True
    for values, has_seed in zip((first, second), trained):
        seeds = values.shape[1]
        if has_seed and seeds > 1:
            parts.append((np.var(values.mean(axis=0), ddof=1) / seeds, seeds - 1))
        elif has_seed:
            seeds_vary = False
    if not seeds_vary:
        parts = parts[:1]
    total = sum(variance for variance, _ in parts)
    weight = sum(variance**2 / degrees for variance, degrees in parts)
    seeds_variance = sum(variance for variance, _ in parts[1:])
    return Difference(
        mean=float(first.mean() - second.mean()),
        se_users=float(np.sqrt(parts[0][0])),
        se_seeds=float(np.sqrt(seeds_variance)) if seeds_vary else float("nan"),
        degrees=float(total**2 / weight) if weight else float(users - 1),
    )


def hierarchical_bootstrap(
    columns: np.ndarray,
    groups: list[list[int]],
    pairs: list[tuple[int, int]],
    resamples: int,
    seed: int = 0,
) -> np.ndarray:
    """Resamples users, the same for all rows, and the seeds of every row.

    The weights of resampled seeds are scaled by sqrt(n / (n - 1)), because with n = 3, resampling
    alone shows only two thirds of the variance between seeds.

    Args:
      columns: float[users, columns], one metric of every user in each run.
      groups: columns of each row's runs.
      pairs: rows to compare, as positions in `groups`.
      resamples: number of resamples.
      seed: seed of the resampling; the same seed gives the same result.

    Returns:
      float[pairs], two-sided p-values: the share of resampled differences at least as far from the
      observed one as that is from 0 (itself counted: never 0).
    """
    users = len(columns)
    generator = np.random.Generator(np.random.Philox(key=seed))
    means = np.empty((resamples, columns.shape[1]))
    for start in range(0, resamples, 64):  # in blocks: one matrix product instead of 64 passes
        size = min(64, resamples - start)
        draws = [
            np.bincount(generator.integers(users, size=users), minlength=users) for _ in range(size)
        ]
        means[start : start + size] = np.stack(draws).astype(np.float64) @ columns / users
    resampled = []
    observed = []
    for group in groups:
        n = len(group)
        counts = generator.multinomial(n, np.full(n, 1 / n), size=resamples)
        weights = 1 / n + np.sqrt(n / max(n - 1, 1)) * (counts / n - 1 / n)
        resampled.append((means[:, group] * weights).sum(axis=1))
        observed.append(columns[:, group].mean())
    p_values = []
    for a, b in pairs:
        difference = observed[a] - observed[b]
        # With the tolerance, equal differences count as equally far in spite of rounding.
        extreme = np.abs(resampled[a] - resampled[b] - difference) >= abs(difference) * (1 - 1e-12)
        p_values.append((1 + extreme.sum()) / (resamples + 1))
    return np.array(p_values)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Returns Holm's adjusted p-values [tests]: errors of the whole family stay below alpha."""
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
