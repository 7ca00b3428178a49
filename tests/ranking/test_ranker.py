# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import numpy as np
import pytest
from conftest import small_config
from plain_numpy import naive_encoder

from bert4rec_jax.errors import UserError
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.model import encoder as model
from bert4rec_jax.ranking import baselines, metrics
from bert4rec_jax.ranking.ranker import sample_negatives


def history_scores(experiment, params, case, cases):
    """Scores of items 1..n after one history, by the plain NumPy model."""
    c, n = experiment.config.model, experiment.num_items
    history = experiment.dataset.items[cases.starts[case]:cases.targets[case]][-(c.max_length - 1):]
    table = np.asarray(params["items"]["embedding"], np.float64)
    h = naive_encoder(c, params["encoder"], table[[*history, n + 1]], causal=False)[-1]
    return table[1:n + 1] @ h + np.asarray(params["items"]["bias"])[1:n + 1]


@pytest.mark.parametrize("protocol", ["full", "uni100"])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_ranks_equal_a_brute_force_ranking_ties_included(cache, protocol, filter_seen):
    config = small_config(cache, **{"eval.protocol": protocol, "eval.filter_seen": filter_seen,
                                    "data.synthetic.num_items": 160, "model.init_scale": 0.3})
    experiment = Experiment(config)
    params = model.init_params(config.model, experiment.num_items, jax.random.key(5))
    # Groups of five items with the very same embedding and bias tie exactly.
    n = experiment.num_items
    table = np.array(params["items"]["embedding"])
    table[1:n + 1] = table[1 + np.arange(n) // 5 * 5]
    params["items"] = {"embedding": jax.numpy.asarray(table), "bias": params["items"]["bias"]}
    ranking = experiment.ranker("test").rank(params, with_top=True)
    cases = experiment.cases("test")
    negatives = sample_negatives(experiment.dataset, cases.users, np.ones(n + 1), 100, 0)
    tied = 0
    for case in range(len(cases.users)):
        scores = history_scores(experiment, params, case, cases)
        target = experiment.dataset.items[cases.targets[case]]
        seen = set(experiment.dataset.items[cases.starts[case]:cases.targets[case]].tolist()) - {target}
        others = set(range(1, n + 1)) - {target} - (seen if filter_seen else set())
        if protocol == "uni100":
            others = set(negatives[case].tolist()) - (seen if filter_seen else set())
        # Scores of packed rows may differ in the last bits; what is equal by construction must stay equal.
        group = lambda item: (item - 1) // 5  # noqa: E731
        greater = sum(scores[i - 1] > scores[target - 1] and group(i) != group(target) for i in others)
        ties = sum(group(i) == group(target) for i in others)
        tied += ties
        assert (ranking.greater[case], ranking.ties[case]) == (greater, ties)
        assert ranking.candidates[case] == len(others) + 1
        if protocol == "full":
            allowed = np.array(sorted(others | {target}))
            best = np.sort(scores[allowed - 1])[::-1][:10]
            np.testing.assert_allclose(scores[ranking.top[case] - 1], best, rtol=1e-4, atol=1e-5)
    assert tied > 50
    assert np.array_equal(ranking.ranks("pessimistic"), 1 + ranking.greater + ranking.ties)
    assert np.array_equal(ranking.ranks("expected"), 1 + ranking.greater + ranking.ties / 2)


def test_the_ranks_of_popularity_equal_a_brute_force_ranking(cache):
    config = small_config(cache)
    experiment = Experiment(config)
    cases, data = experiment.cases("test"), experiment.dataset
    counts = experiment.popularity
    ranking = baselines.rank_all(config, data, experiment.split, cases)["popular"]
    for case in range(len(cases.users)):
        target = data.items[cases.targets[case]]
        seen = set(data.items[cases.starts[case]:cases.targets[case]].tolist()) - {target}
        others = [i for i in range(1, data.num_items + 1) if i != target and i not in seen]
        assert ranking.greater[case] == sum(counts[i] > counts[target] for i in others)
        assert ranking.ties[case] == sum(counts[i] == counts[target] for i in others)
        assert ranking.candidates[case] == len(others) + 1


def test_random_scores_give_the_expectation_of_chance(cache):
    config = small_config(cache, **{"data.synthetic.users": 1500, "eval.batch_rows": 64})
    experiment = Experiment(config)
    params = model.init_params(config.model, experiment.num_items, jax.random.key(0))
    params["items"]["bias"] = jax.random.normal(jax.random.key(1), params["items"]["bias"].shape)
    cases = experiment.cases("test")
    # Targets drawn at random among the candidates make every rank equally likely.
    random = np.random.default_rng(0)
    items = np.array(experiment.dataset.items)
    for start, target in zip(cases.starts, cases.targets):
        items[target] = random.choice(np.setdiff1d(np.arange(1, 61), items[start:target]))
    experiment.dataset = dataclasses.replace(experiment.dataset, items=items)
    ranking = experiment.ranker("test").rank(params)
    hit = metrics.per_user("hr@10", ranking.ranks("pessimistic"))
    expected = np.minimum(10 / ranking.candidates, 1)
    assert abs(hit.mean() - expected.mean()) < 5 * np.sqrt((expected * (1 - expected)).sum()) / len(hit)


def test_negatives_were_never_met_and_do_not_repeat(cache):
    config = small_config(cache, **{"data.synthetic.num_items": 160})
    experiment = Experiment(config)
    users = experiment.cases("test").users
    drawn = sample_negatives(experiment.dataset, users, experiment.popularity, 100, 7)
    assert np.array_equal(drawn, sample_negatives(experiment.dataset, users, experiment.popularity, 100, 7))
    for user, row in zip(users, drawn):
        met = experiment.dataset.items[experiment.dataset.offsets[user]:experiment.dataset.offsets[user + 1]]
        assert len(set(row.tolist())) == 100
        assert not np.isin(row, met).any()
        assert row.min() >= 1 and row.max() <= experiment.num_items


def test_metrics_of_known_ranks():
    values = metrics.from_ranks(np.array([1, 2, 11, 3.5]))
    assert values["hr@10"] == values["recall@10"] == 0.75
    np.testing.assert_allclose(values["ndcg@10"], (1 + 1 / np.log2(3) + 1 / np.log2(4.5)) / 4)
    np.testing.assert_allclose(values["mrr"], (1 + 1 / 2 + 1 / 11 + 1 / 3.5) / 4)
    np.testing.assert_allclose(values["mrr@10"], (1 + 1 / 2 + 1 / 3.5) / 4)
    assert values["hr@1"] == 0.25
    beyond = metrics.beyond_accuracy(np.array([[1, 2], [1, 3]]), np.array([0, 6, 1, 0, 0]))
    assert beyond["coverage@2"] == 0.75 and beyond["popularity@2"] == 3.25
    np.testing.assert_allclose(beyond["novelty@2"], -np.log2([7 / 11, 7 / 11, 2 / 11, 1 / 11]).mean())
    with pytest.raises(UserError, match="no metric"):
        metrics.per_user("ndcg", np.ones(3))
