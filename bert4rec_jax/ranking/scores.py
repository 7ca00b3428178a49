# SPDX-License-Identifier: Apache-2.0
"""The scores of items after a history. All rankers, lists and exports compute them with these
functions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.data.batching import BatchArray
from bert4rec_jax.devices import Placement
from bert4rec_jax.model import (
    Inputs,
    ItemTable,
    Params,
    all_gather_rows,
    encode,
    lookup,
    mask_non_items,
    shard_offset,
)
from bert4rec_jax.ranking.score_results import mask_removed


class Histories(NamedTuple):
    """One device's batch of N histories, with P (history, item) pairs that are not candidates.

    Attributes:
      inputs: the packed rows.
      slots_N: int32, slot of each history in the flattened [B * K]; 0 for filler histories.
      removed_history_P: int32, history of each pair; N for filler pairs.
      removed_item_P: int32, item number of each pair.
    """

    inputs: Inputs
    slots_N: BatchArray
    removed_history_P: BatchArray
    removed_item_P: BatchArray


def item_scores(
    config: ModelConfig, num_items: int, params: Params, histories: Histories, placement: Placement
) -> jax.Array:
    """Scores the catalogue after each history.

    Args:
      config: the model's configuration.
      num_items: size of the catalogue.
      params: without features; `items` is this device's shard of the table.
      histories: this device's batch.
      placement: where the function runs.

    Returns:
      float32[N', V] for any dtype of the model: the histories of all devices of the items axis
      against this device's rows of the table. Rows that are not items are not candidates, see
      `score_results`.
    """
    items = params["items"]
    offset = shard_offset(items["bias"].shape[0], placement.items)
    with jax.default_matmul_precision(config.matmul_precision):
        states_ND = history_states(config, params, histories, placement)
        return score_rows(states_ND, items, num_items, offset)


def history_states(
    config: ModelConfig, params: Params, histories: Histories, placement: Placement
) -> jax.Array:
    """Returns float[N', D], the hidden state after each history of the devices of the items axis.

    `config.predict_from` selects the position of that state.
    """
    if "features" in params:
        raise ValueError("these parameters have item features; pass them through fold_features")
    inputs = histories.inputs
    platform = placement.platform
    x_BLD = lookup(params["items"]["embedding"], inputs.tokens, placement.items)
    causal = config.predict_from == "last_item"
    h_BKD = encode(config, params["encoder"], x_BLD, inputs, None, causal, platform)
    if config.predict_from == "both":
        # Under causal attention no item attends to [MASK], so the same rows serve. Scores are
        # linear in hidden states: the mean of the states gives the mean of both models' scores.
        last_BK = _columns_before(inputs)
        last = inputs._replace(slots=jnp.maximum(last_BK, 0))
        if config.positions == "right":  # in training no [MASK] came after the last item
            last = last._replace(positions=jnp.maximum(inputs.positions - 1, 0))
        last_BKD = encode(config, params["encoder"], x_BLD, last, None, True, platform)
        has_item_BK1 = (last_BK >= 0)[:, :, None]
        h_BKD = jnp.where(has_item_BK1, (h_BKD + last_BKD) / 2, h_BKD)
    states_ND = h_BKD.reshape(-1, h_BKD.shape[-1])[histories.slots_N]
    return all_gather_rows(states_ND, placement.items)


def _columns_before(inputs: Inputs) -> jax.Array:
    """Returns int32[B, K], the column of the item before each slot, or -1 if its history has
    none.
    """
    assert inputs.slots is not None  # ranking reads hidden states at slots only
    columns_L = jnp.arange(inputs.tokens.shape[1])
    segments_BK1 = jnp.take_along_axis(inputs.segments, inputs.slots, axis=1)[:, :, None]
    before_BKL = (columns_L < inputs.slots[:, :, None]) & (inputs.segments[:, None] == segments_BK1)
    return jnp.where(before_BKL, columns_L, -1).max(axis=2)


def score_rows(
    states_ND: jax.Array, items: ItemTable, num_items: int, first_id: jax.Array | int
) -> jax.Array:
    """Returns float32[N, C], scores of hidden states against rows of the table from item `first_id`
    on.
    """
    embedding_CD = items["embedding"].astype(states_ND.dtype)
    scores_NC = jnp.einsum("nd,cd->nc", states_ND, embedding_CD, preferred_element_type=jnp.float32)
    return scores_NC + mask_non_items(items["bias"], num_items, first_id)


def mask_removed_items(scores_NV: jax.Array, histories: Histories, axis: str | None) -> jax.Array:
    """Returns the result of `item_scores` with the removed items masked."""
    history_P, item_P = gather_removed_pairs(histories, axis)
    return mask_removed(scores_NV, history_P, item_P, shard_offset(scores_NV.shape[1], axis))


def gather_removed_pairs(histories: Histories, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """Returns the (history, item) pairs of all devices of `axis`, two int32[P'].

    Histories are numbered as the rows of `item_scores`.
    """
    history_P = histories.removed_history_P
    if axis is not None:
        count = histories.slots_N.shape[0]
        first = jax.lax.axis_index(axis) * count
        is_pair_P = history_P < count
        history_P = jnp.where(is_pair_P, history_P + first, count * jax.lax.axis_size(axis))
    return all_gather_rows(history_P, axis), all_gather_rows(histories.removed_item_P, axis)


def local_rows(x: jax.Array, count: int, axis: str | None) -> jax.Array:
    """Returns this device's `count` rows of an array over the histories of all devices of
    `axis`.
    """
    if axis is None:
        return x
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * count, count)
