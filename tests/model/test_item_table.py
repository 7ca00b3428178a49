# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.data import ItemFeatures
from bert4rec_jax.model import fold_features, lookup
from bert4rec_jax.model.item_table import ROW_MULTIPLE, mask_token, table_rows


def test_every_token_has_a_row():
    for num_items in range(1, 3 * ROW_MULTIPLE):
        assert (
            mask_token(num_items)
            == num_items + 1
            < table_rows(num_items)
            <= num_items + 1 + ROW_MULTIPLE
        )
        assert table_rows(num_items) % ROW_MULTIPLE == 0


def test_the_gradient_of_a_lookup_adds_up_where_an_id_comes_twice():
    table, ids = jax.random.normal(jax.random.key(0), (9, 4)), jnp.array([[0, 3, 3], [8, 1, 3]])
    weights = jax.random.normal(jax.random.key(1), (2, 3, 4))
    ours = jax.grad(lambda t: (lookup(t, ids) ** 2 * weights).sum())(table)
    naive = jax.grad(lambda t: (t[ids] ** 2 * weights).sum())(table)
    np.testing.assert_allclose(ours, naive, rtol=1e-6, atol=1e-6)


def test_features_add_their_mean_to_the_rows_of_items_that_have_some():
    random = np.random.default_rng(0)
    sets = {1: [2], 2: [0, 1, 4], 5: [1, 3], 6: [0, 1, 2, 3, 4]}
    bags = ItemFeatures(
        np.repeat([1, 2, 5, 6], [1, 3, 2, 5]).astype(np.int32),
        np.concatenate([*sets.values()]).astype(np.int32),
        tuple("abcde"),
    )
    table, features = (
        random.normal(size=(8, 3)).astype(np.float32),
        random.normal(size=(5, 3)).astype(np.float32),
    )
    params = {
        "items": {"embedding": jnp.asarray(table), "bias": jnp.arange(8.0)},
        "features": jnp.asarray(features),
        "encoder": "as it is",
    }
    folded = fold_features(params, bags)
    expected = table.copy()
    for item, numbers in sets.items():
        expected[item] += features[numbers].mean(axis=0)
    np.testing.assert_allclose(folded["items"]["embedding"], expected, rtol=1e-6)
    assert (
        set(folded) == {"items", "encoder"} and folded["items"]["bias"] is params["items"]["bias"]
    )
    assert fold_features(params, None) is params
