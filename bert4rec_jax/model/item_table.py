# SPDX-License-Identifier: Apache-2.0
"""The item table: input embedding and output layer in one array, whole or split over devices.

`params["items"]` contains `embedding` float32[V, D] and `bias` float32[V]. Row 0 is padding, rows
1..num_items are items and row num_items + 1 is [MASK]. Unused rows fill the table up to a multiple
of `ROW_MULTIPLE`, so that tables split evenly and a checkpoint does not depend on the number of
devices.

If items have features, `params["features"]` contains one embedding per feature, float32[F, D].
`fold_features` adds them to the rows of the items. The training step and the rankers call it once;
all other code sees a plain table.

If the table is split, these functions run inside `shard_map` or `pmap` and take the name of the
mesh axis. The batch is split over that axis too. Tokens and activations are exchanged between
devices, the table never is.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.data import ItemFeatures
from bert4rec_jax.model.params import Params

ROW_MULTIPLE = 64
# Bias of rows that are not items: their probability is 0 in float32.
NON_ITEM_BIAS = -1e9


def mask_token(num_items: int) -> int:
    """Returns the id of [MASK]."""
    return num_items + 1


def table_rows(num_items: int) -> int:
    """Returns V: padding, items and [MASK], rounded up to `ROW_MULTIPLE`."""
    return math.ceil((num_items + 2) / ROW_MULTIPLE) * ROW_MULTIPLE


def shard_offset(rows: int, axis: str | None) -> jax.Array | int:
    """Returns the global id of row 0 of this device's shard of `rows` rows."""
    return 0 if axis is None else jax.lax.axis_index(axis) * rows


def all_gather_rows(x: jax.Array, axis: str | None) -> jax.Array:
    """Concatenates `x` along its first dimension over the devices of `axis`."""
    return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def reduce_scatter_rows(x: jax.Array, axis: str | None) -> jax.Array:
    """Sums partial results over `axis` and returns this device's part of the first dimension."""
    return x if axis is None else jax.lax.psum_scatter(x, axis, tiled=True)


def take_rows(table: jax.Array, ids_N: jax.Array) -> jax.Array:
    """Returns rows of a shard, [N, ...]; ids outside the shard read zeros."""
    return table.at[ids_N].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def add_rows(table: jax.Array, ids_N: jax.Array, rows: jax.Array) -> jax.Array:
    """Adds rows[n] to table[ids_N[n]]; ids outside the shard are ignored."""
    return table.at[ids_N].add(rows, mode="drop", wrap_negative_indices=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(embedding_VD: jax.Array, ids: jax.Array, axis: str | None = None) -> jax.Array:
    """Returns the embeddings of `ids` (int32[...], global ids): float32[..., D].

    Args:
      embedding_VD: this device's shard of the table.
      ids: this device's ids; the other devices of `axis` may look up other ids.
      axis: mesh axis over which the table is split, or None.
    """
    ids_N = all_gather_rows(ids.reshape(-1), axis) - shard_offset(embedding_VD.shape[0], axis)
    # Rows of other shards read as zero, so the sum over devices contains each row once.
    x_ND = take_rows(embedding_VD, ids_N)
    return reduce_scatter_rows(x_ND, axis).reshape(*ids.shape, -1)


def _lookup_forward(
    embedding_VD: jax.Array, ids: jax.Array, axis: str | None
) -> tuple[jax.Array, tuple[jax.Array, int]]:
    return lookup(embedding_VD, ids, axis), (ids, embedding_VD.shape[0])


def _lookup_backward(
    axis: str | None, residuals: tuple[jax.Array, int], gradient: jax.Array
) -> tuple[jax.Array, None]:
    ids, rows = residuals
    width = gradient.shape[-1]
    gradient_ND = all_gather_rows(gradient.reshape(-1, width), axis)
    ids_N = all_gather_rows(ids.reshape(-1), axis) - shard_offset(rows, axis)
    zeros_VD = jnp.zeros((rows, width), gradient.dtype)
    return add_rows(zeros_VD, ids_N, gradient_ND), None


lookup.defvjp(_lookup_forward, _lookup_backward)


def fold_features(params: Params, features: ItemFeatures | None, axis: str | None = None) -> Params:
    """Returns the parameters of the same model without features: `items` and `encoder`.

    An item's embedding is its own row plus the mean of the embeddings of its features.

    Args:
      params: as in a checkpoint; `items` may be this device's shard.
      features: features of the items. If None, `params` is returned unchanged.
      axis: mesh axis over which the table is split, or None.
    """
    if features is None:
        return params
    items = params["items"]
    embedding_VD = items["embedding"]
    ids_P, features_P, share_P = _local_features(features, embedding_VD.shape[0], axis)
    folded_VD = add_rows(embedding_VD, ids_P, params["features"][features_P] * share_P[:, None])
    return {"items": {"embedding": folded_VD, "bias": items["bias"]}, "encoder": params["encoder"]}


def _local_features(features: ItemFeatures, rows: int, axis: str | None) -> tuple[Any, ...]:
    """Returns the (row, feature) pairs of this device's shard, and the weight of each pair.

    The weight is one over the number of features of the row. All devices return equally many pairs,
    int32[P], int32[P] and float32[P]. Filler pairs have a row outside the shard.
    """
    share_P = (1 / np.bincount(features.items)[features.items]).astype(np.float32)
    if axis is None:
        return features.items, features.features, share_P
    bounds = np.searchsorted(features.items, np.arange(jax.lax.axis_size(axis) + 1) * rows)
    pairs_SP = bounds[:-1, None] + np.arange(np.diff(bounds).max())
    valid_SP = pairs_SP < bounds[1:, None]
    pairs_SP = np.where(valid_SP, pairs_SP, 0)
    ids_SP = np.where(valid_SP, features.items[pairs_SP] % rows, rows)
    shard = jax.lax.axis_index(axis)
    all_shards = (ids_SP, features.features[pairs_SP], share_P[pairs_SP])
    return tuple(jnp.asarray(x)[shard] for x in all_shards)


def mask_non_items(bias_C: jax.Array, num_items: int, first_id: jax.Array | int) -> jax.Array:
    """Returns the bias of rows of the table with `NON_ITEM_BIAS` for rows that are not items.

    Args:
      bias_C: float32, bias of consecutive rows.
      num_items: size of the catalogue.
      first_id: global id of the first of these rows.
    """
    ids_C = first_id + jnp.arange(bias_C.shape[0])
    return jnp.where((ids_C >= 1) & (ids_C <= num_items), bias_C, NON_ITEM_BIAS)
