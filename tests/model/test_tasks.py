# SPDX-License-Identifier: Apache-2.0
"""The training tasks: which items are masked, and which rows learn the next item."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import small_config

from bert4rec_jax.config import MaskingConfig
from bert4rec_jax.data import TrainingBatches, load_dataset, split_dataset
from bert4rec_jax.data.batching import Packed
from bert4rec_jax.model.tasks import learns_next_item, mask_items, masks_per_history


@pytest.fixture(scope="module")
def data(cache):
    config = small_config(cache)
    dataset = load_dataset(config.data)
    return config, dataset, split_dataset(dataset, config.split)


def test_numbers_of_masks():
    # For histories of 0, 1, ... items: the rounded share, but at least one.
    config = MaskingConfig(probability=0.3)
    assert masks_per_history(config, 12).tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4]
    assert masks_per_history(dataclasses.replace(config, max_masks=2), 12).max() == 2
    # Halves are rounded up, not to the even number as NumPy and Python do.
    assert masks_per_history(MaskingConfig(probability=0.5), 5).tolist() == [1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("rows", [8, 10, 100])
def test_the_configured_share_of_rows_learns_the_next_item(rows):
    for count in range(rows + 1):
        chosen = learns_next_item(count / rows, rows)
        assert chosen.sum() == count
        # They are spread evenly: half of them are in the first half of the rows.
        assert abs(chosen[: rows // 2].sum() - count / 2) <= 1


def test_a_share_of_histories_has_only_the_last_item_masked(data):
    _, dataset, split = data
    masking = MaskingConfig(probability=0.5, last_item_only=0.4)
    packed = TrainingBatches(dataset, split, 16, 8, "newest", 0).batch(0)
    full = Packed(*(np.repeat(x, 200, axis=0) for x in packed))
    task = mask_items(
        masking, full, 16, dataset.num_items, jax.random.key(0), np.arange(len(full.tokens))
    )
    hidden = np.asarray(task.tokens == dataset.num_items + 1)
    counts = masks_per_history(masking, 16)
    last_only = []
    firsts = []
    share = []
    for row in range(len(hidden)):
        for number in range(1, full.segments[row].max() + 1):
            inside = hidden[row, full.segments[row] == number]
            if counts[len(inside)] < 2:
                continue
            alone = inside.sum() == 1
            assert inside[-1] if alone else inside.sum() == counts[len(inside)]
            last_only.append(alone)
            if not alone:
                firsts.append(inside[0])
                share.append(counts[len(inside)] / len(inside))
    assert abs(np.mean(last_only) - 0.4) < 5 * np.sqrt(0.24 / len(last_only))
    # In the other histories, the first item is masked as often as any other item.
    assert abs(np.mean(firsts) - np.mean(share)) < 5 * np.sqrt(0.25 / len(firsts))


@pytest.mark.parametrize("last_item_only", [0.0, 1.0])
def test_the_right_number_of_items_is_masked_and_predicted(data, last_item_only):
    config, dataset, split = data
    masking = type(config.masking)(probability=0.3, last_item_only=last_item_only)
    batches = TrainingBatches(dataset, split, 16, 8, "newest", 0)
    counts = masks_per_history(masking, 16)
    slots = batches.most_in_a_row(counts)
    for step in range(5):
        packed = batches.batch(step)
        task = jax.tree.map(
            np.asarray,
            mask_items(
                masking,
                packed,
                slots,
                dataset.num_items,
                jax.random.key(step),
                np.arange(len(packed.tokens)),
            ),
        )
        hidden = task.tokens == dataset.num_items + 1
        predicted = np.zeros_like(hidden)
        for row, slot in zip(*np.nonzero(task.weights)):
            column = task.slots[row, slot]
            assert not predicted[row, column]
            predicted[row, column] = True
            assert task.labels[row, slot] == packed.tokens[row, column]
        assert np.array_equal(hidden, predicted)
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
    full = Packed(*(np.repeat(x, 100, axis=0) for x in packed))
    task = mask_items(
        config.masking, full, 16, dataset.num_items, jax.random.key(0), np.arange(len(full.tokens))
    )
    share = np.mean(np.asarray(task.tokens == dataset.num_items + 1).reshape(8, 100, 16), axis=1)
    lengths = packed.from_left + packed.from_right + 1
    expected = masks_per_history(config.masking, 16)[lengths] / lengths * (packed.segments > 0)
    # Five standard deviations of a mean of 100 draws.
    assert np.all(np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 100) + 1e-6)


def test_random_and_kept_tokens_have_their_shares(data):
    config, dataset, split = data
    masking = type(config.masking)(probability=0.5, random_token=0.3, keep_token=0.2)
    packed = TrainingBatches(dataset, split, 16, 8, "newest", 0).batch(0)
    full = Packed(*(np.repeat(x, 100, axis=0) for x in packed))
    task = mask_items(
        masking, full, 16, dataset.num_items, jax.random.key(0), np.arange(len(full.tokens))
    )
    used = np.asarray(task.weights) > 0
    shown = np.take_along_axis(np.asarray(task.tokens), np.asarray(task.slots), axis=1)[used]
    labels = np.asarray(task.labels)[used]
    assert abs((shown == dataset.num_items + 1).mean() - 0.5) < 0.03
    assert abs((shown == labels).mean() - 0.2 - 0.3 / dataset.num_items) < 0.03
    assert shown.max() <= dataset.num_items + 1
    assert shown.min() >= 1
    # Random tokens are items, each with the same probability.
    for random_token in (0.2, 1.0):
        task = mask_items(
            MaskingConfig(probability=0.5, random_token=random_token),
            full,
            16,
            dataset.num_items,
            jax.random.key(1),
            np.arange(len(full.tokens)),
        )
        used = np.asarray(task.weights) > 0
        shown = np.take_along_axis(np.asarray(task.tokens), np.asarray(task.slots), axis=1)[used]
        counts = np.bincount(shown, minlength=dataset.num_items + 2)
        expected = random_token * used.sum() / dataset.num_items
        assert counts[0] == 0
        assert np.abs(counts[1:-1] - expected).max() < 6 * np.sqrt(expected)
        assert (
            abs(counts[-1] - (1 - random_token) * used.sum())
            < 6 * np.sqrt(0.25 * used.sum()) * (random_token < 1) + 1
        )
