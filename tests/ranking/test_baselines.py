# SPDX-License-Identifier: Apache-2.0
"""Counting models against rankings by brute force, user by user, under every protocol."""

import dataclasses
import itertools

import numpy as np
import pytest
from conftest import small_config, with_repeats

from bert4rec_jax.data import ranges, training_counts
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.ranking import baselines, sample_negatives


def training_histories(experiment):
    data, split = experiment.dataset, experiment.split
    return [data.items[start:stop] for start, stop in zip(data.offsets, split.train_stop)]


def naive_popular(experiment):
    counts = np.zeros(experiment.num_items + 1)
    for history in training_histories(experiment):
        for item in history:
            counts[item] += 1
    return lambda history: counts


def naive_popular_recent(experiment):
    data, split = experiment.dataset, experiment.split
    inside = np.concatenate([np.arange(a, b) for a, b in zip(data.offsets, split.train_stop)])
    newest = inside[
        np.asarray(data.timestamps[inside]) >= np.quantile(data.timestamps[inside], 0.9)
    ]
    assert 0.05 < len(newest) / len(inside) < 0.2
    counts = np.bincount(data.items[newest], minlength=experiment.num_items + 1)
    return lambda history: counts


def naive_markov(experiment):
    counts = np.zeros((experiment.num_items + 1,) * 2)
    for history in training_histories(experiment):
        for before, behind in itertools.pairwise(history):
            counts[before, behind] += 1
    return lambda history: counts[history[-1]]


def naive_knn(experiment):
    met = np.zeros((experiment.dataset.num_users, experiment.num_items + 1))
    for user, history in enumerate(training_histories(experiment)):
        met[user, history] = 1
    norms = np.maximum(np.linalg.norm(met, axis=0), 1)
    cosine = met.T @ met / np.outer(norms, norms)
    np.fill_diagonal(cosine, 0)
    for row in cosine:
        row[row < np.sort(row)[-min(baselines.NEIGHBOURS, len(row))] - 1e-6] = 0
    return lambda history: cosine[history].sum(axis=0)


BLOCKS = {
    (ranges, "EVENTS_PER_BLOCK"): 45,
    (baselines, "_ELEMENTS_PER_BLOCK"): 28,
}
NAIVE = {
    "popular": naive_popular,
    "popular_recent": naive_popular_recent,
    "markov": naive_markov,
    "item_knn": naive_knn,
}


@pytest.mark.parametrize(
    "protocol, filter_seen, repeated_targets",
    [
        ("full", True, "rank_last"),
        ("full", True, "keep"),
        ("full", False, "rank_last"),
        ("pop100", True, "rank_last"),
        ("uni100", False, "rank_last"),
    ],
)
def test_ranks_equal_a_brute_force_ranking(
    cache, monkeypatch, protocol, filter_seen, repeated_targets
):
    # Fewer neighbours than items, if rounding cannot decide which neighbour is the last.
    monkeypatch.setattr(baselines, "NEIGHBOURS", 7 if protocol == "full" else 1000)
    experiment = with_repeats(
        Experiment(
            small_config(
                cache,
                **{
                    "seed": 3,
                    "data.synthetic.num_items": 60 if protocol == "full" else 160,
                    "eval.protocol": protocol,
                    "eval.filter_seen": filter_seen,
                    "eval.seen_targets": repeated_targets,
                    "eval.negatives_seed": 2,
                },
            )
        )
    )
    cases, data, n = experiment.cases("test"), experiment.dataset, experiment.num_items
    popularity = naive_popular(experiment)([])
    np.testing.assert_array_equal(training_counts(data, experiment.split), popularity)
    if protocol != "full":
        weights = popularity if protocol == "pop100" else np.ones(n + 1)
        negatives = sample_negatives(data, cases.users, weights, 100, 2)
    whole, left_out = baselines.rank_all(
        experiment.config, data, experiment.split, cases, popularity
    )
    # Blocks of users, of cases and of items, and items that alone have more followers than a block.
    assert np.median(popularity[1:]) < BLOCKS[baselines, "_ELEMENTS_PER_BLOCK"] < popularity.max()
    for (module, name), size in BLOCKS.items():
        monkeypatch.setattr(module, name, size)
    rankings, still = baselines.rank_all(
        experiment.config, data, experiment.split, cases, popularity
    )
    assert rankings.keys() == whole.keys() == NAIVE.keys() and not left_out and not still
    for name, ranking in rankings.items():
        for field in ("greater", "ties", "candidates"):
            np.testing.assert_array_equal(
                getattr(ranking, field), getattr(whole[name], field), err_msg=name
            )
    for name, ranking in rankings.items():
        score, repeats, ties, better = NAIVE[name](experiment), 0, 0, 0
        for case in range(len(cases.users)):
            history, target = (
                data.items[cases.starts[case] : cases.targets[case]],
                data.items[cases.targets[case]],
            )
            scores = score(history)
            others = np.setdiff1d(
                np.arange(1, n + 1), [*history, target] if filter_seen else [target]
            )
            if protocol != "full":
                others = negatives[case]
            greater = (scores[others] > scores[target] + 1e-6).sum()
            equal = (abs(scores[others] - scores[target]) <= 1e-6).sum()
            if target in history:
                repeats += 1
                if protocol == "full" and filter_seen and repeated_targets == "rank_last":
                    greater, equal = len(others), 0
            assert (ranking.greater[case], ranking.ties[case]) == (greater, equal), (name, case)
            assert ranking.candidates[case] == len(others) + 1
            ties, better = ties + equal, better + greater
        assert min(repeats, ties, better) > 10


def test_an_item_that_a_user_met_twice_counts_once_for_its_neighbours(cache):
    experiment = Experiment(small_config(cache))
    once = baselines.similarities(experiment.dataset, experiment.split)
    twice = dataclasses.replace(
        experiment.dataset,
        items=np.repeat(experiment.dataset.items, 2),
        offsets=2 * experiment.dataset.offsets,
    )
    split = dataclasses.replace(experiment.split, train_stop=2 * experiment.split.train_stop)
    np.testing.assert_allclose(
        baselines.similarities(twice, split).toarray(), once.toarray(), rtol=1e-5
    )


@pytest.mark.parametrize(
    "bound, name, reason",
    [
        ("_MOST_EVENT_READS", "markov", "it would need 1 passes over 1,"),
        ("_MOST_PRODUCTS", "item_knn", "it would need about "),
        ("_MOST_EVENTS", "item_knn", "training events in memory; the limit is 0"),
        ("_MOST_SIMILARITIES", "item_knn", "its table would contain more than 0 similarities"),
    ],
)
def test_what_would_take_hours_or_too_much_memory_is_left_out_and_the_rest_is_ranked(
    cache, monkeypatch, bound, name, reason
):
    monkeypatch.setattr(baselines, bound, 0)
    e = Experiment(small_config(cache))
    rankings, left_out = baselines.rank_all(
        e.config, e.dataset, e.split, e.cases("test"), e.popularity
    )
    assert left_out.keys() == {name} and reason in left_out[name]
    assert rankings.keys() == NAIVE.keys() - {name}


def test_a_baseline_without_memory_takes_no_other_with_it(cache, monkeypatch):
    def none_left(*_):
        raise MemoryError

    monkeypatch.setattr(baselines, "similarities", none_left)
    e = Experiment(small_config(cache))
    rankings, left_out = baselines.rank_all(
        e.config, e.dataset, e.split, e.cases("test"), e.popularity
    )
    assert left_out == {"item_knn": "there was not enough memory for it"}
    assert rankings.keys() == NAIVE.keys() - {"item_knn"}
