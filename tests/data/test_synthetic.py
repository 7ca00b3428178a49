# SPDX-License-Identifier: Apache-2.0
"""The generated log has the documented structure, and the Bayes oracle is optimal on it."""

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
    config = dataclasses.replace(CONFIG, **changes)
    return load_dataset(DataConfig(source="synthetic", cache_dir=cache, synthetic=config))


def test_sizes_titles_and_seed(cache):
    data = load(cache)
    statistics = data.statistics()
    assert data.num_users == 3000
    assert data.num_items == 60
    assert statistics["min_length"] >= 5
    assert abs(statistics["mean_length"] - 14) < 0.7
    for start, stop in zip(data.offsets[:300], data.offsets[1:301]):
        assert len(set(data.items[start:stop].tolist())) == stop - start
    assert data.item_table()["title"].str.fullmatch(r"Genre \d+, item \d+").all()
    assert data.item_table()["genres"].nunique() == 4
    assert load(cache, seed=4).fingerprint != data.fingerprint
    # With every NumPy version; a change requires another `synthetic.VERSION`.
    assert data.fingerprint == "d65ab5e68c39e065"


def brute_force(data, user, target):
    """Returns the probabilities of the next item, summed over all paths of tastes."""
    process = synthetic.structure(CONFIG)
    own = data.item_table()["item"].astype(int).to_numpy() - 1
    genres = process.genres[own]
    popularity = process.popularity[own]
    history = data.items[data.offsets[user] : target] - 1

    def emission(taste, seen):
        unseen = popularity * ~seen
        inside = unseen * (genres == taste)
        anywhere = unseen / unseen.sum()
        return anywhere if not inside.any() else 0.85 * inside / inside.sum() + 0.15 * anywhere

    seen = np.zeros(len(own), bool)
    paths = {(taste,): 0.25 for taste in range(4)}
    for item in history:
        emissions = [emission(taste, seen) for taste in range(4)]
        longer = {}
        for path, weight in paths.items():
            for taste in range(4):
                probability = emissions[path[-1]][item] * process.transitions[path[-1], taste]
                longer[(*path, taste)] = weight * probability
        paths = longer
        seen[item] = True
    total = sum(weight * emission(path[-1], seen) for path, weight in paths.items())
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
    """The hit rate and the mean log probability agree with the oracle's own expectation."""
    data = load(cache)
    split = split_dataset(data)
    process = in_dataset_order(synthetic.structure(CONFIG), data)
    starts = data.offsets[split.test_users]
    scores, seen = next_item_probabilities(process, data.items, starts, split.test_targets)
    assert np.allclose(scores.sum(axis=1), 1)
    assert not np.any(scores[seen])
    hits = bayes_optimal_ranks(data, split.test_users, split.test_targets) <= 10
    expected = np.sort(scores, axis=1)[:, -10:].sum(axis=1)
    error = np.sqrt(np.mean(expected * (1 - expected)) / len(hits))
    assert abs(hits.mean() - expected.mean()) < 4 * error
    own = np.log(scores[np.arange(len(starts)), data.items[split.test_targets] - 1])
    logs = np.log(np.where(scores > 0, scores, 1))
    expected = np.sum(scores * logs, axis=1)
    variance = np.sum(scores * logs**2, axis=1) - expected**2
    error = np.sqrt(np.mean(variance) / len(own))
    assert abs(own.mean() - expected.mean()) < 4 * error


def ndcg(ranks):
    ranks = np.array(ranks)
    return np.mean(np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0))


def test_the_oracle_beats_popularity_and_the_genre_of_the_last_item(cache):
    data = load(cache, num_items=300)
    split = split_dataset(data)
    optimal = bayes_optimal_ranks(data, split.test_users, split.test_targets)
    genre = data.item_table()["genres"].to_numpy()
    counts = np.bincount(data.items, minlength=301)[1:]
    popular = []
    last_genre = []
    for user, position in zip(split.test_users, split.test_targets):
        target = data.items[position] - 1
        history = data.items[data.offsets[user] : position] - 1
        scores = counts.astype(float)
        scores[history] = -1
        popular.append(np.sum(scores >= scores[target]))
        scores[genre == genre[history[-1]]] *= 1000
        last_genre.append(np.sum(scores >= scores[target]))
    assert ndcg(optimal) > 1.05 * ndcg(last_genre) > 1.3 * ndcg(popular)


def test_the_oracle_rejects_filtered_data(cache):
    config = DataConfig(source="synthetic", cache_dir=cache, synthetic=CONFIG)
    data = load_dataset(config, FilterConfig(item_core=900))
    with pytest.raises(ValueError, match="filters removed"):
        bayes_optimal_ranks(data, np.array([0]), np.array([3]))
