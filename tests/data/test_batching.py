# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest
from conftest import small_config

from bert4rec_jax.data import load_dataset, split_dataset
from bert4rec_jax.data.batching import TrainingBatches, pack, ranking_batches
from bert4rec_jax.model.tasks import mask_items, masks_per_history


@pytest.fixture(scope="module")
def data(cache):
    config = small_config(cache)
    dataset = load_dataset(config.data)
    return config, dataset, split_dataset(dataset, config.data)


def histories(packed):
    """Returns the histories of a batch as tuples, read off segments alone."""
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
        used[packing.row[place], start:start + lengths[history]] += 1
    assert used.max() == 1
    assert used.sum() == lengths.sum()
    assert used.mean() > 0.95


def test_an_epoch_holds_the_newest_part_of_every_training_history_once(data):
    _, dataset, split = data
    batches = TrainingBatches(dataset, split, 16, 8, "newest", seed=3)
    rows = batches.rows_per_epoch
    # Enough batches for exactly one epoch of rows: the last one runs on into the next epoch.
    seen = []
    for step in range(-(-rows // 8)):
        packed = batches.batch(step)
        keep = min(8, rows - step * 8)
        seen += histories(type(packed)(*(x[:keep] for x in packed)))
    expected = [tuple(dataset.items[max(a, b - 16):b].tolist())
                for a, b in zip(dataset.offsets[:-1], split.train_stop) if b - a >= 2]
    assert sorted(seen) == sorted(expected)


def test_batches_are_a_function_of_seed_and_step(data):
    _, dataset, split = data

    def make(seed, step, part=0, parts=1):
        return TrainingBatches(dataset, split, 16, 8, "random", seed).batch(step, part, parts)

    first = make(1, 30)
    again = make(1, 30)
    assert all(np.array_equal(x, y) for x, y in zip(first, again))
    assert not np.array_equal(first.tokens, make(2, 30).tokens)
    assert not np.array_equal(first.tokens, make(1, 31).tokens)
    halves = [make(1, 30, part, 2) for part in (0, 1)]
    assert all(np.array_equal(x, np.concatenate([y, z])) for x, y, z in zip(first, *halves))


def test_held_out_items_cannot_reach_a_training_batch(data):
    _, dataset, split = data
    shuffled = np.array(dataset.items)
    for targets in (split.valid_targets, split.test_targets):
        shuffled[targets] = np.roll(shuffled[targets], 1)
    other = type(dataset)(**{**vars(dataset), "items": shuffled})
    for windows in ("newest", "random"):
        a, b = (TrainingBatches(d, split, 16, 8, windows, 0) for d in (dataset, other))
        for step in range(40):
            assert np.array_equal(a.batch(step).tokens, b.batch(step).tokens)


def test_a_ranking_history_ends_before_its_target(data):
    _, dataset, split = data
    starts, targets = dataset.offsets[split.test_users], split.test_targets
    for mask in (None, 61):
        found = {}
        for batch in ranking_batches(dataset.items, starts, targets, 16, 8, mask):
            for row, slot in zip(*np.nonzero(batch.cases >= 0)):
                column = batch.slots[row, slot]
                same = batch.packed.segments[row] == batch.packed.segments[row, column]
                assert np.flatnonzero(same)[-1] == column
                found[batch.cases[row, slot]] = batch.packed.tokens[row, same].tolist()
        assert len(found) == len(targets)
        for case, tokens in found.items():
            newest = dataset.items[starts[case]:targets[case]].tolist()
            assert tokens == (newest[-16:] if mask is None else [*newest[-15:], mask])


@pytest.mark.parametrize("last_item_only", [0.0, 1.0])
def test_masking_hides_the_right_number_of_items_and_asks_for_them(data, last_item_only):
    config, dataset, split = data
    masking = type(config.masking)(probability=0.3, last_item_only=last_item_only)
    batches = TrainingBatches(dataset, split, 16, 8, "newest", 0)
    counts = masks_per_history(masking, 16)
    slots = batches.most_in_a_row(counts)
    for step in range(5):
        packed = batches.batch(step)
        task = jax.tree.map(np.asarray, mask_items(masking, packed, slots, dataset.num_items, jax.random.key(step),
                                                   np.arange(len(packed.tokens))))
        hidden = task.tokens == dataset.num_items + 1
        asked = np.zeros_like(hidden)
        for row, slot in zip(*np.nonzero(task.weights)):
            column = task.slots[row, slot]
            assert not asked[row, column]
            asked[row, column] = True
            assert task.labels[row, slot] == packed.tokens[row, column]
        assert np.array_equal(hidden, asked)
        assert np.array_equal(task.tokens[~hidden], packed.tokens[~hidden])
        lengths = packed.from_left + packed.from_right + 1
        for row in range(8):
            for number in range(1, packed.segments[row].max(initial=0) + 1):
                inside = packed.segments[row] == number
                expected = 1 if last_item_only else counts[lengths[row, inside][0]]
                assert hidden[row, inside].sum() == expected
                if last_item_only:
                    assert hidden[row, inside][-1]


def test_masked_positions_are_uniform(data):
    config, dataset, split = data
    packed = TrainingBatches(dataset, split, 16, 8, "newest", 0).batch(0)
    full = type(packed)(*(np.repeat(x, 100, axis=0) for x in packed))
    task = mask_items(config.masking, full, 16, dataset.num_items, jax.random.key(0),
                      np.arange(len(full.tokens)))
    share = np.mean(np.asarray(task.tokens == dataset.num_items + 1).reshape(8, 100, 16), axis=1)
    lengths = packed.from_left + packed.from_right + 1
    expected = masks_per_history(config.masking, 16)[lengths] / lengths * (packed.segments > 0)
    # Five standard deviations of a mean of 100 draws.
    assert np.all(np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 100) + 1e-6)


def test_random_and_kept_tokens_have_their_shares(data):
    config, dataset, split = data
    masking = type(config.masking)(probability=0.5, random_token=0.3, keep_token=0.2)
    packed = TrainingBatches(dataset, split, 16, 8, "newest", 0).batch(0)
    full = type(packed)(*(np.repeat(x, 100, axis=0) for x in packed))
    task = mask_items(masking, full, 16, dataset.num_items, jax.random.key(0),
                      np.arange(len(full.tokens)))
    shown = np.take_along_axis(np.asarray(task.tokens), np.asarray(task.slots), axis=1)[np.asarray(task.weights) > 0]
    labels = np.asarray(task.labels)[np.asarray(task.weights) > 0]
    assert abs((shown == dataset.num_items + 1).mean() - 0.5) < 0.03
    assert abs((shown == labels).mean() - 0.2 - 0.3 / dataset.num_items) < 0.03
    assert shown.max() <= dataset.num_items + 1 and shown.min() >= 1
