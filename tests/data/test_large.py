# SPDX-License-Identifier: Apache-2.0
"""Training from folders that memory cannot hold: what is streamed equals what was computed at once, what a pass found is
kept, and batches touch only their own pages."""

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
    (tmp_path / "log.csv").write_text("\n".join(["user,item,timestamp", *lines]))
    return load_dataset(
        DataConfig(source="table", path=str(tmp_path / "log.csv"), cache_dir=str(tmp_path))
    )


@pytest.mark.parametrize("intervals", [2, 3, 1 << 20])
@pytest.mark.parametrize("shares", [(0.1, 0.2), (0.3, 0.01)])
def test_passes_by_block_find_what_arrays_find(data, monkeypatch, intervals, shares):
    monkeypatch.setattr(ranges, "EVENTS_PER_BLOCK", 137)
    monkeypatch.setattr(order_statistics, "_INTERVALS", intervals)
    config = SplitConfig(kind="temporal", test_share=shares[0], valid_share=shares[1])
    times = np.asarray(data.timestamps)
    places = [len(times) - round(share * len(times)) for share in (sum(shares), shares[0])]
    valid_cut, test_cut = np.sort(times)[places]
    split = split_dataset(data, config)
    bounds = list(zip(data.offsets[:-1], data.offsets[1:]))
    assert split.train_stop.tolist() == [
        a + np.count_nonzero(times[a:b] < valid_cut) for a, b in bounds
    ]
    assert (
        all(times[target] >= test_cut for target in split.test_targets)
        and len(split.test_targets) > 5
    )
    training = np.concatenate(
        [np.arange(a, stop) for (a, _), stop in zip(bounds, split.train_stop)]
    )
    assert (
        training_counts(data, split).tolist()
        == np.bincount(data.items[training], minlength=31).tolist()
    )
    for share in (0.1, 0.37, 1.0):
        recent = training[times[training] >= np.quantile(times[training], 1 - share)]
        assert (
            recent_counts(data, split, share).tolist()
            == np.bincount(data.items[recent], minlength=31).tolist()
        )


def test_what_a_pass_found_is_kept_in_the_folder(data, monkeypatch):
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
    assert again.description == first.description and np.array_equal(
        again.test_targets, first.test_targets
    )
    assert np.array_equal(training_counts(data, again), counts)


def epoch_at_once(data, split, row_length, windows, seed, epoch):
    """Rows of an epoch by arrays over all places, as they were drawn when seeds got their meaning."""
    starts, full = data.offsets[:-1], split.train_stop - data.offsets[:-1]
    users = np.flatnonzero(full >= 2)
    lengths, starts = np.minimum(full[users], row_length), starts[users]
    packing = pack(lengths, row_length)
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    shuffled = generator.permutation(len(users))
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    room = split.train_stop[users][order] - starts[order] - lengths[order]
    first = starts[order] + (generator.integers(0, room + 1) if windows == "random" else room)
    rows = generator.permutation(packing.num_rows)[packing.row]
    return _fill(
        data.items,
        _Placed(rows, packing.start, first, lengths[order]),
        packing.num_rows,
        row_length,
    )


@pytest.mark.parametrize("windows", ["newest", "random"])
def test_seeds_keep_their_meaning(data, windows):
    split = split_dataset(data)
    batches = TrainingBatches(data, split, 20, 8, windows, 5)
    epochs = [epoch_at_once(data, split, 20, windows, 5, epoch) for epoch in range(3)]
    whole = [np.concatenate(parts) for parts in zip(*epochs)]
    for step in range(batches.rows_per_epoch * 3 // 8):
        for found, expected in zip(batches.batch(step), whole):
            assert np.array_equal(found, expected[step * 8 : (step + 1) * 8])


def test_more_than_two_to_the_31_interactions_and_no_pass_over_them(tmp_path):
    """A sparse file of three billion events: reading it through would take minutes, holding it 12 GB."""
    size, users = 3_000_000_000, 1000
    items = np.lib.format.open_memmap(tmp_path / "items.npy", "w+", np.int32, (size,))
    offsets = np.linspace(0, size, users + 1).astype(np.int64)
    for stop in offsets[1:]:
        items[stop - 12 : stop] = np.arange(1, 13)
    data = Dataset(items, offsets, None, users, 12, str(tmp_path), {"name": "sparse"}, "")
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    split = split_dataset(data)
    packed = TrainingBatches(data, split, 10, 4, "newest", 0).batch(3)
    assert packed.tokens.tolist() == [list(range(1, 11))] * 4
    assert split.test_targets[-1] == size - 1 > 2**31
    ranking = RankingBatches(items, offsets[split.test_users], split.test_targets, 8, 16, None)
    assert len(ranking) == 63 and ranking[0].packed.tokens[0].tolist() == list(range(4, 12))
    random = TrainingBatches(data, split, 10, 4, "random", 0).batch(3)
    assert random.tokens.shape == (4, 10)
    assert time.process_time() - begun < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_offsets_beyond_two_to_the_31_are_written(tmp_path):
    """As where three billion events have been written before."""
    arrays = Writer(str(tmp_path), False, 4)
    arrays.interactions = before = 3_000_000_000
    arrays.add(np.array([2, 3]), np.array([0, 1, 2, 3, 0]), None)
    arrays.close()
    assert np.load(tmp_path / "offsets.npy").tolist() == [0, before + 2, before + 5]
    assert np.load(tmp_path / "items.npy").tolist() == [1, 2, 3, 4, 1]
