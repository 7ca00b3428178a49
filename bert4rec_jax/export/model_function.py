# SPDX-License-Identifier: Apache-2.0
"""The scoring function that the exported formats contain, and the names of its weights."""

from typing import Any

import jax
import jax.numpy as jnp

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.devices import Placement
from bert4rec_jax.model import Inputs
from bert4rec_jax.ranking import Histories, item_scores


def score_histories(
    config: ModelConfig, num_items: int, params: Any, tokens_BL: jax.Array
) -> jax.Array:
    """Scores every row of the item table after each history.

    Args:
      config: the model's configuration.
      num_items: size of the catalogue.
      params: `items` and `encoder`.
      tokens_BL: int32[B, L], item numbers, followed by [MASK] if the model appends it; zeros are
        ignored.

    Returns:
      float32[B, V]; padding and [MASK] have a very low score.
    """
    B, L = tokens_BL.shape
    real_BL = (tokens_BL > 0).astype(jnp.int32)
    from_left_BL = jnp.cumsum(real_BL, axis=1) - real_BL
    from_right_BL = real_BL.sum(axis=1, keepdims=True) - 1 - from_left_BL
    distances_BL = from_right_BL if config.positions == "right" else from_left_BL
    slots_B1 = jnp.full((B, 1), L - 1, jnp.int32)
    inputs = Inputs(tokens_BL, real_BL, jnp.maximum(distances_BL, 0), slots_B1)
    no_pairs = jnp.zeros((0,), jnp.int32)
    histories = Histories(inputs, jnp.arange(B), no_pairs, no_pairs)
    # The operations of the CPU's implementations exist on every platform.
    return item_scores(config, num_items, params, histories, Placement("cpu"))


def weight_names(params: Any) -> list[str]:
    """Returns a name for each leaf of the parameters, such as `items.embedding`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return [".".join(str(getattr(key, "key", key)) for key in path) for path, _ in paths]
