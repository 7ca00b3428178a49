# SPDX-License-Identifier: Apache-2.0
"""Losses against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert4rec_jax.config import LossConfig
from bert4rec_jax.devices import Placement
from bert4rec_jax.devices.cpu import compiler_options
from bert4rec_jax.model import losses, softmax_unrolled
from bert4rec_jax.model.item_table import table_rows
from bert4rec_jax.model.softmax import Targets

ITEMS = 150
SLOTS = 40
WIDTH = 8


def loss_sum(config, items, h, targets, num_items=ITEMS, key=None):
    key = jax.random.key(0) if key is None else key
    return losses.loss_sum(config, num_items, items, h, Targets(*targets), key, Placement("cpu"))


@pytest.fixture(scope="module")
def arrays():
    keys = jax.random.split(jax.random.key(0), 5)
    rows = table_rows(ITEMS)
    items = {
        "embedding": jax.random.normal(keys[0], (rows, WIDTH)),
        "bias": jax.random.normal(keys[1], (rows,)),
    }
    h = 3 * jax.random.normal(keys[2], (SLOTS, WIDTH))
    labels = jax.random.randint(keys[3], (SLOTS,), 1, ITEMS + 1)
    weights = (jax.random.uniform(keys[4], (SLOTS,)) < 0.8).astype(jnp.float32)
    return items, h, (labels, weights)


def naive(items, h, targets):
    labels, weights = targets
    logits = h @ items["embedding"][1 : ITEMS + 1].T + items["bias"][1 : ITEMS + 1]
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels - 1))


@pytest.mark.parametrize("chunk", [0, 64, 29])
@pytest.mark.parametrize("keep", [True, False])
def test_chunked_softmax_equals_the_definition_in_value_and_gradient(
    arrays, chunk, keep, monkeypatch
):
    items, h, targets = arrays
    if not keep:
        monkeypatch.setattr(softmax_unrolled, "KEEP_BYTES", 0)

    def loss(items, h):
        # Three times: the gradient that reaches the loss is not always 1.
        return 3 * loss_sum(LossConfig(chunk_items=chunk), items, h, targets)

    def definition(items, h):
        return 3 * naive(items, h, targets)

    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(items, h)
    expected, expected_gradient = jax.value_and_grad(definition, argnums=(0, 1))(items, h)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=6e-5)


def test_softmax_handles_large_logits(arrays):
    items, h, targets = arrays
    value = loss_sum(LossConfig(chunk_items=16), items, 1e4 * h, targets)
    np.testing.assert_allclose(value, naive(items, 1e4 * h, targets), rtol=1e-5)


def test_memory_does_not_grow_with_the_catalogue_times_the_slots(monkeypatch):
    monkeypatch.setattr(softmax_unrolled, "KEEP_BYTES", 2**20)
    monkeypatch.setattr(softmax_unrolled, "CHUNK_BYTES", 2**20)
    num_items = 8190
    slots = 1024
    width = 4
    targets = (jnp.ones(slots, jnp.int32), jnp.ones(slots))

    def peak(chunk):
        rows = table_rows(num_items)
        items = {"embedding": jnp.zeros((rows, width)), "bias": jnp.zeros(rows)}

        def loss(items, h):
            return loss_sum(LossConfig(chunk_items=chunk), items, h, targets, num_items)

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=compiler_options("cpu"))
        compiled = gradient.lower(items, jnp.zeros((slots, width))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = num_items * slots * 4
    assert peak(num_items + 100) > 0.9 * logits
    assert peak(0) < 0.15 * logits


def test_sampled_softmax_estimates_the_full_loss(arrays):
    items, h, targets = arrays
    items = jax.tree.map(lambda x: 0.3 * x, items)
    h = 0.3 * h
    full = float(naive(items, h, targets))
    config = LossConfig(name="sampled_softmax", negatives=100)
    sampled = [
        float(loss_sum(config, items, h, targets, key=jax.random.key(seed))) for seed in range(40)
    ]
    assert abs(np.mean(sampled) - full) < 0.01 * full


def test_the_partition_function_of_sampled_softmax_is_unbiased():
    # (n - 1) / J instead of n / J would be a tenth too little. The first and the last item count
    # three times, so that the test fails if one of them is never drawn.
    n = 10
    draws = 4000
    bias = jnp.zeros(table_rows(n)).at[jnp.array([1, n])].set(np.log(3))
    items = {"embedding": jnp.zeros((table_rows(n), 1)), "bias": bias}
    config = LossConfig(name="sampled_softmax", negatives=5)
    targets = (jnp.array([1]), jnp.ones(1))

    def loss(key):
        return loss_sum(config, items, jnp.ones((1, 1)), targets, n, key)

    partition = 3 * np.exp(jax.vmap(loss)(jax.random.split(jax.random.key(0), draws)))
    assert abs(partition.mean() - (n + 4)) < 4 * partition.std() / np.sqrt(draws) < 0.4


@pytest.mark.parametrize("name", ["sampled_softmax", "gbce"])
def test_a_slot_without_weight_does_not_count_in_sampled_losses(arrays, name):
    items, h, (labels, weights) = arrays
    config = LossConfig(name=name, negatives=20)
    used = np.flatnonzero(weights)
    assert 0 < len(used) < SLOTS
    value = loss_sum(config, items, h, (labels, weights))
    expected = loss_sum(config, items, h[used], (labels[used], weights[used]))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["sampled_softmax", "gbce"])
def test_a_negative_that_is_the_target_does_not_count(monkeypatch, name):
    n = 50
    scores = jnp.zeros(table_rows(n)).at[:n].set(jnp.arange(float(n)))
    items = {"embedding": scores[:, None], "bias": jnp.zeros(table_rows(n))}
    targets = (jnp.array([3]), jnp.ones(1))

    def loss(negatives):
        monkeypatch.setattr(jax.random, "randint", lambda *_: jnp.array(negatives))
        config = LossConfig(name=name, negatives=len(negatives), gbce_t=0.0)
        return loss_sum(config, items, jnp.ones((1, 1)), targets, n)

    if name == "gbce":
        # The sum is divided by the number of negatives plus one.
        np.testing.assert_allclose(3 * loss([9, 3]), 2 * loss([9]), rtol=1e-6)
    else:
        # Two items represent n / 2 each: exp(9) n / 2 + exp(3) against exp(3).
        expected = np.log(np.exp(9 - 3) * n / 2 + 1)
        np.testing.assert_allclose(loss([9, 3]), expected, rtol=1e-6)


def gbce(scores, labels, weights, negatives, t):
    """The summed loss of slots that all have these scores of items 1.."""
    target_M = scores[labels - 1]
    is_target = labels[:, None] == negatives
    negative_MJ = jnp.where(is_target, -1e9, scores[negatives - 1])
    return jnp.sum(weights * losses.gbce(target_M, negative_MJ, len(scores), t))


def test_calibrated_gbce_is_minimal_at_the_true_probabilities():
    # Section 5 of the paper: with t = 1 the sigmoid of a score converges to the item's probability.
    # With t = 0 it exceeds the probability, more so with fewer negatives.
    n = 1000
    p = np.random.default_rng(0).dirichlet(np.ones(n))
    labels = jnp.arange(1, n + 1)
    halves = np.random.default_rng(1).permutation(n).reshape(2, -1) + 1

    def relative_gradient(t):
        def loss(scores):
            return sum(gbce(scores, labels, jnp.asarray(p), half, t) for half in halves) / 2

        optimum = jnp.asarray(np.log(p) - np.log1p(-p))
        return np.asarray(jax.grad(loss)(optimum)) * (n / 2 + 1) / p

    assert np.abs(relative_gradient(1.0)).max() < 0.005
    assert (relative_gradient(0.0) < -0.4).all()
    assert (relative_gradient(0.5) < -0.2).all()


def test_gbce_does_not_grow_with_the_number_of_negatives():
    for count in (1, 20):
        negatives = jnp.full(count, 7)
        value = gbce(jnp.zeros(50), jnp.array([3]), jnp.ones(1), negatives, 0.0)
        np.testing.assert_allclose(value, np.log(2), rtol=1e-6)


def test_calibration_is_configured_and_has_no_effect_if_all_items_are_negatives():
    n = 9
    items = {"embedding": jnp.zeros((table_rows(n), 1)), "bias": jnp.zeros(table_rows(n))}
    targets = (jnp.array([3]), jnp.ones(1))

    def value(t):
        config = LossConfig(name="gbce", negatives=4, gbce_t=t)
        return float(loss_sum(config, items, jnp.ones((1, 1)), targets, n))

    # Half of the other items are drawn, so t = 1 halves the positive part, which is log 2 here.
    np.testing.assert_allclose(value(0.0) - value(1.0), 0.5 * np.log(2) / 5, rtol=1e-4)
    others = jnp.array([1, 2, 4, 5, 6, 7, 8, 9])
    for negatives in (others, jnp.concatenate([others, others])):
        scores = jnp.linspace(-1, 1, n)
        plain = gbce(scores, *targets, negatives, 0.0)
        calibrated = gbce(scores, *targets, negatives, 1.0)
        np.testing.assert_allclose(calibrated, plain, rtol=1e-5)
