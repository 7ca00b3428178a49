# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import numpy as np
import pytest
from conftest import small_config

from bert4rec_jax.config import MaskingConfig
from bert4rec_jax.data import load_dataset, split_dataset
from bert4rec_jax.data.batching import RankingBatches, TrainingBatches, pack
from bert4rec_jax.model.tasks import learns_next_item, mask_items, masks_per_history


@pytest.fixture(scope="module")
def data(cache):
    config = small_config(cache)
    dataset = load_dataset(config.data)
    return config, dataset, split_dataset(dataset, config.split)


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
        used[packing.row[place], start : start + lengths[history]] += 1
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
    expected = [
        tuple(dataset.items[max(a, b - 16) : b].tolist())
        for a, b in zip(dataset.offsets[:-1], split.train_stop)
        if b - a >= 2
    ]
    assert sorted(seen) == sorted(expected)


def test_users_of_two_training_events_teach_and_those_of_one_do_not(data):
    _, dataset, split = data
    stop = np.array(split.train_stop)
    lengths = np.arange(len(stop)) % 4  # 0, 1, 2 and 3 training events
    stop[:] = dataset.offsets[:-1] + lengths
    batches = TrainingBatches(
        dataset, dataclasses.replace(split, train_stop=stop), 16, 8, "newest", 0
    )
    assert batches.tokens_per_epoch == lengths[lengths >= 2].sum()


def test_epochs_differ_in_order_and_neighbours(data):
    _, dataset, split = data
    batches = TrainingBatches(dataset, split, 16, 1, "newest", seed=3)
    count = batches.rows_per_epoch
    epochs = [[batches.batch(epoch * count + row) for row in range(count)] for epoch in (0, 1)]
    # Packing begins with the longest histories; an epoch does not.
    longest = [int(row.from_left.max()) for row in epochs[0]]
    assert longest != sorted(longest, reverse=True)
    assert [row.segments.tolist() for row in epochs[0]] != [
        row.segments.tolist() for row in epochs[1]
    ]
    shared = [
        {tuple(row.tokens[0].tolist()) for row in epoch if row.segments.max() > 1}
        for epoch in epochs
    ]
    assert len(shared[0]) > 20 and len(shared[0] & shared[1]) < 0.5 * len(shared[0])


def test_random_windows_begin_anywhere_in_a_long_history(data):
    _, dataset, split = data
    user = int(np.argmax(split.train_stop - dataset.offsets[:-1]))
    start, stop = dataset.offsets[user], split.train_stop[user]
    items = np.zeros_like(dataset.items)
    items[start:stop] = np.arange(1, 1 + stop - start)  # nobody else has items
    marked = dataclasses.replace(dataset, items=items)
    for windows, expected in (
        ("random", set(range(1, 2 + stop - start - 8))),
        ("newest", {1 + stop - start - 8}),
    ):
        batches = TrainingBatches(marked, split, 8, 8, windows, 0)
        begins = set()
        for step in range(int(8 * len(expected) * batches.steps_per_epoch())):
            tokens = batches.batch(step).tokens
            begins |= set(tokens[tokens[:, 0] > 0, 0].tolist())
        assert begins == expected


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


def test_numbers_of_masks():
    # Of histories of 0, 1, ... items: the rounded share, but at least one.
    config = MaskingConfig(probability=0.3)
    assert masks_per_history(config, 12).tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4]
    assert masks_per_history(dataclasses.replace(config, max_masks=2), 12).max() == 2


@pytest.mark.parametrize("rows", [8, 10, 100])
def test_the_configured_share_of_rows_learns_the_next_item(rows):
    for count in range(rows + 1):
        chosen = learns_next_item(count / rows, rows)
        assert chosen.sum() == count
        # Spread evenly: every half of the rows has its half.
        assert abs(chosen[: rows // 2].sum() - count / 2) <= 1


def test_some_histories_lose_their_last_item_alone_and_the_others_as_many_as_ever(data):
    _, dataset, split = data
    masking = MaskingConfig(probability=0.5, last_item_only=0.4)
    packed = TrainingBatches(dataset, split, 16, 8, "newest", 0).batch(0)
    full = type(packed)(*(np.repeat(x, 200, axis=0) for x in packed))
    task = mask_items(
        masking, full, 16, dataset.num_items, jax.random.key(0), np.arange(len(full.tokens))
    )
    hidden = np.asarray(task.tokens == dataset.num_items + 1)
    counts, last_only, firsts, share = masks_per_history(masking, 16), [], [], []
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
    # Where more is hidden, the first item is as often hidden as any.
    assert abs(np.mean(firsts) - np.mean(share)) < 5 * np.sqrt(0.25 / len(firsts))


@pytest.mark.parametrize("last_item_only", [0.0, 1.0])
def test_masking_hides_the_right_number_of_items_and_asks_for_them(data, last_item_only):
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
    full = type(packed)(*(np.repeat(x, 100, axis=0) for x in packed))
    task = mask_items(
        masking, full, 16, dataset.num_items, jax.random.key(0), np.arange(len(full.tokens))
    )
    shown = np.take_along_axis(np.asarray(task.tokens), np.asarray(task.slots), axis=1)[
        np.asarray(task.weights) > 0
    ]
    labels = np.asarray(task.labels)[np.asarray(task.weights) > 0]
    assert abs((shown == dataset.num_items + 1).mean() - 0.5) < 0.03
    assert abs((shown == labels).mean() - 0.2 - 0.3 / dataset.num_items) < 0.03
    assert shown.max() <= dataset.num_items + 1 and shown.min() >= 1
    # What is random is any item with the same probability, and nothing else.
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
        assert counts[0] == 0 and np.abs(counts[1:-1] - expected).max() < 6 * np.sqrt(expected)
        assert (
            abs(counts[-1] - (1 - random_token) * used.sum())
            < 6 * np.sqrt(0.25 * used.sum()) * (random_token < 1) + 1
        )
