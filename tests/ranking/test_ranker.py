# SPDX-License-Identifier: Apache-2.0
import dataclasses
import itertools

import jax
import numpy as np
import pytest
from conftest import small_config
from plain_numpy import naive_encoder

from bert4rec_jax.errors import UserError
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.model import encoder as model
from bert4rec_jax.ranking import (
    Ranker,
    baselines,
    digest,
    metrics,
    protocol,
    repeated_targets,
    sample_negatives,
    tied_targets,
)


def history_scores(experiment, params, case, cases):
    """Scores of items 1..n after one history, by the plain NumPy model."""
    c, n = experiment.config.model, experiment.num_items
    history = experiment.dataset.items[cases.starts[case]:cases.targets[case]]
    seen = history[-c.max_length:] if c.causal else [*history[-(c.max_length - 1):], n + 1]
    table = np.asarray(params["items"]["embedding"], np.float64)
    h = naive_encoder(c, params["encoder"], table[seen], c.causal)[-1]
    return table[1:n + 1] @ h + np.asarray(params["items"]["bias"])[1:n + 1]


CAUSAL = {"masking.next_item": 1.0, "model.ranks_from": "last_item"}


@pytest.mark.parametrize("protocol, filter_seen, model_choice", [
    ("full", True, {}), ("full", False, {}), ("uni100", True, {}), ("uni100", False, {}), ("full", True, CAUSAL)])
