# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.model import lookup
from bert4rec_jax.model.item_table import ROW_MULTIPLE, mask_token, table_rows


def test_every_token_has_a_row():
    for num_items in range(1, 3 * ROW_MULTIPLE):
        assert mask_token(num_items) == num_items + 1 < table_rows(num_items) <= num_items + 1 + ROW_MULTIPLE
        assert table_rows(num_items) % ROW_MULTIPLE == 0


def test_the_gradient_of_a_lookup_adds_up_where_an_id_comes_twice():
    table, ids = jax.random.normal(jax.random.key(0), (9, 4)), jnp.array([[0, 3, 3], [8, 1, 3]])
    weights = jax.random.normal(jax.random.key(1), (2, 3, 4))
    ours = jax.grad(lambda t: (lookup(t, ids) ** 2 * weights).sum())(table)
    naive = jax.grad(lambda t: (t[ids] ** 2 * weights).sum())(table)
    np.testing.assert_allclose(ours, naive, rtol=1e-6, atol=1e-6)
