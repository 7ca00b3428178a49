# SPDX-License-Identifier: Apache-2.0
"""One update against its definition: the gradient of the mean loss of a batch, with fresh draws in every step."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from conftest import small_config

from bert4rec_jax.devices import Placement
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.model.tasks import Task
from bert4rec_jax.training import init_state, step

# Both tasks, dropout, and no row that learns what its neighbour does.
MIXED = {
    "masking.next_item_share": 0.5,
    "model.dropout": 0.2,
    "model.attention_dropout": 0.3,
    "model.layers": 1,
}


@pytest.fixture(scope="module")
def mean_gradient(cache):
    """The loss of a batch, its gradient and the number of targets, straight from the definition."""
    experiment = Experiment(small_config(cache, **MIXED))
    state, packed = init_state(experiment.config, experiment.num_items), experiment.batches.batch(0)

    spec = step.StepSpec(experiment.config, experiment.num_items, experiment.num_slots)

    def total(params, rows):
        # Two halves, as two devices would hold them: a row's random numbers depend on its number in
        # the batch.
        halves = [
            step.batch_loss(
                spec,
                params,
                jax.tree.map(lambda x: x[part], rows),
                np.arange(8)[part],
                step.step_keys(experiment.root, state.step),
                Placement("cpu"),
            )
            for part in (slice(0, 4), slice(4, 8))
        ]
        return halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]

    (loss, targets), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
        state.params, packed
    )
    return (
        float(loss / targets),
        jax.tree.map(lambda g: np.asarray(g / targets), gradient),
        float(targets),
    )


@pytest.mark.parametrize("parts, limit", [(1, 100.0), (2, 0.0)])
def test_a_step_follows_the_gradient_of_the_mean_loss_in_one_part_or_several(
    cache, mean_gradient, parts, limit
):
    # A limit above the norm changes nothing.
    experiment = Experiment(
        small_config(
            cache,
            **MIXED,
            **{
                "train.accumulate": parts,
                "optimizer.clip_norm": limit,
                "optimizer.beta1": 0.5,
                "optimizer.beta2": 0.75,
            },
        )
    )
    state, metrics = experiment.step(
        experiment.initial_state(), experiment.batch(0), experiment.root
    )
    loss, gradient, targets = mean_gradient
    assert metrics["targets"] == targets
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-4)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(gradient))
    first, second = (optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))
    for g, mu, nu in zip(*map(jax.tree.leaves, (gradient, first, second)), strict=True):
        np.testing.assert_allclose(mu, 0.5 * g, rtol=1e-4, atol=1e-5 * largest)
        np.testing.assert_allclose(nu, 0.25 * g**2, rtol=1e-3, atol=1e-6 * largest**2)


def test_every_draw_has_a_key_of_its_own(cache, monkeypatch):
    config, keys = small_config(cache), []
    experiment = Experiment(config)

    def standing_in(name, key_of, answer):
        def call(*arguments, **_):
            keys.append(tuple(jax.random.key_data(key_of(arguments)).tolist()))
            return answer(*arguments)

        monkeypatch.setattr(step, name, call)

    column = np.zeros((8, 1), np.int32)
    standing_in(
        "init_params",
        lambda a: a[2],
        lambda *_: {"items": {"embedding": jax.numpy.zeros((64, 16))}, "encoder": {}},
    )
    standing_in(
        "mask_items",
        lambda a: a[4],
        lambda _, packed, *rest: Task(packed.tokens, column, column, column),
    )
    standing_in("encode", lambda a: a[4].key, lambda *_: np.zeros((8, 1, 16), np.float32))
    standing_in("loss_sum", lambda a: a[5], lambda *_: 0.0)
    for seed in (0, 1):
        state = step.init_state(dataclasses.replace(config, seed=seed), experiment.num_items)
    for number in (0, 1):
        step.batch_loss(
            step.StepSpec(config, experiment.num_items, experiment.num_slots),
            state.params,
            experiment.batches.batch(number),
            np.arange(8),
            step.step_keys(experiment.root, number),
            Placement("cpu"),
        )
    assert len(set(keys)) == len(keys) == 2 + 2 * 3


def test_the_seed_reaches_batches_and_draws(cache):
    experiments = [Experiment(small_config(cache, seed=seed)) for seed in (0, 1)]
    assert not np.array_equal(*(experiment.batches.batch(0).tokens for experiment in experiments))
    assert not np.array_equal(*(jax.random.key_data(experiment.root) for experiment in experiments))


def test_an_update_that_is_not_finite_is_left_out_whole(cache):
    experiment = Experiment(small_config(cache, **{"train.on_nan": "skip", "model.layers": 1}))
    state, batch = experiment.initial_state(), experiment.batch(0)
    kept = jax.tree.map(np.array, state)
    state, _ = experiment.step(state, batch, experiment.root)
    assert (int(state.step), int(state.skipped)) == (1, 0)
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), kept.params, state.params)
    assert changed["items"]["embedding"] and changed["encoder"]["head_dense"]["kernel"]
    # The loss of a slot with such a hidden state is finite, its gradient is not.
    params = jax.tree.map(np.array, state.params)
    params["encoder"]["head_norm"]["scale"][:] = 1e30
    broken = state._replace(params=params)
    kept = jax.tree.map(np.array, broken)
    state, metrics = experiment.step(experiment.layout.put_state(broken), batch, experiment.root)
    assert not np.isfinite(metrics["grad_norm"])
    assert (int(state.step), int(state.skipped)) == (2, 1)
    jax.tree.map(
        np.testing.assert_array_equal,
        (state.params, state.opt_state),
        (kept.params, kept.opt_state),
    )
