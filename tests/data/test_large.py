# SPDX-License-Identifier: Apache-2.0
"""Logs that do not fit into memory: passes by block, cached results, and batches of a huge log."""

import resource
import time

import numpy as np
import pytest

from bert4rec_jax.config import DataConfig, SplitConfig
from bert4rec_jax.data import (
    Dataset,
    RankingBatches,
    TrainingBatches,
    dataset,
    load_dataset,
    order_statistics,
    popularity,
    ranges,
    recent_counts,
    split_dataset,
    splits,
    training_counts,
)
from bert4rec_jax.data.batching import _fill, _Placed, pack
from bert4rec_jax.data.writer import Writer


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(0)
    lines = [
        f"{random.integers(50)},{random.integers(30)},{int(random.integers(-500, 500) ** 3)}"
        for _ in range(3000)
    ]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user,item,timestamp", *lines]))
    return load_dataset(DataConfig(source="table", path=str(path), cache_dir=str(tmp_path)))


@pytest.mark.parametrize("intervals", [2, 3, 1 << 20])
@pytest.mark.parametrize("test_share, valid_share", [(0.1, 0.2), (0.3, 0.01)])
def test_passes_by_block_equal_array_operations(
    data, monkeypatch, intervals, test_share, valid_share
):
    monkeypatch.setattr(ranges, "EVENTS_PER_BLOCK", 137)
    monkeypatch.setattr(order_statistics, "_INTERVALS", intervals)
    times = np.asarray(data.timestamps)
    in_order = np.sort(times)
    valid_cut = in_order[len(times) - round((test_share + valid_share) * len(times))]
    test_cut = in_order[len(times) - round(test_share * len(times))]
    config = SplitConfig(kind="temporal", test_share=test_share, valid_share=valid_share)
    split = split_dataset(data, config)
    training = []
    for user in range(data.num_users):
        start, stop = data.offsets[user : user + 2]
        train_stop = start + np.count_nonzero(times[start:stop] < valid_cut)
        assert split.train_stop[user] == train_stop
        training.append(np.arange(start, train_stop))
    assert len(split.test_targets) > 5
    assert all(times[target] >= test_cut for target in split.test_targets)
    events = np.concatenate(training)
    expected = np.bincount(data.items[events], minlength=31)
    assert training_counts(data, split).tolist() == expected.tolist()
    for share in (0.1, 0.37, 1.0):
        recent = events[times[events] >= np.quantile(times[events], 1 - share)]
        expected = np.bincount(data.items[recent], minlength=31)
        assert recent_counts(data, split, share).tolist() == expected.tolist()


def test_the_result_of_a_pass_is_cached_in_the_folder(data, monkeypatch):
    monkeypatch.setattr(dataset, "_CACHE_FROM", 0)
    config = SplitConfig(kind="temporal")
    first = split_dataset(data, config)
    counts = training_counts(data, first)
    for module, name in (
        (splits, "_first_events"),
        (splits, "order_statistic"),
        (popularity, "split_by_size"),
    ):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("a pass over all events"))
    again = split_dataset(data, config)
    assert again.description == first.description
    assert np.array_equal(again.test_targets, first.test_targets)
    assert np.array_equal(training_counts(data, again), counts)


def epoch_at_once(data, split, row_length, windows, seed, epoch):
    """Returns all rows of an epoch, drawn with arrays as long as the number of users."""
    starts = data.offsets[:-1]
    sizes = split.train_stop - starts
    users = np.flatnonzero(sizes >= 2)
    lengths = np.minimum(sizes[users], row_length)
    packing = pack(lengths, row_length)
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    shuffled = generator.permutation(len(users))
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    overflow = (sizes[users] - lengths)[order]
    skipped = generator.integers(0, overflow + 1) if windows == "random" else overflow
    rows = generator.permutation(packing.num_rows)[packing.row]
    first = starts[users][order] + skipped
    placed = _Placed(rows, packing.start, first, lengths[order])
    return _fill(data.items, placed, packing.num_rows, row_length)


@pytest.mark.parametrize("windows", ["newest", "random"])
def test_a_seed_gives_the_same_batches_in_every_version(data, windows):
    split = split_dataset(data)
    batches = TrainingBatches(data, split, 20, 8, windows, 5)
    epochs = [epoch_at_once(data, split, 20, windows, 5, epoch) for epoch in range(3)]
    expected = [np.concatenate(arrays) for arrays in zip(*epochs)]
    for step in range(batches.rows_per_epoch * 3 // 8):
        rows = slice(step * 8, (step + 1) * 8)
        for found, whole in zip(batches.batch(step), expected):
            assert np.array_equal(found, whole[rows])


def test_batches_of_three_billion_events_need_no_pass_over_them(tmp_path):
    """The log is a sparse file: a pass over it would take minutes, and in memory it is 12 GB."""
    size = 3_000_000_000
    users = 1000
    items = np.lib.format.open_memmap(tmp_path / "items.npy", "w+", np.int32, (size,))
    offsets = np.linspace(0, size, users + 1).astype(np.int64)
    for stop in offsets[1:]:
        items[stop - 12 : stop] = np.arange(1, 13)
    data = Dataset(items, offsets, None, users, 12, str(tmp_path), {"name": "sparse"}, "")
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    split = split_dataset(data)
    assert split.test_targets[-1] == size - 1 > 2**31
    newest = TrainingBatches(data, split, 10, 4, "newest", 0).batch(3)
    assert newest.tokens.tolist() == [list(range(1, 11))] * 4
    random = TrainingBatches(data, split, 10, 4, "random", 0).batch(3)
    assert random.tokens.shape == (4, 10)
    starts = offsets[split.test_users]
    ranking = RankingBatches(items, starts, split.test_targets, 8, 16, None)
    assert len(ranking) == 63
    assert ranking[0].packed.tokens[0].tolist() == list(range(4, 12))
    assert time.process_time() - started < 20
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before
    assert memory < 200 << 10  # KiB


def test_offsets_may_exceed_two_to_the_31(tmp_path):
    arrays = Writer(str(tmp_path), False, 4)
    arrays.interactions = before = 3_000_000_000
    arrays.add(np.array([2, 3]), np.array([0, 1, 2, 3, 0]), None)
    arrays.close()
    assert np.load(tmp_path / "offsets.npy").tolist() == [0, before + 2, before + 5]
    assert np.load(tmp_path / "items.npy").tolist() == [1, 2, 3, 4, 1]
