# SPDX-License-Identifier: Apache-2.0
"""Operation counts of traced programs."""

import jax
import jax.numpy as jnp

from bert4rec_jax.aot.operations import count_operations


def test_products_in_a_loop_count_as_often_as_it_runs():
    def f(x, w):
        y, _ = jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)
        return jnp.sum(jax.nn.relu(y) @ w)

    jaxpr = jax.make_jaxpr(jax.grad(f))(jnp.ones((4, 8)), jnp.ones((8, 8)))
    assert count_operations(jaxpr) == (7 + 1 + 1 + 7) * 2 * 4 * 8 * 8


def test_unused_products_count_nothing():
    def f(x):
        return x + 1, x @ x

    jaxpr = jax.make_jaxpr(f)(jnp.ones((4, 4))).jaxpr
    assert count_operations(jaxpr) == 2 * 4**3
    assert count_operations(jaxpr.replace(outvars=jaxpr.outvars[:1])) == 0
