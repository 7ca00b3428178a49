# SPDX-License-Identifier: Apache-2.0
"""The parts of an experiment: validation users, ranks of validation, rows per device."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import small_config

from bert4rec_jax import experiment as experiment_module
from bert4rec_jax.devices import Layout
from bert4rec_jax.errors import Stopped, UserError
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.ranking import from_ranks


def test_some_users_validate_and_all_are_tested(cache):
    few, everyone = (
        Experiment(small_config(cache, **{"split.valid_users": count})) for count in (15, 0)
    )
    assert [len(x.cases("valid").users) for x in (few, everyone)] == [
        15,
        len(everyone.split.valid_users),
    ]
    np.testing.assert_array_equal(few.cases("test").targets, everyone.split.test_targets)
    # The others' targets are trained on.
    others = len(everyone.split.valid_users) - 15
    assert few.popularity.sum() == everyone.popularity.sum() + others
    assert few.batches.tokens_per_epoch > everyone.batches.tokens_per_epoch


def test_validation_uses_the_configured_ties_and_stops_on_signals(cache):
    config = small_config(cache, **{"eval.ties": "expected", "model.layers": 1})
    experiment = Experiment(config)
    checks = []

    def check():
        checks.append(True)
        if len(checks) == 1:
            raise Stopped(15, "stopped")
        return False

    stop = SimpleNamespace(check=check)
    params = jax.tree.map(np.zeros_like, jax.tree.map(np.array, experiment.initial_state().params))
    # All items tie, so the expected rank of every target is in the middle.
    cases = experiment.cases("valid")
    unseen = [
        experiment.num_items - len(set(experiment.dataset.items[start:target]))
        for start, target in zip(cases.starts, cases.targets)
    ]
    placed = experiment.layout.put_state(params)
    with pytest.raises(Stopped):  # after the first batch
        experiment.validate(stop, placed)
    metrics = experiment.validate(stop, placed)
    assert metrics == pytest.approx(from_ranks((np.array(unseen) + 1) / 2))


def test_windows_are_those_of_the_configuration(cache):
    newest, random = (
        Experiment(small_config(cache, **{"train.windows": windows, "model.max_length": 6}))
        for windows in ("newest", "random")
    )
    assert not np.array_equal(newest.batches.batch(0).tokens, random.batches.batch(0).tokens)


class FourDevices(Layout):
    def __init__(self, _):
        self.num_devices = 4


@pytest.mark.parametrize(
    "layout, fields, named",
    [
        (Layout, {"masking.next_item_share": 0.3}, "next_item_share = 0.3 of 8 rows"),
        (
            Layout,
            {"masking.next_item_share": 0.25, "train.accumulate": 4},
            "next_item_share = 0.25 of 2 rows",
        ),
        (FourDevices, {"masking.next_item_share": 0.25}, "next_item_share = 0.25 of 2 rows"),
        (
            FourDevices,
            {"train.accumulate": 4},
            "train.accumulate = 4 must divide the 2 rows of a device",
        ),
        (
            FourDevices,
            {"train.batch_rows": 6},
            "train.batch_rows = 6 must be a multiple of the 4 devices",
        ),
    ],
)
def test_rows_that_cannot_be_dealt_out_are_refused(cache, monkeypatch, layout, fields, named):
    monkeypatch.setattr(experiment_module, "Layout", layout)
    with pytest.raises(UserError, match=named):
        Experiment(small_config(cache, **fields))
