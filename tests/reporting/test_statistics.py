# SPDX-License-Identifier: Apache-2.0
"""Errors and tests against SciPy, by hand, and by how often they are wrong."""

import numpy as np
import pytest
from scipy import stats

from experiments.reporting import statistics


def two_rows(generator, users, seeds, between_seeds, gain=0.0):
    """Two rows of a model whose users differ a lot, seeds by `between_seeds`, and the second row by `gain`."""
    easy = generator.random((users, 1)) < 0.3

    def row(gain):
        kept = generator.random((users, seeds)) < 0.8
        hits = np.where(kept, easy, generator.random((users, seeds)) < 0.3)
        return 0.6 * hits + gain + generator.normal(0, between_seeds, seeds)

    return row(0.0), row(gain)


def test_deterministic_rows_are_tested_as_by_a_paired_t_test():
    first, second = np.random.default_rng(0).normal(size=(2, 50, 1))
    difference = statistics.compare(first, second, (False, False))
    expected = stats.ttest_rel(first[:, 0], second[:, 0])
    assert difference.p_value() == pytest.approx(expected.pvalue)
    assert difference.interval() == pytest.approx(tuple(expected.confidence_interval()))
    assert difference.interval(0.9) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert difference.se_seeds == 0 and difference.degrees == 49
    same = statistics.compare(first, first, (False, False))
    assert same.p_value() == 1.0 and same.p_equivalent(0.1) == 0.0 and same.p_equivalent(0) == 1.0


def test_both_variances_are_added_with_their_degrees_of_freedom():
    first, second = two_rows(np.random.default_rng(1), 200, 3, 0.05)
    second = second[:, :2]
    difference = statistics.compare(first, second)
    users = np.var(first.mean(1) - second.mean(1), ddof=1) / 200
    seeds = np.var(first.mean(0), ddof=1) / 3, np.var(second.mean(0), ddof=1) / 2
    assert difference.se_users**2 == pytest.approx(users)
    assert difference.se_seeds**2 == pytest.approx(sum(seeds))
    assert difference.error**2 == pytest.approx(users + sum(seeds))
    # Welch and Satterthwaite.
    degrees = (users + sum(seeds)) ** 2 / (users**2 / 199 + seeds[0] ** 2 / 2 + seeds[1] ** 2 / 1)
    assert difference.degrees == pytest.approx(degrees)
    t = difference.mean / difference.error
    assert difference.p_value() == pytest.approx(2 * stats.t.sf(abs(t), degrees))
    margin = abs(difference.mean) + 0.02
    worse = min(margin - difference.mean, margin + difference.mean) / difference.error
    assert difference.p_equivalent(margin) == pytest.approx(stats.t.sf(worse, degrees))


def test_one_seed_has_no_error_over_seeds():
    first, second = two_rows(np.random.default_rng(1), 200, 3, 0.05)
    for pair in ((first[:, :1], second), (first, second[:, :1])):
        difference = statistics.compare(*pair)
        assert np.isnan(difference.se_seeds) and difference.error == difference.se_users
        assert difference.degrees == pytest.approx(199)
    assert statistics.compare(first, second[:, :1], (True, False)).se_seeds > 0


def test_seeds_are_not_mistaken_for_a_difference():
    generator, wrong, blind, resampled, runs = np.random.default_rng(0), 0, 0, 0, 300
    for _ in range(runs):  # two rows of the very same model
        first, second = two_rows(generator, 300, 3, 0.015)
        wrong += statistics.compare(first, second).p_value() < 0.05
        users_alone = statistics.compare(
            first.mean(1, keepdims=True), second.mean(1, keepdims=True), (False, False)
        )
        blind += users_alone.p_value() < 0.05
        groups = [[0, 1, 2], [3, 4, 5]]
        resampled += (
            statistics.hierarchical_bootstrap(np.c_[first, second], groups, [(0, 1)], 200)[0] < 0.05
        )
    assert blind / runs > 0.2  # what a test over users alone would have found
    assert wrong / runs < 0.08 and resampled / runs < 0.08


def test_a_true_difference_and_a_true_equality_are_found():
    generator = np.random.default_rng(0)
    first, second = two_rows(generator, 2000, 3, 0.002, gain=0.05)
    assert (
        statistics.compare(second, first).p_value() < 0.001
        and statistics.compare(second, first).mean > 0.03
    )
    assert (
        statistics.hierarchical_bootstrap(
            np.c_[first, second], [[0, 1, 2], [3, 4, 5]], [(0, 1)], 999
        )[0]
        == 0.001
    )
    first, second = two_rows(generator, 2000, 3, 0.0)
    difference = statistics.compare(first, second)
    assert difference.p_value() > 0.05 and difference.p_equivalent(
        0.05
    ) < 0.05 < difference.p_equivalent(0.001)


def test_bootstrap_shows_the_variance_of_users_and_of_seeds():
    generator = np.random.default_rng(3)
    # A normal p-value from the known standard error; a difference of 1.5 of them.
    users = generator.normal(size=(400, 1))
    users -= users.mean()
    shifted = np.c_[users + 1.5 * users.std() / 20, np.zeros(400)]
    p = statistics.hierarchical_bootstrap(shifted, [[0], [1]], [(0, 1)], 4000)
    assert p[0] == pytest.approx(2 * stats.norm.sf(1.5), abs=0.02)
    seeds = np.array([-1.0, 0.0, 1.0]) + 1.5 / np.sqrt(3)  # standard error of the mean: 1 / sqrt(3)
    shifted = np.c_[np.tile(seeds, (400, 1)), np.zeros(400)]
    p = statistics.hierarchical_bootstrap(shifted, [[0, 1, 2], [3]], [(0, 1)], 4000)
    weights = (
        generator.multinomial(3, [1 / 3] * 3, 200_000) / 3 - 1 / 3
    )  # resampled, stretched to the full variance
    exact = np.mean(np.abs(weights @ seeds * np.sqrt(1.5)) >= seeds.mean() * (1 - 1e-9))
    assert p[0] == pytest.approx(exact, abs=0.02)
    zeros = statistics.hierarchical_bootstrap(np.zeros((9, 2)), [[0], [1]], [(0, 1)], 100)
    assert zeros[0] == 1.0
    # The same users are drawn for both rows: a constant gain is as far from 0 as it is certain.
    p = statistics.hierarchical_bootstrap(np.c_[users + 0.01, users], [[0], [1]], [(0, 1)], 199)
    assert p[0] == 1 / 200


def test_errors_and_holm_are_the_textbooks():
    values = np.random.default_rng(0).normal(size=(40, 3)) * [1, 2, 3]
    errors = [stats.sem(column) for column in values.T]
    assert statistics.users_error(values) == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    with np.errstate(all="raise"):
        assert np.isnan(statistics.users_error(values[:1]))
    assert statistics.spread(values[:, 0]) == pytest.approx(
        (np.std(values[:, 0], ddof=1), errors[0])
    )
    assert (
        np.isnan(statistics.spread(values[:1, 0])).all()
        and statistics.half_width(values[:1, 0]) == 0
    )
    assert statistics.spread([1.0, 3.0]) == pytest.approx((np.sqrt(2), 1.0))  # two are enough
    assert statistics.half_width(np.array([1.0, 3.0])) == pytest.approx(stats.t.ppf(0.975, 1))
    interval = stats.t.interval(0.95, 39, scale=errors[0])
    assert statistics.half_width(values[:, 0]) == pytest.approx(interval[1])
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == pytest.approx([1, 1])
