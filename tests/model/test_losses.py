# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert4rec_jax.config import LossConfig
from bert4rec_jax.devices.cpu import compiler_options
from bert4rec_jax.model import losses
from bert4rec_jax.model.item_table import table_rows

N, M, D = 150, 40, 8


@pytest.fixture(scope="module")
def arrays():
    keys = jax.random.split(jax.random.key(0), 5)
    rows = table_rows(N)
    items = {"embedding": jax.random.normal(keys[0], (rows, D)), "bias": jax.random.normal(keys[1], (rows,))}
    h = 3 * jax.random.normal(keys[2], (M, D))
    labels = jax.random.randint(keys[3], (M,), 1, N + 1)
    weights = (jax.random.uniform(keys[4], (M,)) < 0.8).astype(jnp.float32)
    return items, h, labels, weights


def naive(items, h, labels, weights):
    logits = h @ items["embedding"][1:N + 1].T + items["bias"][1:N + 1]
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels - 1))


@pytest.mark.parametrize("chunk", [0, 64, 29])
@pytest.mark.parametrize("keep", [True, False])
def test_chunked_softmax_equals_the_naive_one_in_value_and_gradient(arrays, chunk, keep, monkeypatch):
    items, h, labels, weights = arrays
    if not keep:
        monkeypatch.setattr(losses, "KEEP_BYTES", 0)
    loss = lambda items, h: losses.loss_sum(  # noqa: E731
        LossConfig(chunk_items=chunk), items, h, labels, weights, N, jax.random.key(0))
    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(items, h)
    expected, expected_gradient = jax.value_and_grad(naive, argnums=(0, 1))(items, h, labels, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), gradient, expected_gradient)


def test_softmax_survives_large_logits(arrays):
    items, h, labels, weights = arrays
    value = losses.loss_sum(LossConfig(chunk_items=16), items, 1e4 * h, labels, weights, N, jax.random.key(0))
    np.testing.assert_allclose(value, naive(items, 1e4 * h, labels, weights), rtol=1e-5)


def test_memory_does_not_grow_with_the_catalogue_times_the_slots(monkeypatch):
    monkeypatch.setattr(losses, "KEEP_BYTES", 2**20)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 2**20)
    n, m, d = 8190, 1024, 4

    def peak(chunk):
        items = {"embedding": jnp.zeros((table_rows(n), d)), "bias": jnp.zeros(table_rows(n))}
        loss = lambda items, h: losses.loss_sum(  # noqa: E731
            LossConfig(chunk_items=chunk), items, h, jnp.ones(m, jnp.int32), jnp.ones(m), n, jax.random.key(0))
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=compiler_options()).lower(
            items, jnp.zeros((m, d))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = n * m * 4
    assert peak(n + 100) > 0.9 * logits
    assert peak(0) < 0.15 * logits


def test_sampled_softmax_estimates_the_full_loss(arrays):
    items, h, labels, weights = arrays
    items, h = jax.tree.map(lambda x: 0.3 * x, (items, h))
    full = float(naive(items, h, labels, weights))
    config = LossConfig(name="sampled_softmax", negatives=100)
    sampled = [float(losses.loss_sum(config, items, h, labels, weights, N, jax.random.key(k))) for k in range(40)]
    assert abs(np.mean(sampled) - full) < 0.01 * full


def test_gbce_follows_its_definition(arrays):
    items, h, labels, weights = arrays
    h = 0.1 * h
    negatives = jnp.array([3, 9, 27, 81])
    value = losses.gbce(h, items["embedding"], items["bias"], labels, weights, negatives, num_items=N, t=0.75)
    rate = 4 / (N - 1)
    beta = rate * (0.75 * (1 - 1 / rate) + 1 / rate)
    score = lambda item: np.asarray(h @ items["embedding"][item] + items["bias"][item])  # noqa: E731
    expected = 0.0
    for slot in range(M):
        positive = 1 / (1 + np.exp(-float(score(labels[slot])[slot])))
        negative = [1 / (1 + np.exp(-score(n)[slot])) for n in (3, 9, 27, 81) if n != labels[slot]]
        expected -= weights[slot] * (beta * np.log(positive) + sum(np.log1p(-np.array(negative))))
    np.testing.assert_allclose(value, expected, rtol=1e-4)
