# SPDX-License-Identifier: Apache-2.0
"""Ranking in chunks of the catalogue equals ranking the whole catalogue, ties included."""

import jax
import numpy as np
import pytest
from conftest import small_config

from bert4rec_jax.experiment import Experiment
from bert4rec_jax.model import init_params
from bert4rec_jax.ranking import Ranker, large


@pytest.mark.parametrize("filter_seen", [True, False])
def test_chunks_rank_like_the_whole(cache, monkeypatch, filter_seen):
    config = small_config(
        cache,
        **{
            "data.synthetic.num_items": 160,
            "eval.filter_seen": filter_seen,
            "model.init_scale": 0.3,
        },
    )
    experiment = Experiment(config)
    params = init_params(config.model, experiment.num_items, jax.random.key(5))
    table = np.array(params["items"]["embedding"])
    table[1:] = table[1 + np.arange(len(table) - 1) // 5 * 5]  # groups of five items tie exactly
    params["items"]["embedding"] = jax.numpy.asarray(table)
    whole = experiment.ranker("test").rank(params, with_top=True)
    called = []
    in_chunks = large.rank_in_chunks
    monkeypatch.setattr(
        "bert4rec_jax.ranking.ranker.rank_in_chunks", lambda *a: called.append(1) or in_chunks(*a)
    )
    monkeypatch.setattr(large, "MOST_BYTES", {"cpu": 0})
    monkeypatch.setattr(
        large, "CHUNK_BYTES", 1
    )  # chunks of 128 items, of a table whose size is not a multiple of 128
    again = Ranker(config, experiment.dataset, experiment.cases("test"), experiment.layout)
    chunked = again.rank(params, with_top=True)
    assert called and len(table) > 128 and len(table) % 128
    assert whole.ties.max() > 0
    for name in ("greater", "ties", "candidates", "top"):
        np.testing.assert_array_equal(getattr(chunked, name), getattr(whole, name), err_msg=name)


def test_no_array_of_histories_and_items_is_left(monkeypatch):
    monkeypatch.setattr(large, "CHUNK_BYTES", 1)
    assert large.is_large(400, 10_000_000, "cpu")
    assert not large.is_large(400, 100_000, "cpu")
