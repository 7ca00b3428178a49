# SPDX-License-Identifier: Apache-2.0
"""Ranks and lists for catalogues whose scores [histories, items] do not fit in memory: a loop over
chunks.

Every chunk of the item table is multiplied twice, first to find the score of the target and then to
count higher scores. Both products round in the same way, so that exact ties stay ties.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.devices import Placement
from bert4rec_jax.model import ItemTable, Params, shard_offset
from bert4rec_jax.ranking.score_results import (
    ELSEWHERE_SCORE,
    BestItems,
    count_above_and_tied,
    mask_removed,
    merge_shard_scores,
    merge_top_k,
    scores_of_items,
    sum_over_shards,
    top_k_of_chunk,
    top_k_of_shards,
)
from bert4rec_jax.ranking.scores import (
    Histories,
    gather_removed_pairs,
    history_states,
    score_rows,
)

# Scores of a device above which it visits the catalogue in chunks. Loops are slow on CPU.
MOST_BYTES = {"cpu": 4 * 2**30}
MOST_BYTES_ELSEWHERE = 512 * 2**20
CHUNK_BYTES = 128 * 2**20


def is_large(histories: int, rows: int, platform: str) -> bool:
    """Returns whether scores float32[histories, rows] are too large to hold at once."""
    return 4 * histories * rows > MOST_BYTES.get(platform, MOST_BYTES_ELSEWHERE)


class _Chunk(NamedTuple):
    """A chunk of the item table.

    Attributes:
      start: int32, its first row in this device's shard.
      first_new: int32, its first row that no earlier chunk contains.
    """

    start: jax.Array
    first_new: jax.Array


def _chunks(rows: int, size: int) -> _Chunk:
    """Returns the chunks of a shard, each of `size` rows; the last one overlaps the one before
    it.
    """
    first_new = jnp.arange(-(-rows // size)) * size
    return _Chunk(jnp.minimum(first_new, rows - size), first_new)


class _Shard(NamedTuple):
    """This device's rows of the item table, and how they are scored.

    Attributes:
      config: the model's configuration.
      num_items: size of the catalogue.
      items: the rows.
      offset: row of the whole table at which the shard begins.
      chunk_size: number of rows in a chunk.
    """

    config: ModelConfig
    num_items: int
    items: ItemTable
    offset: jax.Array | int
    chunk_size: int


def rank_in_chunks(
    config: ModelConfig,
    num_items: int,
    params: Params,
    histories: Histories,
    targets_N: jax.Array,
    k: int,
    placement: Placement,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Ranks all histories of the devices of the items axis.

    Args:
      config: the model's configuration.
      num_items: size of the catalogue.
      params: as for `item_scores`.
      histories: this device's batch.
      targets_N: int32, item numbers of all targets.
      k: length of the lists.
      placement: where the function runs.

    Returns:
      The score of each target, float32[N']; and `greater`, `ties` and `top`, as in `Ranking`.
    """
    axis = placement.items
    with jax.default_matmul_precision(config.matmul_precision):
        states_ND = history_states(config, params, histories, placement)
    count = len(states_ND)
    rows = len(params["items"]["bias"])
    offset = shard_offset(rows, axis)
    size = min(max(CHUNK_BYTES // (4 * count) // 128, 1) * 128, rows)
    chunks = _chunks(rows, size)
    removed = gather_removed_pairs(histories, axis)
    shard = _Shard(config, num_items, params["items"], offset, size)
    scores_of = functools.partial(_scores_of_chunk, shard, states_ND, removed)

    def find_targets(carry: tuple[jax.Array, BestItems], chunk: _Chunk) -> tuple[Any, None]:
        target_N, best = carry
        scores_NC = scores_of(chunk)
        first_id = offset + chunk.start
        target_N = jnp.maximum(target_N, scores_of_items(scores_NC, targets_N, first_id))
        best_of_chunk = top_k_of_chunk(scores_NC, min(k, size), first_id)
        return (target_N, merge_top_k([best, best_of_chunk], k)), None

    def count_better(carry: tuple[jax.Array, jax.Array], chunk: _Chunk) -> tuple[Any, None]:
        above_N, tied_N = count_above_and_tied(scores_of(chunk), target_N)
        return (carry[0] + above_N, carry[1] + tied_N), None

    unknown_N = jnp.full(count, ELSEWHERE_SCORE)
    no_items = BestItems(jnp.zeros((count, k), jnp.int32), jnp.full((count, k), ELSEWHERE_SCORE))
    (target_N, best), _ = jax.lax.scan(find_targets, (unknown_N, no_items), chunks)
    target_N = merge_shard_scores(target_N, axis)
    zeros_N = jnp.zeros(count, jnp.int32)
    counts, _ = jax.lax.scan(count_better, (zeros_N, zeros_N), chunks)
    above_N, tied_N = (sum_over_shards(count_N, axis) for count_N in counts)
    return target_N, {
        "greater": above_N,
        "ties": tied_N - 1,  # without the target itself
        "top": top_k_of_shards(best, k, axis).items,
    }


def _scores_of_chunk(
    shard: _Shard, states_ND: jax.Array, removed: tuple[jax.Array, jax.Array], chunk: _Chunk
) -> jax.Array:
    """Returns float32[N', C], with `ELSEWHERE_SCORE` for rows that an earlier chunk contains."""
    part = _slice_rows(shard.items, chunk.start, shard.chunk_size)
    first_id = shard.offset + chunk.start
    with jax.default_matmul_precision(shard.config.matmul_precision):
        scores_NC = score_rows(states_ND, part, shard.num_items, first_id)
    scores_NC = mask_removed(scores_NC, *removed, first_id)
    is_new_C = chunk.start + jnp.arange(shard.chunk_size) >= chunk.first_new
    return jnp.where(is_new_C, scores_NC, ELSEWHERE_SCORE)


def _slice_rows(items: ItemTable, start: jax.Array, size: int) -> ItemTable:
    """Returns `size` rows of the table from row `start` on."""
    return {
        "embedding": jax.lax.dynamic_slice_in_dim(items["embedding"], start, size),
        "bias": jax.lax.dynamic_slice_in_dim(items["bias"], start, size),
    }
