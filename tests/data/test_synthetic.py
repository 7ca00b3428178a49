# SPDX-License-Identifier: Apache-2.0
"""The generator does what its docstring says, and the computed optimum is one."""

import dataclasses

import numpy as np
import pytest
from bayes_oracle import bayes_optimal_ranks, in_dataset_order, next_item_probabilities

from bert4rec_jax.config import DataConfig, FilterConfig, SyntheticConfig
from bert4rec_jax.data import load_dataset, split_dataset
from bert4rec_jax.data.sources import synthetic

CONFIG = SyntheticConfig(users=3000, num_items=60, genres=4, mean_length=14, seed=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("synthetic"))


def load(cache, **changes):
    return load_dataset(
        DataConfig(
            source="synthetic", cache_dir=cache, synthetic=dataclasses.replace(CONFIG, **changes)
        )
    )


def test_shape_titles_and_seed(cache):
    data = load(cache)
    assert data.num_users == 3000 and data.num_items == 60
    assert data.statistics()["min_length"] >= 5
    assert abs(data.statistics()["mean_length"] - 14) < 0.7
    for u in range(300):
        own = data.items[data.offsets[u] : data.offsets[u + 1]]
        assert len(set(own.tolist())) == len(own)
    assert data.item_table()["title"].str.fullmatch(r"Genre \d+, item \d+").all()
    assert data.item_table()["genres"].nunique() == 4
    assert load(cache, seed=4).fingerprint != data.fingerprint
    assert data.fingerprint == "d65ab5e68c39e065"  # under every NumPy; a change needs a new VERSION


def brute_force(data, user, target):
    """Probabilities of the next item by summing over every path of tastes, in the dataset's numbering."""
    process = synthetic.structure(CONFIG)
    own = data.item_table()["item"].astype(int).to_numpy() - 1
    genres, popularity = process.genres[own], process.popularity[own]
    history = data.items[data.offsets[user] : target] - 1

    def emission(taste, seen):
        unseen = popularity * ~seen
        inside = unseen * (genres == taste)
        anywhere = unseen / unseen.sum()
        return anywhere if not inside.any() else 0.85 * inside / inside.sum() + 0.15 * anywhere

    seen = np.zeros(len(own), bool)
    paths = {(z,): 0.25 for z in range(4)}
    for item in history:
        table = [emission(z, seen) for z in range(4)]
        paths = {
            p + (z,): w * table[p[-1]][item] * process.transitions[p[-1], z]
            for p, w in paths.items()
            for z in range(4)
        }
        seen[item] = True
    total = sum(w * emission(p[-1], seen) for p, w in paths.items())
    return total / total.sum(), seen


def test_optimal_ranks_equal_a_sum_over_all_paths(cache):
    data = load(cache)
    users = np.flatnonzero(np.diff(data.offsets) >= 7)[:18]
    targets = data.offsets[users] + 1 + np.arange(18) % 6
    ranks = bayes_optimal_ranks(data, users, targets)
    for user, target, rank in zip(users, targets, ranks):
        scores, seen = brute_force(data, user, target)
        own = scores[data.items[target] - 1]
        assert rank == np.sum((scores >= own * (1 - 1e-9)) & ~seen)


def test_the_log_follows_the_probabilities(cache):
    """Over many targets, the model's mean log probability and its hit rate are what it expects of itself."""
    data = load(cache)
    split = split_dataset(data)
    process = in_dataset_order(synthetic.structure(CONFIG), data)
    starts = data.offsets[split.test_users]
    scores, seen = next_item_probabilities(process, data.items, starts, split.test_targets)
    assert np.allclose(scores.sum(axis=1), 1) and not np.any(scores[seen])
    hits = bayes_optimal_ranks(data, split.test_users, split.test_targets) <= 10
    expected = np.sort(scores, axis=1)[:, -10:].sum(axis=1)
    assert abs(hits.mean() - expected.mean()) < 4 * np.sqrt(
        np.mean(expected * (1 - expected)) / len(hits)
    )
    own = np.log(scores[np.arange(len(starts)), data.items[split.test_targets] - 1])
    logs = np.log(np.where(scores > 0, scores, 1))
    entropy = np.sum(scores * logs, axis=1)
    spread = np.sqrt(np.mean(np.sum(scores * logs**2, axis=1) - entropy**2) / len(own))
    assert abs(own.mean() - entropy.mean()) < 4 * spread


def test_the_optimum_beats_popularity_and_the_last_item_alone(cache):
    data = load(cache, num_items=300)
    split = split_dataset(data)
    targets = data.items[split.test_targets]
    optimal = bayes_optimal_ranks(data, split.test_users, split.test_targets)
    genre = data.item_table()["genres"]
    counts = np.bincount(data.items, minlength=301)[1:]
    popular, last = [], []
    for u, t, target in zip(split.test_users, split.test_targets, targets):
        history = data.items[data.offsets[u] : t] - 1
        scores = counts.astype(float)
        scores[history] = -1
        popular.append(np.sum(scores >= scores[target - 1]))
        scores = scores * np.where(genre == genre[history[-1] + 1], 1000, 1)
        last.append(np.sum(scores >= scores[target - 1]))
    ndcg = [
        np.mean(np.where(np.array(r) <= 10, 1 / np.log2(1 + np.array(r)), 0))
        for r in (optimal, last, popular)
    ]
    assert ndcg[0] > 1.05 * ndcg[1] > 1.3 * ndcg[2]


def test_filtered_data_are_refused(cache):
    data = load_dataset(
        DataConfig(source="synthetic", cache_dir=cache, synthetic=CONFIG),
        FilterConfig(item_core=900),
    )
    with pytest.raises(ValueError, match="filters removed"):
        bayes_optimal_ranks(data, np.array([0]), np.array([3]))
