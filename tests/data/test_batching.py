# SPDX-License-Identifier: Apache-2.0
"""Packed training batches and ranking batches, checked history by history."""

import dataclasses

import numpy as np
import pytest
from conftest import small_config

from bert4rec_jax.data import load_dataset, split_dataset
from bert4rec_jax.data.batching import Packed, RankingBatches, TrainingBatches, pack


@pytest.fixture(scope="module")
def data(cache):
    config = small_config(cache)
    dataset = load_dataset(config.data)
    return dataset, split_dataset(dataset, config.split)


def histories(packed):
    """Returns the histories of a batch as tuples, found by their segments alone."""
    found = []
    for tokens, segments in zip(np.asarray(packed.tokens), np.asarray(packed.segments)):
        for number in range(1, segments.max(initial=0) + 1):
            columns = np.flatnonzero(segments == number)
            assert np.array_equal(columns, np.arange(columns[0], columns[-1] + 1))
            found.append(tuple(tokens[columns].tolist()))
    return found


@pytest.mark.parametrize("length", [1, 7, 50])
def test_packing_places_every_history_once_without_overlap(length):
    lengths = np.random.default_rng(length).integers(1, length + 1, 1000)
    packing = pack(lengths, length)
    used = np.zeros((packing.num_rows, length), int)
    for place, history in enumerate(packing.order):
        start = packing.start[place]
        assert start + lengths[history] <= length
        used[packing.row[place], start : start + lengths[history]] += 1
    assert used.max() == 1
    assert used.sum() == lengths.sum()
    assert used.mean() > 0.95


def test_an_epoch_contains_the_newest_part_of_every_training_history_once(data):
    dataset, split = data
    batches = TrainingBatches(dataset, split, 16, 8, "newest", seed=3)
    rows = batches.rows_per_epoch
    seen = []
    for step in range(-(-rows // 8)):
        packed = batches.batch(step)
        kept = min(8, rows - step * 8)  # the last batch continues with the next epoch
        seen += histories(Packed(*(array[:kept] for array in packed)))
    expected = [
        tuple(dataset.items[max(start, stop - 16) : stop].tolist())
        for start, stop in zip(dataset.offsets[:-1], split.train_stop)
        if stop - start >= 2
    ]
    assert sorted(seen) == sorted(expected)


def test_users_need_two_training_events(data):
    dataset, split = data
    lengths = np.arange(dataset.num_users) % 4  # 0, 1, 2 and 3 training events
    shortened = dataclasses.replace(split, train_stop=dataset.offsets[:-1] + lengths)
    batches = TrainingBatches(dataset, shortened, 16, 8, "newest", 0)
    assert batches.tokens_per_epoch == lengths[lengths >= 2].sum()


def test_epochs_differ_in_the_order_and_neighbours_of_histories(data):
    dataset, split = data
    batches = TrainingBatches(dataset, split, 16, 1, "newest", seed=3)
    count = batches.rows_per_epoch
    first = [batches.batch(row) for row in range(count)]
    second = [batches.batch(count + row) for row in range(count)]
    # Packing starts with the longest histories; an epoch does not.
    longest = [int(row.from_left.max()) for row in first]
    assert longest != sorted(longest, reverse=True)
    assert [row.segments.tolist() for row in first] != [row.segments.tolist() for row in second]

    def shared_rows(epoch):
        return {tuple(row.tokens[0].tolist()) for row in epoch if row.segments.max() > 1}

    assert len(shared_rows(first)) > 20
    assert len(shared_rows(first) & shared_rows(second)) < 0.5 * len(shared_rows(first))


@pytest.mark.parametrize("windows", ["newest", "random"])
def test_windows_of_a_long_history_begin_where_they_should(data, windows):
    dataset, split = data
    user = int(np.argmax(split.train_stop - dataset.offsets[:-1]))
    start = dataset.offsets[user]
    length = int(split.train_stop[user] - start)
    items = np.zeros_like(dataset.items)  # only this user has items
    items[start : start + length] = np.arange(1, 1 + length)
    marked = dataclasses.replace(dataset, items=items)
    newest = 1 + length - 8
    expected = {newest} if windows == "newest" else set(range(1, newest + 1))
    batches = TrainingBatches(marked, split, 8, 8, windows, 0)
    found = set()
    for step in range(int(8 * len(expected) * batches.steps_per_epoch())):
        tokens = batches.batch(step).tokens
        found |= set(tokens[tokens[:, 0] > 0, 0].tolist())
    assert found == expected


def test_batches_are_a_function_of_seed_and_step(data):
    dataset, split = data

    def make(seed, step, part=0, parts=1):
        return TrainingBatches(dataset, split, 16, 8, "random", seed).batch(step, part, parts)

    first = make(1, 30)
    again = make(1, 30)
    assert all(np.array_equal(x, y) for x, y in zip(first, again))
    assert not np.array_equal(first.tokens, make(2, 30).tokens)
    assert not np.array_equal(first.tokens, make(1, 31).tokens)
    halves = [make(1, 30, part, 2) for part in (0, 1)]
    assert all(np.array_equal(x, np.concatenate([y, z])) for x, y, z in zip(first, *halves))


def test_validation_and_test_items_are_in_no_training_batch(data):
    dataset, split = data
    shuffled = np.array(dataset.items)
    for targets in (split.valid_targets, split.test_targets):
        shuffled[targets] = np.roll(shuffled[targets], 1)
    other = dataclasses.replace(dataset, items=shuffled)
    for windows in ("newest", "random"):
        batches = TrainingBatches(dataset, split, 16, 8, windows, 0)
        other_batches = TrainingBatches(other, split, 16, 8, windows, 0)
        for step in range(40):
            assert np.array_equal(batches.batch(step).tokens, other_batches.batch(step).tokens)


def test_a_ranking_history_ends_before_its_target(data):
    dataset, split = data
    starts = dataset.offsets[split.test_users]
    targets = split.test_targets
    for mask in (None, 61):
        found = {}
        for batch in RankingBatches(dataset.items, starts, targets, 16, 8, mask):
            for row, slot in zip(*np.nonzero(batch.cases >= 0)):
                column = batch.slots[row, slot]
                same = batch.packed.segments[row] == batch.packed.segments[row, column]
                assert np.flatnonzero(same)[-1] == column
                found[batch.cases[row, slot]] = batch.packed.tokens[row, same].tolist()
        assert len(found) == len(targets)
        for case, tokens in found.items():
            newest = dataset.items[starts[case] : targets[case]].tolist()
            assert tokens == (newest[-16:] if mask is None else [*newest[-15:], mask])
