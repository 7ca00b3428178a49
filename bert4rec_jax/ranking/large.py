# SPDX-License-Identifier: Apache-2.0
"""Ranks and lists over catalogues too large for an array [histories, items]: a loop over chunks of the table.

Every chunk is multiplied twice, once for the score of the target and once to count what scores higher. So a target
meets a score of its own that was rounded in the same product, and ties are ties.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.devices import Placement
from bert4rec_jax.model import shard_offset
from bert4rec_jax.ranking.scores import Histories, history_states, merged_top, removed_pairs, scored

# Scores of a device above which its catalogue is visited in chunks, and those of a chunk. Loops are slow on CPU.
MOST_BYTES = {"cpu": 4 * 2**30}
MOST_BYTES_ELSEWHERE = 512 * 2**20
CHUNK_BYTES = 128 * 2**20


def is_large(histories: int, rows: int, platform: str) -> bool:
    """Returns whether scores [histories, rows of the table] are too many to be held at once."""
    return 4 * histories * rows > MOST_BYTES.get(platform, MOST_BYTES_ELSEWHERE)


def rank_in_chunks(
    config: ModelConfig,
    num_items: int,
    params: Any,
    histories: Histories,
    targets_N: jax.Array,
    k: int,
    placement: Placement,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns target scores, counts of greater and of equal scores (the target's own included), and the best k items.

    Args:
      config: the model's configuration.
      num_items: size of the catalogue.
      params: as for `item_scores`.
      histories: this device's batch.
      targets_N: int32, targets of all histories of the devices of the items axis, ids.
      k: length of the lists.
      placement: where the function runs.

    Returns:
      float32[N'], int32[N'], int32[N'], int32[N', k] over all shards.
    """
    axis = placement.items
    items, h_ND = params["items"], history_states(config, params, histories, placement)
    rows, offset = items["embedding"].shape[0], shard_offset(items["embedding"].shape[0], axis)
    size = min(max(CHUNK_BYTES // (4 * len(h_ND)) // 128, 1) * 128, rows)
    # The last chunk begins early enough to be whole; `fresh` are its rows that no chunk has had before.
    starts = jnp.minimum(jnp.arange(-(-rows // size)) * size, rows - size)
    firsts = jnp.arange(len(starts)) * size
    case_P, item_P = removed_pairs(histories, len(h_ND), axis)
    local_N = jnp.arange(len(h_ND))

    def scores(start, first):
        part = {name: jax.lax.dynamic_slice_in_dim(x, start, size) for name, x in items.items()}
        scores_NC = scored(h_ND, part, num_items, offset + start)
        scores_NC = scores_NC.at[case_P, item_P - offset - start].set(
            -2e9, mode="drop", wrap_negative_indices=False
        )
        fresh_C = start + jnp.arange(size) >= first
        return jnp.where(fresh_C, scores_NC, -3e9)

    def find(carry, chunk):
        target_N, best = carry
        scores_NC = scores(*chunk)
        found_N = scores_NC.at[local_N, targets_N - offset - chunk[0]].get(
            mode="fill", fill_value=-3e9, wrap_negative_indices=False
        )
        top, places = jax.lax.top_k(scores_NC, min(k, size))
        joined = [jnp.concatenate(x, axis=1) for x in zip(best, (top, places + offset + chunk[0]))]
        top, places = jax.lax.top_k(joined[0], k)
        return (
            jnp.maximum(target_N, found_N),
            (top, jnp.take_along_axis(joined[1], places, axis=1)),
        ), None

    def compare(carry, chunk):
        scores_NC = scores(*chunk)
        count = lambda condition: condition.sum(axis=1, dtype=jnp.int32)  # noqa: E731
        return (
            carry[0] + count(scores_NC > target_N[:, None]),
            carry[1] + count(scores_NC == target_N[:, None]),
        ), None

    nothing = (jnp.full((len(h_ND), k), -3e9), jnp.zeros((len(h_ND), k), jnp.int32))
    (target_N, best), _ = jax.lax.scan(find, (jnp.full(len(h_ND), -3e9), nothing), (starts, firsts))
    if axis is not None:
        target_N = jax.lax.pmax(target_N, axis)
    zeros = jnp.zeros(len(h_ND), jnp.int32)
    counts, _ = jax.lax.scan(compare, (zeros, zeros), (starts, firsts))
    if axis is not None:
        counts = jax.lax.psum(counts, axis)
    return target_N, *counts, merged_top(*best, k, axis)[0]
