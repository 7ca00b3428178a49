# SPDX-License-Identifier: Apache-2.0
"""The item table: one array that is input embedding and output layer, whole or split by rows over devices.

`params["items"]` holds `embedding` float32[V, D] and `bias` float32[V]. Row 0 is padding, rows 1..num_items are
items, row num_items + 1 is [MASK]; the rest fills up to a multiple of `ROW_MULTIPLE`, so that tables split evenly
and a checkpoint does not depend on the number of devices.

Where items have features, `params["features"]` holds an embedding of each, float32[F, D], and `fold_features` adds
those of an item to its row. The training step and whoever ranks do so once; everything else sees just a table.

Where the table is split, these functions run inside `shard_map` or `pmap` with the name of the mesh axis; the
batch is split over that axis too. Tokens and activations travel, the table never does.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.data import ItemFeatures

PADDING = 0
ROW_MULTIPLE = 64


def mask_token(num_items: int) -> int:
    """Returns the id of [MASK]."""
    return num_items + 1


def table_rows(num_items: int) -> int:
    """Returns V: padding, items and [MASK], rounded up to `ROW_MULTIPLE`."""
    return math.ceil((num_items + 2) / ROW_MULTIPLE) * ROW_MULTIPLE


def first_row(rows: int, axis: str | None) -> jax.Array | int:
    """Returns the global id of row 0 of this device's shard of `rows` rows."""
    return 0 if axis is None else jax.lax.axis_index(axis) * rows


def all_rows(x: jax.Array, axis: str | None) -> jax.Array:
    """Concatenates `x` along its first dimension over the devices of `axis`."""
    return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def own_rows(x: jax.Array, axis: str | None) -> jax.Array:
    """Sums partial results over `axis` and returns this device's part of the first dimension."""
    return x if axis is None else jax.lax.psum_scatter(x, axis, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(embedding_VD: jax.Array, ids: jax.Array, axis: str | None = None) -> jax.Array:
    """Returns the embeddings of `ids` (int32[...], global ids): float32[..., D].

    Args:
      embedding_VD: this device's shard of the table.
      ids: this device's ids; other devices of `axis` may hold others.
      axis: mesh axis over which the table is split, or None.
    """
    ids_N = all_rows(ids.reshape(-1), axis) - first_row(embedding_VD.shape[0], axis)
    # Rows of other shards read as zero; the sum over devices then holds each row once.
    x_ND = embedding_VD.at[ids_N].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    return own_rows(x_ND, axis).reshape(*ids.shape, -1)


def _lookup_forward(embedding_VD, ids, axis):
    return lookup(embedding_VD, ids, axis), (ids, embedding_VD.shape[0])


def _lookup_backward(axis, residuals, gradient):
    ids, rows = residuals
    gradient_ND = all_rows(gradient.reshape(-1, gradient.shape[-1]), axis)
    ids_N = all_rows(ids.reshape(-1), axis) - first_row(rows, axis)
    return add_rows(jnp.zeros((rows, gradient.shape[-1]), gradient.dtype), ids_N, gradient_ND), None


lookup.defvjp(_lookup_forward, _lookup_backward)


def add_rows(table_VD: jax.Array, ids_N: jax.Array, x_ND: jax.Array) -> jax.Array:
    """Adds x_ND[n] to row ids_N[n]; ids outside the shard are left out."""
    return table_VD.at[ids_N].add(x_ND, mode="drop", wrap_negative_indices=False)


def fold_features(params: dict, bags: ItemFeatures | None, axis: str | None = None) -> dict:
    """Returns the parameters of the same model without features: `items`, with what features add, and `encoder`.

    An item's embedding is its own row plus the mean of the embeddings of its features.

    Args:
      params: as in a checkpoint; `items` may be this device's shard.
      bags: the features of the items; None: they have none, and `params` comes back.
      axis: mesh axis over which the table is split, or None.
    """
    if bags is None:
        return params
    embedding_VD = params["items"]["embedding"]
    ids_P, features_P, share_P = _own_pairs(bags, embedding_VD.shape[0], axis)
    folded_VD = add_rows(embedding_VD, ids_P, params["features"][features_P] * share_P[:, None])
    return {"items": params["items"] | {"embedding": folded_VD}, "encoder": params["encoder"]}


def _own_pairs(bags: ItemFeatures, rows: int, axis: str | None) -> tuple:
    """Returns rows of this device's shard, int32[P], their features, int32[P], and one over the number of these.

    All devices have as many pairs; those that fill up are of a row outside the shard.
    """
    share_P = (1 / np.bincount(bags.items)[bags.items]).astype(np.float32)
    if axis is None:
        return bags.items, bags.features, share_P
    bounds = np.searchsorted(bags.items, np.arange(jax.lax.axis_size(axis) + 1) * rows)
    places_SP = bounds[:-1, None] + np.arange(np.diff(bounds).max())
    own_SP = places_SP < bounds[1:, None]
    places_SP = np.where(own_SP, places_SP, 0)
    ids_SP = np.where(own_SP, bags.items[places_SP] % rows, rows)
    shard = jax.lax.axis_index(axis)
    return tuple(
        jnp.asarray(x)[shard] for x in (ids_SP, bags.features[places_SP], share_P[places_SP])
    )


def candidate_bias(bias_V: jax.Array, num_items: int, axis: str | None) -> jax.Array:
    """Returns the bias with rows that are no items pushed to -1e9: they are never a candidate."""
    return rows_bias(bias_V, num_items, first_row(bias_V.shape[0], axis))


def rows_bias(bias_C: jax.Array, num_items: int, first: jax.Array | int) -> jax.Array:
    """Does what `candidate_bias` does for any rows of the table, of which the first has the id `first`."""
    ids_C = first + jnp.arange(bias_C.shape[0])
    return jnp.where((ids_C >= 1) & (ids_C <= num_items), bias_C, -1e9)
