# SPDX-License-Identifier: Apache-2.0
import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import small_config, with_repeats
from plain_numpy import naive_encoder

from bert4rec_jax.config import EvalConfig
from bert4rec_jax.errors import UserError
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.model import encoder as model
from bert4rec_jax.ranking import (
    Ranker,
    Ranking,
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
    history = experiment.dataset.items[cases.starts[case] : cases.targets[case]]
    newest = history[-(c.max_length - 1) :]
    table = np.asarray(params["items"]["embedding"], np.float64)
    state = lambda seen, causal: naive_encoder(c, params["encoder"], table[seen], causal)[-1]  # noqa: E731
    h = {
        "mask": lambda: state([*newest, n + 1], False),
        "last_item": lambda: state(history[-c.max_length :], True),
        "both": lambda: (state([*newest, n + 1], False) + state(newest, True)) / 2,
    }[c.predict_from]()
    return table[1 : n + 1] @ h + np.asarray(params["items"]["bias"])[1 : n + 1]


CAUSAL = {"masking.next_item_share": 1.0, "model.predict_from": "last_item"}
BOTH = {"masking.next_item_share": 0.5, "model.predict_from": "both"}


@pytest.mark.parametrize(
    "protocol, filter_seen, model_choice",
    [
        ("full", True, {}),
        ("full", False, {}),
        ("uni100", True, {}),
        ("pop100", False, {}),
        ("full", True, CAUSAL),
        ("full", True, BOTH),
        ("full", False, BOTH | {"model.positions": "right"}),
        ("uni100", True, BOTH | {"model.positions": "rotary"}),
    ],
)
def test_ranks_equal_a_brute_force_ranking_ties_included(
    cache, protocol, filter_seen, model_choice
):
    config = small_config(
        cache,
        **model_choice,
        **{
            "eval.protocol": protocol,
            "eval.filter_seen": filter_seen,
            "data.synthetic.num_items": 160,
            "model.init_scale": 0.3,
        },
    )
    experiment = with_repeats(Experiment(config))
    params = model.init_params(config.model, experiment.num_items, jax.random.key(5))
    # Groups of five items with the very same embedding and bias tie exactly.
    n = experiment.num_items
    table = np.array(params["items"]["embedding"])
    table[1 : n + 1] = table[1 + np.arange(n) // 5 * 5]
    params["items"] = {"embedding": jax.numpy.asarray(table), "bias": params["items"]["bias"]}
    ranking = experiment.ranker("test").rank(params, with_top=True)
    cases = experiment.cases("test")
    weights = experiment.popularity if protocol == "pop100" else np.ones(n + 1)
    negatives = sample_negatives(experiment.dataset, cases.users, weights, 100, 0)
    tied = repeats = 0
    for case in range(len(cases.users)):
        scores = history_scores(experiment, params, case, cases)
        target = experiment.dataset.items[cases.targets[case]]
        seen = set(experiment.dataset.items[cases.starts[case] : cases.targets[case]].tolist())
        others = set(range(1, n + 1)) - {target} - (seen if filter_seen else set())
        if protocol != "full":
            others = set(negatives[case].tolist())
        # Scores of packed rows may differ in the last bits; scores equal by construction must stay equal.
        group = lambda item: (item - 1) // 5  # noqa: E731
        greater = sum(
            scores[i - 1] > scores[target - 1] and group(i) != group(target) for i in others
        )
        ties = sum(group(i) == group(target) for i in others)
        tied += ties
        if target in seen:
            repeats += 1
            if protocol == "full" and filter_seen:  # it would never be recommended
                greater, ties = len(others), 0
        assert (ranking.greater[case], ranking.ties[case]) == (greater, ties)
        assert ranking.candidates[case] == len(others) + 1
        if protocol == "full":
            allowed = np.array(sorted(others | ({target} - seen if filter_seen else {target})))
            best = np.sort(scores[allowed - 1])[::-1][:10]
            np.testing.assert_allclose(scores[ranking.top[case] - 1], best, rtol=1e-4, atol=1e-5)
    assert tied > 50 and repeats > 10
    assert np.array_equal(ranking.ranks("pessimistic"), 1 + ranking.greater + ranking.ties)
    assert np.array_equal(ranking.ranks("expected"), 1 + ranking.greater + ranking.ties / 2)


@pytest.mark.parametrize("part, value", [("bias", np.nan), ("bias", np.inf), ("embedding", np.nan)])
def test_where_one_item_has_no_score_nobody_is_ranked(cache, part, value):
    # Comparisons with NaN are false, so every target would seem to rank before that item.
    experiment = Experiment(small_config(cache))
    params = jax.tree.map(
        np.array,
        model.init_params(experiment.config.model, experiment.num_items, jax.random.key(5)),
    )
    params["items"][part][7] = value
    count = len(experiment.cases("test").users)
    with pytest.raises(UserError, match=f"the scores of {count} of {count} users are not finite"):
        experiment.ranker("test").rank(params)


def with_repeated_targets(experiment):
    """Makes every second test target an item that its user has met before; returns which."""
    items, split = np.array(experiment.dataset.items), experiment.split
    repeated = np.arange(len(split.test_users)) % 2 == 0
    # The first event of the history, or the last.
    met = np.where(
        np.arange(len(repeated)) % 4 == 0,
        experiment.dataset.offsets[split.test_users],
        split.test_targets - 1,
    )
    items[split.test_targets[repeated]] = items[met[repeated]]
    experiment.dataset = dataclasses.replace(experiment.dataset, items=items)
    return repeated


def test_a_target_that_was_met_before_ranks_last_or_competes_and_the_protocol_says_so(cache):
    experiment = Experiment(small_config(cache))
    params = model.init_params(experiment.config.model, experiment.num_items, jax.random.key(5))
    repeated, rankings = with_repeated_targets(experiment), {}
    cases = experiment.cases("test")
    assert np.array_equal(repeated_targets(experiment.dataset, cases), repeated)
    for choice in ("rank_last", "keep"):
        changed = dataclasses.replace(experiment.config.eval, seen_targets=choice)
        experiment.config = dataclasses.replace(experiment.config, eval=changed)
        ranked = Ranker(experiment.config, experiment.dataset, cases, experiment.layout).rank(
            params, with_top=True
        )
        simple, _ = baselines.rank_all(
            experiment.config, experiment.dataset, experiment.split, cases, experiment.popularity
        )
        rankings[choice] = {"model": ranked, **simple}
        assert ("rank last" in protocol(changed, experiment.split, 3)) == (choice == "rank_last")
    for name, last in rankings["rank_last"].items():
        compete = rankings["keep"][name]
        np.testing.assert_array_equal(last.candidates, compete.candidates)
        np.testing.assert_array_equal(
            last.ranks("pessimistic")[repeated], last.candidates[repeated]
        )
        np.testing.assert_array_equal(
            last.ranks("pessimistic")[~repeated], compete.ranks("pessimistic")[~repeated]
        )
    # Among its competitors is none that was seen: a target that was removed itself would rank last here too.
    assert rankings["keep"]["model"].greater[repeated].min() < 20
    for case in np.flatnonzero(repeated)[:10]:
        scores = history_scores(experiment, params, case, cases)
        history = experiment.dataset.items[cases.starts[case] : cases.targets[case]]
        target = experiment.dataset.items[cases.targets[case]]
        unseen = np.setdiff1d(np.arange(1, experiment.num_items + 1), history)
        assert (
            rankings["keep"]["model"].greater[case]
            == (scores[unseen - 1] > scores[target - 1]).sum()
        )
        best = unseen[np.argsort(-scores[unseen - 1], kind="stable")]
        np.testing.assert_array_equal(rankings["rank_last"]["model"].top[case], best[:10])
    # Lists do not contain seen items, unless these are kept as candidates.
    in_lists = {
        choice: (ranking["model"].top == experiment.dataset.items[cases.targets][:, None])
        .any(1)[repeated]
        .sum()
        for choice, ranking in rankings.items()
    }
    assert in_lists["rank_last"] == 0 < in_lists["keep"]


def test_negatives_do_not_depend_on_the_runs_seed_and_the_digest_covers_them(cache):
    digests = {}
    for seed, negatives_seed in ((0, 0), (1, 0), (1, 1)):
        experiment = Experiment(
            small_config(
                cache,
                **{
                    "seed": seed,
                    "eval.negatives_seed": negatives_seed,
                    "eval.protocol": "uni100",
                    "data.synthetic.num_items": 160,
                },
            )
        )
        params = model.init_params(experiment.config.model, experiment.num_items, jax.random.key(0))
        cases = experiment.cases("test")
        digests[seed, negatives_seed] = digest(
            experiment.dataset, cases, experiment.ranker("test").rank(params)
        )
    assert digests[0, 0] == digests[1, 0] != digests[1, 1]


def test_ties_in_time_are_found(cache):
    experiment = Experiment(small_config(cache))
    times = np.array(experiment.dataset.timestamps)
    cases = experiment.cases("test")
    tied = np.arange(len(cases.users)) % 3 == 0
    times[cases.targets] = times[cases.targets - 1] + np.where(tied, 0, 1)
    dataset = dataclasses.replace(experiment.dataset, timestamps=times)
    np.testing.assert_array_equal(tied_targets(dataset, cases), tied)
    assert not tied_targets(
        dataset, cases._replace(starts=cases.targets)
    ).any()  # the event before it belongs to another user
    assert tied_targets(dataclasses.replace(dataset, timestamps=None), cases) is None


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
    assert abs(hit.mean() - expected.mean()) < 5 * np.sqrt((expected * (1 - expected)).sum()) / len(
        hit
    )


def test_negatives_were_never_met_and_do_not_repeat(cache):
    config = small_config(cache, **{"data.synthetic.num_items": 160})
    experiment = Experiment(config)
    users = experiment.cases("test").users
    drawn = sample_negatives(experiment.dataset, users, experiment.popularity, 100, 7)
    assert np.array_equal(
        drawn, sample_negatives(experiment.dataset, users, experiment.popularity, 100, 7)
    )
    for user, row in zip(users, drawn):
        met = experiment.dataset.items[
            experiment.dataset.offsets[user] : experiment.dataset.offsets[user + 1]
        ]
        assert len(set(row.tolist())) == 100
        assert not np.isin(row, met).any()
        assert row.min() >= 1 and row.max() <= experiment.num_items


def test_negatives_may_be_all_that_a_user_has_not_met_and_no_more(cache):
    experiment = Experiment(small_config(cache))
    data, user = experiment.dataset, 3
    left = np.setdiff1d(np.arange(1, 61), data.items[data.offsets[user] : data.offsets[user + 1]])
    drawn = sample_negatives(data, np.array([user]), np.ones(61), len(left), 0)[0]
    np.testing.assert_array_equal(np.sort(drawn), left)
    with pytest.raises(UserError, match=f"fewer than the {len(left) + 1} negatives"):
        sample_negatives(data, np.array([user]), np.ones(61), len(left) + 1, 0)


def test_where_items_without_weight_are_needed_they_come_after_all_others(cache):
    experiment = Experiment(small_config(cache))
    data, user = experiment.dataset, 3
    left = np.setdiff1d(np.arange(1, 61), data.items[data.offsets[user] : data.offsets[user + 1]])
    weighted, count = left[::2], len(left) - 3
    weights = np.zeros(61)
    weights[weighted] = np.where(np.arange(len(weighted)) % 2, 1, 9)
    drawn = sample_negatives(data, np.full(400, user), weights, count, 0)
    for row in drawn:
        assert len(set(row.tolist())) == count and np.isin(row, left).all()
        assert set(row[: len(weighted)].tolist()) == set(weighted.tolist())
    assert len(set(drawn[:, -1].tolist())) > 5  # of those without weight, any
    heavy = weights[drawn[:, 0]] == 9
    share = weights[weights == 9].sum() / weights.sum()
    assert abs(heavy.mean() - share) < 5 * np.sqrt(share * (1 - share) / len(heavy))


def test_negatives_come_in_proportion_to_their_weights(cache):
    experiment = Experiment(small_config(cache))
    data, user, weights = experiment.dataset, 3, np.where(np.arange(61) % 2, 1.0, 9.0)
    drawn = sample_negatives(data, np.full(4000, user), weights, 1, 5)[:, 0]
    weights[[0, *data.items[data.offsets[user] : data.offsets[user + 1]]]] = 0
    expected = len(drawn) * weights / weights.sum()
    assert np.all(np.abs(np.bincount(drawn, minlength=61) - expected) < 5 * np.sqrt(expected) + 1)


def test_the_digest_covers_all_that_tells_two_rankings_apart(cache):
    experiment = Experiment(small_config(cache))
    data, cases = experiment.dataset, experiment.cases("test")
    n = len(cases.users)
    ranking = Ranking(np.zeros(n), np.zeros(n), np.full(n, 50), None, np.zeros((n, 0), np.int32))
    other_targets = np.array(data.items)
    other_targets[cases.targets] = other_targets[cases.targets][::-1]
    different = [
        (data, cases, ranking),
        (data, cases._replace(users=cases.users[::-1]), ranking),
        (dataclasses.replace(data, items=other_targets), cases, ranking),
        (data, cases._replace(starts=cases.starts + 1), ranking),
        (data, cases, dataclasses.replace(ranking, candidates=np.full(n, 51))),
        (data, cases, dataclasses.replace(ranking, negatives=np.ones((n, 1), np.int32))),
    ]
    assert len({digest(*x) for x in different}) == len(different)
    # The ranks do not change the digest.
    assert digest(data, cases, dataclasses.replace(ranking, greater=np.ones(n))) == digest(
        data, cases, ranking
    )


@pytest.mark.parametrize(
    "fields, said, unsaid",
    [
        (
            {},
            ["whole catalogue", "seen items removed", "behind all ties"],
            ["negatives", "targets among them"],
        ),
        (
            {"filter_seen": False},
            ["seen items kept, 4 targets among them"],
            ["removed", "rank last"],
        ),
        (
            {"seen_targets": "rank_last"},
            ["seen items removed, and 4 targets among them, which rank last"],
            [],
        ),
        (
            {"seen_targets": "keep"},
            ["seen items removed, but for 4 targets among them"],
            ["rank last"],
        ),
        (
            {"protocol": "pop100", "ties": "expected"},
            [
                "100 negatives drawn by training popularity",
                "seen items removed, 4 targets",
                "middle of ties",
            ],
            ["rank last"],
        ),
        (
            {"protocol": "uni100", "filter_seen": False},
            ["drawn uniformly", "seen items removed, 4 targets"],
            ["kept"],
        ),
    ],
)
def test_the_protocol_says_how_it_was_ranked(fields, said, unsaid):
    split = SimpleNamespace(description="split in two")
    sentence = protocol(EvalConfig(**fields), split, 4 if fields else 0)
    assert sentence.startswith("split in two; ")
    assert (
        [text for text in said if text not in sentence]
        == [text for text in unsaid if text in sentence]
        == []
    )


def test_names_of_the_same_number_and_ranks_beyond_every_cutoff():
    values = metrics.from_ranks(np.array([2, 10, 400]))
    assert values["map@10"] == values["mrr@10"] == pytest.approx((1 / 2 + 1 / 10) / 3)
    assert values["mrr"] == pytest.approx((1 / 2 + 1 / 10 + 1 / 400) / 3)
    assert values["hr@10"] == pytest.approx(2 / 3) and values["hr@5"] == pytest.approx(1 / 3)


def test_places_of_lists_that_stayed_empty_do_not_count():
    beyond = metrics.beyond_accuracy(np.array([[1, 2], [1, 0], [0, 0]]), np.array([0, 6, 3, 0, 0]))
    assert beyond["coverage@2"] == 0.5 and beyond["popularity@2"] == 5
    np.testing.assert_allclose(beyond["novelty@2"], -np.log2([7 / 13, 7 / 13, 4 / 13]).mean())
    assert metrics.beyond_accuracy(np.zeros((2, 3), int), np.array([0, 6, 3])) == {
        "coverage@3": 0.0
    }


def test_metrics_of_known_ranks():
    values = metrics.from_ranks(np.array([1, 2, 11, 3.5]))
    assert values["hr@10"] == values["recall@10"] == 0.75
    np.testing.assert_allclose(values["ndcg@10"], (1 + 1 / np.log2(3) + 1 / np.log2(4.5)) / 4)
    np.testing.assert_allclose(values["mrr"], (1 + 1 / 2 + 1 / 11 + 1 / 3.5) / 4)
    np.testing.assert_allclose(values["mrr@10"], (1 + 1 / 2 + 1 / 3.5) / 4)
    assert values["hr@1"] == 0.25
    beyond = metrics.beyond_accuracy(np.array([[1, 2], [1, 3]]), np.array([0, 6, 1, 0, 0]))
    assert beyond["coverage@2"] == 0.75 and beyond["popularity@2"] == 3.25
    np.testing.assert_allclose(
        beyond["novelty@2"], -np.log2([7 / 11, 7 / 11, 2 / 11, 1 / 11]).mean()
    )
    with pytest.raises(UserError, match="metric .* is unknown"):
        metrics.per_user("ndcg", np.ones(3))
