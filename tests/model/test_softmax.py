# SPDX-License-Identifier: Apache-2.0
"""The exact softmax of accelerators, its kernels interpreted on CPU, against that of CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert4rec_jax.model import losses, softmax

M, V, D = 197, 1100, 40  # none is a multiple of a tile
WAYS = {"scan": 0, "scan, chunks of 200": 200, "pallas_tpu": 0, "pallas_gpu": 0}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_all_ways_give_the_same_loss_and_gradients(way, dtype):
    keys = jax.random.split(jax.random.key(0), 5)
    h = (2 * jax.random.normal(keys[0], (M, D))).astype(dtype)
    table, bias = (
        jax.random.normal(keys[1], (V, D)),
        jax.random.normal(keys[2], (V,)).at[0].set(-1e9),
    )
    labels = jax.random.randint(keys[3], (M,), 1, V)
    weights = (jax.random.uniform(keys[4], (M,)) < 0.8).astype(jnp.float32)
    run = lambda loss: jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(h, table, bias)  # noqa: E731
    expected = run(
        lambda h, e, b: losses.softmax_cross_entropy(h, e.astype(dtype), b, labels, weights)
    )
    got = run(
        lambda h, e, b: softmax.cross_entropy(
            h, e, b, labels, weights, way.split(",")[0], WAYS[way]
        )
    )
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6 if dtype == jnp.float32 else 1e-4)
    for a, b in zip(expected[1], got[1]):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(
            b, a, atol=(1e-5 if dtype == jnp.float32 else 1e-2) * np.abs(a).max()
        )
    assert got[1][1].dtype == jnp.float32


def test_gradients_of_many_slots_are_taken_in_parts(monkeypatch):
    from bert4rec_jax.model.kernels import softmax_tpu

    h, table, bias = (
        jax.random.normal(jax.random.key(0), (2100, 8)),
        jax.random.normal(jax.random.key(1), (64, 8)),
        jnp.zeros(64),
    )
    lse, scale = softmax_tpu.log_sum_exp(h, table, bias, True), jnp.linspace(0, 1, 2100)
    whole = softmax_tpu.gradients(h, table, bias, lse, scale, True)
    monkeypatch.setattr(softmax_tpu, "HIDDEN_BYTES", 0)  # parts of 1,024
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        softmax_tpu.gradients(h, table, bias, lse, scale, True),
        whole,
    )


def test_scanned_chunks_compile_to_a_loop_whatever_the_catalogue():
    def lines(rows: int) -> int:
        loss = lambda h, e: softmax.cross_entropy(  # noqa: E731
            h, e, jnp.zeros(rows), jnp.ones(64, jnp.int32), jnp.ones(64), "scan", 128
        )
        return len(
            jax.jit(jax.grad(loss, argnums=(0, 1)))
            .lower(jnp.zeros((64, 8)), jnp.zeros((rows, 8)))
            .as_text()
            .splitlines()
        )

    assert lines(128 * 64) == lines(128 * 8)
