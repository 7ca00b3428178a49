# SPDX-License-Identifier: Apache-2.0
"""All implementations of the exact softmax return the same loss and gradients; TPU kernels are interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert4rec_jax.model.softmax import (
    Implementation,
    Targets,
    choose_implementation,
    softmax_cross_entropy,
)

# None is a multiple of a tile or chunk.
M = 197
V = 1100
D = 40
OTHERS = [
    Implementation("unrolled", 200),
    Implementation("scanned"),
    Implementation("scanned", 200),
    Implementation("pallas_tpu", interpret=True),
]


@pytest.mark.parametrize("implementation", OTHERS, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_all_implementations_have_the_same_loss_and_gradients(implementation, dtype):
    keys = jax.random.split(jax.random.key(0), 5)
    h = (2 * jax.random.normal(keys[0], (M, D))).astype(dtype)
    table = jax.random.normal(keys[1], (V, D))
    bias = jax.random.normal(keys[2], (V,)).at[0].set(-1e9)
    labels = jax.random.randint(keys[3], (M,), 1, V)
    weights = (jax.random.uniform(keys[4], (M,)) < 0.8).astype(jnp.float32)

    def run(implementation):
        def loss(h, table, bias):
            # The gradient that reaches the loss is not always 1.
            return 3 * softmax_cross_entropy(
                h, table, bias, Targets(labels, weights), implementation
            )

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(h, table, bias)

    expected = run(Implementation("unrolled"))
    actual = run(implementation)
    exact = dtype == jnp.float32
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6 if exact else 1e-4)
    for a, b in zip(expected[1], actual[1]):
        a = np.asarray(a, np.float32)
        b = np.asarray(b, np.float32)
        np.testing.assert_allclose(b, a, atol=(1e-5 if exact else 1e-2) * np.abs(a).max())
    assert expected[1][1].dtype == actual[1][1].dtype == jnp.float32


def test_the_implementation_depends_on_the_platform():
    assert choose_implementation("cpu", 50) == Implementation("unrolled", 50)
    assert choose_implementation("gpu", 0) == Implementation("scanned")
    assert choose_implementation("tpu", 0) == Implementation("pallas_tpu")
    assert choose_implementation("tpu", 50) == Implementation("scanned", 50)


def test_the_kernel_splits_the_gradients_of_many_slots(monkeypatch):
    from bert4rec_jax.model.kernels import softmax_tpu

    h = jax.random.normal(jax.random.key(0), (2100, 8))
    table = jax.random.normal(jax.random.key(1), (64, 8))
    bias = jnp.zeros(64)
    lse = softmax_tpu.log_sum_exp(h, table, bias, True)
    scale = jnp.linspace(0, 1, 2100)
    whole = softmax_tpu.gradients(h, table, bias, lse, scale, True)
    monkeypatch.setattr(softmax_tpu, "HIDDEN_BYTES", 0)  # parts of 1,024 slots
    parts = softmax_tpu.gradients(h, table, bias, lse, scale, True)
    for a, b in zip(parts, whole):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_scanned_chunks_compile_to_a_loop_for_every_size_of_the_catalogue():
    def lines(rows: int) -> int:
        targets = Targets(jnp.ones(64, jnp.int32), jnp.ones(64))

        def loss(h, table):
            return softmax_cross_entropy(
                h, table, jnp.zeros(rows), targets, Implementation("scanned", 128)
            )

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return len(gradient.lower(jnp.zeros((64, 8)), jnp.zeros((rows, 8))).as_text().splitlines())

    assert lines(128 * 64) == lines(128 * 8)
