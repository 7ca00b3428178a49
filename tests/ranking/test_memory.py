# SPDX-License-Identifier: Apache-2.0
"""The memory of ranking does not grow with the log: peaks of small blocks over two million events."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from conftest import small_config

from bert4rec_jax.data import ranges, split_dataset, training_counts
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.ranking import PackedHistories, baselines, repeated_targets

USERS, EVENTS = 2_000, 1_000  # events of each user


@pytest.fixture
def long_log(cache):
    """An experiment whose log is 8 MB of items: one of numbers of 8 bytes would be 16."""
    experiment = Experiment(small_config(cache))
    items = np.random.default_rng(0).integers(1, 61, USERS * EVENTS, dtype=np.int32)
    experiment.dataset = dataclasses.replace(
        experiment.dataset,
        items=items,
        offsets=np.arange(USERS + 1) * EVENTS,
        num_users=USERS,
        timestamps=None,
    )
    experiment.split = split_dataset(experiment.dataset, experiment.config.split)
    return experiment


def peak(function) -> int:
    """Returns the bytes that a call held at most."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_baselines_hold_blocks_of_the_log(long_log, monkeypatch):
    for module, name in (
        (ranges, "EVENTS_PER_BLOCK"),
        (baselines, "_ELEMENTS_PER_BLOCK"),
    ):
        monkeypatch.setattr(module, name, 1 << 15)
    monkeypatch.setattr(baselines, "_MOST_EVENTS", 1 << 15)  # all that item_knn may hold of a log
    e, cases = long_log, long_log.cases("test")
    popularity = training_counts(e.dataset, e.split)
    results = []
    held = peak(
        lambda: results.append(baselines.rank_all(e.config, e.dataset, e.split, cases, popularity))
    )
    assert results[0][0].keys() == {"popular", "markov"} and results[0][1].keys() == {"item_knn"}
    assert held < 6e6 < e.dataset.items.nbytes
    assert peak(lambda: repeated_targets(e.dataset, cases)) < 6e6


def test_the_removed_items_of_all_batches_are_never_held_together(long_log):
    e, cases = long_log, long_log.cases("test")
    spans = cases.spans(e.dataset)
    packed = []

    def pack():
        packed.append(
            PackedHistories(
                e.config.model,
                e.num_items,
                spans,
                8,
                e.layout,
                spans.events,
            )
        )
        removed_item_P = packed[0].device_batch(3).removed_item_P
        assert len(removed_item_P) == packed[0].removed.length == 8 * (EVENTS - 1)

    assert peak(pack) < 6e6
    assert (packed[0].removed.counts == cases.targets - cases.starts).all()
