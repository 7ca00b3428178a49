# SPDX-License-Identifier: Apache-2.0
"""From scores to results: removing items, the best items, counts of better items, probabilities.

Scores are logits, float32[N, C]: N histories against C consecutive rows of the item table. The rows
are the whole table, the shard of one device, or a chunk of either. Columns that are not candidates
have one of the scores below.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bert4rec_jax.model import shard_offset

# Rows that are not items have about NON_ITEM_BIAS = -1e9, from the bias of the model.
REMOVED_SCORE = -2e9  # of items that were seen or excluded
ELSEWHERE_SCORE = -3e9  # of items that another chunk or shard contains
CANDIDATE_THRESHOLD = -1e8  # only candidates have a higher score


class BestItems(NamedTuple):
    """The best items of each history, best first.

    Attributes:
      items: int32[N, k], item numbers.
      scores: float32[N, k].
    """

    items: jax.Array
    scores: jax.Array


def mask_removed(
    scores_NC: jax.Array,
    histories: jax.Array,
    items: jax.Array,
    first_id: jax.Array | int = 0,
) -> jax.Array:
    """Returns the scores with `REMOVED_SCORE` for pairs of a history and an item.

    Args:
      scores_NC: scores.
      histories: int32, row of each pair, in any shape that broadcasts with `items`; N for filler
        pairs.
      items: int32, item number of each pair; items of other chunks or shards are ignored.
      first_id: item number of the first column.
    """
    pairs = scores_NC.at[histories, items - first_id]
    return pairs.set(REMOVED_SCORE, mode="drop", wrap_negative_indices=False)


def keep_allowed(scores_NC: jax.Array, allowed: jax.Array) -> jax.Array:
    """Returns the scores with `REMOVED_SCORE` where `allowed`, bool[C] or bool[N, C], is false."""
    return jnp.where(allowed, scores_NC, REMOVED_SCORE)


def keep_pairs(
    scores_NC: jax.Array,
    histories_P: jax.Array,
    items_P: jax.Array,
    first_id: jax.Array | int = 0,
) -> jax.Array:
    """Returns the scores with `REMOVED_SCORE` for all pairs except the given ones; see
    `mask_removed`.
    """
    nothing_NC = jnp.zeros(scores_NC.shape, bool)
    pairs = nothing_NC.at[histories_P, items_P - first_id]
    return keep_allowed(scores_NC, pairs.set(True, mode="drop", wrap_negative_indices=False))


def is_candidate(scores: jax.Array) -> jax.Array:
    """Returns whether each score belongs to an item that may be recommended."""
    return scores > CANDIDATE_THRESHOLD


def top_k(scores_NV: jax.Array, k: int, axis: str | None = None) -> BestItems:
    """Returns the best k items of each history, over all shards of the table.

    Args:
      scores_NV: scores against the table, or against this device's shard of it.
      k: how many items; at most V.
      axis: mesh axis over which the table is split, or None.

    Returns:
      Item 0 in the last places if a history has fewer than k candidates.
    """
    rows = scores_NV.shape[1]
    best = top_k_of_chunk(scores_NV, min(k, rows), shard_offset(rows, axis))
    return top_k_of_shards(best, k, axis)


def top_k_of_chunk(scores_NC: jax.Array, k: int, first_id: jax.Array | int) -> BestItems:
    """Returns the best k columns of a chunk whose first column is item `first_id`, candidates or
    not.
    """
    scores_NK, columns_NK = jax.lax.top_k(scores_NC, k)
    return BestItems(columns_NK + first_id, scores_NK)


def merge_top_k(parts: Sequence[BestItems], k: int) -> BestItems:
    """Returns the best k of several lists; equal scores keep the order of the lists."""
    items = jnp.concatenate([part.items for part in parts], axis=1)
    scores = jnp.concatenate([part.scores for part in parts], axis=1)
    scores_NK, columns_NK = jax.lax.top_k(scores, min(k, scores.shape[1]))
    return BestItems(jnp.take_along_axis(items, columns_NK, axis=1), scores_NK)


def top_k_of_shards(best: BestItems, k: int, axis: str | None) -> BestItems:
    """Returns the best k over the shards from the best of each; items that are not candidates
    become 0.
    """
    if axis is not None:
        gathered = [jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in best]
        best = merge_top_k([BestItems(*gathered)], k)
    items_NK = jnp.where(is_candidate(best.scores), best.items, 0)
    return BestItems(items_NK, best.scores)


def scores_of_items(scores_NC: jax.Array, items: jax.Array, first_id: jax.Array | int) -> jax.Array:
    """Returns the scores of items of each history, float32 in the shape of `items`.

    Args:
      scores_NC: scores.
      items: int32[N] or int32[N, k], item numbers.
      first_id: item number of the first column.

    Returns:
      `ELSEWHERE_SCORE` for items that are not among the columns.
    """
    rows = jnp.arange(len(items)).reshape(-1, *[1] * (items.ndim - 1))
    return scores_NC.at[rows, items - first_id].get(
        mode="fill", fill_value=ELSEWHERE_SCORE, wrap_negative_indices=False
    )


def sum_over_shards(x: jax.Array, axis: str | None) -> jax.Array:
    """Returns the sum of x over the devices of the axis along which the table is split."""
    return x if axis is None else jax.lax.psum(x, axis)


def merge_shard_scores(scores: jax.Array, axis: str | None) -> jax.Array:
    """Returns the scores that `scores_of_items` found in the one shard that contains each item."""
    # A sum, since a maximum over devices may lose NaN.
    return sum_over_shards(jnp.where(scores == ELSEWHERE_SCORE, 0, scores), axis)


def count_above_and_tied(scores_NC: jax.Array, target_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns how many columns score above the target of each history, and how many the same: two
    int32[N].

    The target's own column counts as tied if it is among the columns.
    """
    target_N1 = target_N[:, None]
    above_N = (scores_NC > target_N1).sum(axis=1, dtype=jnp.int32)
    tied_N = (scores_NC == target_N1).sum(axis=1, dtype=jnp.int32)
    return above_N, tied_N


def log_probabilities(
    selected_NK: jax.Array, scores_NV: jax.Array, axis: str | None = None
) -> jax.Array:
    """Returns the logarithm of the softmax over the whole catalogue, float32[N, k], for selected
    scores.

    Args:
      selected_NK: scores of the selected items.
      scores_NV: scores of all items, before any of them were removed; this device's shard of the
        table.
      axis: mesh axis over which the table is split, or None.
    """
    highest_N1 = scores_NV.max(axis=1, keepdims=True)
    if axis is not None:
        highest_N1 = jax.lax.pmax(highest_N1, axis)
    total_N1 = jnp.exp(scores_NV - highest_N1).sum(axis=1, keepdims=True)
    log_total_N1 = highest_N1 + jnp.log(sum_over_shards(total_N1, axis))
    return selected_NK - log_total_N1
