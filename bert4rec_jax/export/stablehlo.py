# SPDX-License-Identifier: Apache-2.0
"""A trained model as a serialized JAX function (StableHLO): any batch, any length, on CPU, CUDA and TPU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.devices import Placement
from bert4rec_jax.files import replacing
from bert4rec_jax.model import Inputs, mask_token
from bert4rec_jax.ranking import Histories, item_scores

PLATFORMS = ("cpu", "cuda", "tpu")


def write(path: str, config: ModelConfig, num_items: int, params: dict, k: int) -> list[str]:
    """Writes the function to `path` and its weights to `path` + `.npz`.

    It maps (weights, history int32[B, N]) to `items` int32[B, k], `scores` and `probabilities` float32[B, k]; N is at
    most what the model reads. Where fewer than k items are left, the last places are item 0.

    Args:
      path: the file, `model.stablehlo`.
      config: the model's configuration; computed in float32 whatever its dtype.
      num_items: size of the catalogue.
      params: as in a checkpoint.
      k: how many items come back.

    Returns:
      The files written.
    """
    config = dataclasses.replace(config, dtype="float32")
    structure = jax.tree.structure(params)
    names = weight_names(params)
    weights = {
        name: np.asarray(leaf, np.float32)
        for name, leaf in zip(names, jax.tree.leaves(params), strict=True)
    }
    k = min(k, num_items)

    def recommend(weights: dict, history_BN: jax.Array) -> dict[str, jax.Array]:
        B = history_BN.shape[0]
        tokens_BL = history_BN
        if config.appends_mask:
            mask_B1 = jnp.full((B, 1), mask_token(num_items), jnp.int32)
            tokens_BL = jnp.concatenate([history_BN, mask_B1], axis=1)
        tree = jax.tree.unflatten(structure, [weights[name] for name in names])
        scores_BV = scores_of(config, num_items, tree, tokens_BL)
        total_B1 = jax.nn.logsumexp(scores_BV, axis=1, keepdims=True)
        left_BV = scores_BV.at[jnp.arange(B)[:, None], history_BN].set(-2e9)
        scores_BK, items_BK = jax.lax.top_k(left_BV, k)
        items_BK = jnp.where(scores_BK > -1e8, items_BK, 0)
        return {
            "items": items_BK,
            "scores": scores_BK,
            "probabilities": jnp.exp(scores_BK - total_B1),
        }

    room = room_of(config)
    shape = export.symbolic_shape("b, n", constraints=["b >= 1", "n >= 1", f"n <= {room}"])
    exported = export.export(jax.jit(recommend), platforms=PLATFORMS)(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights),
        jax.ShapeDtypeStruct(shape, jnp.int32),
    )
    with replacing(path + ".npz", "wb") as file:
        np.savez(file, **weights)
    with replacing(path, "wb") as file:
        file.write(exported.serialize())
    return [path, path + ".npz"]


def room_of(config: ModelConfig) -> int:
    """Returns how many items of a history the model reads; its newest, where there are more."""
    return config.max_length - config.appends_mask


def scores_of(config: ModelConfig, num_items: int, params: Any, tokens_BL: jax.Array) -> jax.Array:
    """Returns the scores of all rows of the item table after each history: float32[B, V].

    Args:
      config: the model's configuration.
      num_items: size of the catalogue.
      params: `items` and `encoder`.
      tokens_BL: int32[B, L], item numbers, then [MASK] where the model needs one; 0 anywhere is left out.
    """
    B, L = tokens_BL.shape
    real_BL = (tokens_BL > 0).astype(jnp.int32)
    from_left_BL = jnp.cumsum(real_BL, axis=1) - real_BL
    from_right_BL = real_BL.sum(axis=1, keepdims=True) - 1 - from_left_BL
    positions_BL = jnp.maximum(from_right_BL if config.positions == "right" else from_left_BL, 0)
    slots_B1 = jnp.full((B, 1), L - 1, jnp.int32)
    none = jnp.zeros((0,), jnp.int32)
    inputs = Inputs(tokens_BL, real_BL, positions_BL, slots_B1)
    # Operations of the CPU's implementations are available on every platform that reads the file.
    placement = Placement("cpu")
    histories = Histories(inputs, jnp.arange(B), none, none)
    return item_scores(config, num_items, params, histories, placement)


def weight_names(params: Any) -> list[str]:
    """Returns a name for each leaf of the parameters, such as `items.embedding`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return [".".join(str(getattr(key, "key", key)) for key in path) for path, _ in paths]