def test_ranks_equal_a_brute_force_ranking_ties_included(cache, protocol, filter_seen, model_choice):
    config = small_config(cache, **model_choice, **{
        "eval.protocol": protocol, "eval.filter_seen": filter_seen,
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


def with_repeats(experiment):
    """Makes every second test target an item that its user has met before; returns which."""
    items, split = np.array(experiment.dataset.items), experiment.split
    repeated = np.arange(len(split.test_users)) % 2 == 0
    starts = experiment.dataset.offsets[split.test_users]
    items[split.test_targets[repeated]] = items[starts[repeated]]
    experiment.dataset = dataclasses.replace(experiment.dataset, items=items)
    return repeated


def test_a_target_that_was_met_before_ranks_last_or_competes_and_the_protocol_says_so(cache):
    experiment = Experiment(small_config(cache))
    params = model.init_params(experiment.config.model, experiment.num_items, jax.random.key(5))
    repeated, rankings = with_repeats(experiment), {}
    cases = experiment.cases("test")
    assert np.array_equal(repeated_targets(experiment.dataset, cases), repeated)
    for choice in ("last", "compete"):
        changed = dataclasses.replace(experiment.config.eval, repeated_targets=choice)
        experiment.config = dataclasses.replace(experiment.config, eval=changed)
        ranked = Ranker(experiment.config, experiment.dataset, cases, experiment.layout).rank(params)
        simple = baselines.rank_all(experiment.config, experiment.dataset, experiment.split, cases, experiment.popularity)
        rankings[choice] = {"model": ranked, **simple}
        assert ("rank last" in protocol(changed, experiment.split, 3)) == (choice == "last")
    for name, last in rankings["last"].items():
        compete = rankings["compete"][name]
        np.testing.assert_array_equal(last.candidates, compete.candidates)
        np.testing.assert_array_equal(last.ranks("pessimistic")[repeated], last.candidates[repeated])
        np.testing.assert_array_equal(last.ranks("pessimistic")[~repeated], compete.ranks("pessimistic")[~repeated])
    # Among its competitors is none that was seen: a target that was removed itself would rank last here too.
    assert rankings["compete"]["model"].greater[repeated].min() < 20
    for case in np.flatnonzero(repeated)[:10]:
        scores = history_scores(experiment, params, case, cases)
        history = experiment.dataset.items[cases.starts[case]:cases.targets[case]]
        target = experiment.dataset.items[cases.targets[case]]
        unseen = np.setdiff1d(np.arange(1, experiment.num_items + 1), history)
        assert rankings["compete"]["model"].greater[case] == (scores[unseen - 1] > scores[target - 1]).sum()


def naive_markov(experiment):
    counts = np.zeros((experiment.num_items + 1,) * 2)
    data, split = experiment.dataset, experiment.split
    for start, stop in zip(data.offsets, split.train_stop):
        for before, behind in itertools.pairwise(data.items[start:stop]):
            counts[before, behind] += 1
    return lambda history: counts[history[-1]]


def naive_knn(experiment):
    data, split = experiment.dataset, experiment.split
    met = np.zeros((data.num_users, data.num_items + 1))
    for user, (start, stop) in enumerate(zip(data.offsets, split.train_stop)):
        met[user, data.items[start:stop]] = 1
    norms = np.maximum(np.linalg.norm(met, axis=0), 1)
    cosine = met.T @ met / np.outer(norms, norms)
    np.fill_diagonal(cosine, 0)
    return lambda history: cosine[history].sum(axis=0)


@pytest.mark.parametrize("name, naive", [("markov", naive_markov), ("item_knn", naive_knn)])
@pytest.mark.parametrize("protocol_name", ["full", "pop100"])
def test_the_ranks_of_counting_models_equal_a_brute_force_ranking(cache, name, naive, protocol_name):
    # As many items as neighbours are kept: none is cut off.
    items = 60 if protocol_name == "full" else 160
    config = small_config(cache, **{"data.synthetic.num_items": items, "eval.protocol": protocol_name})
    experiment = Experiment(config)
    cases, data, score = experiment.cases("test"), experiment.dataset, naive(experiment)
    ranking = baselines.rank_all(config, data, experiment.split, cases, experiment.popularity)[name]
    negatives = sample_negatives(data, cases.users, experiment.popularity, 100, 0) if items > 100 else None
    compared = 0
    for case in range(len(cases.users)):
        history, target = data.items[cases.starts[case]:cases.targets[case]], data.items[cases.targets[case]]
        scores = score(history)
        others = np.setdiff1d(np.arange(1, items + 1), [*history, target]) if negatives is None else negatives[case]
        if items > 100 and name == "item_knn":  # neighbours beyond the hundredth do not count
            continue
        assert ranking.greater[case] == (scores[others] > scores[target] + 1e-6).sum()
        assert ranking.ties[case] == (abs(scores[others] - scores[target]) <= 1e-6).sum()
        assert ranking.candidates[case] == len(others) + 1
        compared += scores[target] > 0
    assert compared > 10 or items > 100


def test_popular_recent_counts_the_newest_tenth_of_training(cache):
    experiment = Experiment(small_config(cache))
    data, split, cases = experiment.dataset, experiment.split, experiment.cases("test")
    inside = np.concatenate([np.arange(a, b) for a, b in zip(data.offsets, split.train_stop)])
    newest = inside[np.asarray(data.timestamps[inside]) >= np.quantile(data.timestamps[inside], 0.9)]
    assert 0.05 < len(newest) / len(inside) < 0.2
    counts = np.bincount(data.items[newest], minlength=61)
    ranking = baselines.rank_all(experiment.config, data, split, cases, experiment.popularity)["popular_recent"]
    for case in range(len(cases.users)):
        target = data.items[cases.targets[case]]
        others = np.setdiff1d(np.arange(1, 61), [*data.items[cases.starts[case]:cases.targets[case]], target])
        assert ranking.greater[case] == (counts[others] > counts[target]).sum()


def test_negatives_do_not_depend_on_the_runs_seed_and_the_digest_covers_them(cache):
    digests = {}
    for seed, negatives_seed in ((0, 0), (1, 0), (1, 1)):
        experiment = Experiment(small_config(cache, **{
            "seed": seed, "eval.negatives_seed": negatives_seed, "eval.protocol": "uni100",
            "data.synthetic.num_items": 160}))
        params = model.init_params(experiment.config.model, experiment.num_items, jax.random.key(0))
        cases = experiment.cases("test")
        digests[seed, negatives_seed] = digest(experiment.dataset, cases, experiment.ranker("test").rank(params))
    assert digests[0, 0] == digests[1, 0] != digests[1, 1]


def test_ties_in_time_are_found(cache):
    experiment = Experiment(small_config(cache))
    times = np.array(experiment.dataset.timestamps)
    cases = experiment.cases("test")
    tied = np.arange(len(cases.users)) % 3 == 0
    times[cases.targets] = times[cases.targets - 1] + np.where(tied, 0, 1)
    dataset = dataclasses.replace(experiment.dataset, timestamps=times)
    np.testing.assert_array_equal(tied_targets(dataset, cases), tied)
    assert tied_targets(dataclasses.replace(dataset, timestamps=None), cases) is None


def test_the_ranks_of_popularity_equal_a_brute_force_ranking(cache):
    config = small_config(cache)
    experiment = Experiment(config)
    cases, data = experiment.cases("test"), experiment.dataset
    counts = experiment.popularity
    ranking = baselines.rank_all(config, data, experiment.split, cases, counts)["popular"]
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
