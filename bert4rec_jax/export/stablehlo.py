# SPDX-License-Identifier: Apache-2.0
"""A trained model as a serialized JAX function (StableHLO) for CPU, CUDA and TPU."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.export.model_function import score_histories, weight_names
from bert4rec_jax.files import replacing
from bert4rec_jax.model import mask_token
from bert4rec_jax.ranking.score_results import log_probabilities, mask_removed, top_k

PLATFORMS = ("cpu", "cuda", "tpu")


def write(path: str, config: ModelConfig, num_items: int, params: dict, k: int) -> list[str]:
    """Writes the function to `path` and its weights to `path` + `.npz`.

    The function maps (weights, history int32[B, N]) to `items` int32[B, k], and `scores` and
    `probabilities` float32[B, k], where N is at most `config.max_history`. If fewer than k items
    are left, the last ones are 0.

    Args:
      path: the file, `model.stablehlo`.
      config: the model's configuration; the exported function always computes in float32.
      num_items: size of the catalogue.
      params: as in a checkpoint.
      k: number of items in each list; at most the whole catalogue.

    Returns:
      The files written.
    """
    names = weight_names(params)
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(params)]
    weights: dict[str, Any] = dict(zip(names, leaves, strict=True))
    recommend = _recommend_function(config, num_items, jax.tree.structure(params), names, k)
    limits = ["b >= 1", "n >= 1", f"n <= {config.max_history}"]
    shape = export.symbolic_shape("b, n", constraints=limits)
    exported = export.export(jax.jit(recommend), platforms=PLATFORMS)(
        {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()},
        jax.ShapeDtypeStruct(shape, jnp.int32),
    )
    with replacing(path + ".npz", "wb") as file:
        np.savez(file, **weights)
    with replacing(path, "wb") as file:
        file.write(exported.serialize())
    return [path, path + ".npz"]


def _recommend_function(
    config: ModelConfig,
    num_items: int,
    structure: jax.tree_util.PyTreeDef,
    names: list[str],
    k: int,
) -> Callable[[dict, jax.Array], dict[str, jax.Array]]:
    config = dataclasses.replace(config, dtype="float32")
    k = min(k, num_items)

    def recommend(weights: dict, history_BN: jax.Array) -> dict[str, jax.Array]:
        B = history_BN.shape[0]
        tokens_BL = history_BN
        if config.appends_mask:
            mask_B1 = jnp.full((B, 1), mask_token(num_items), jnp.int32)
            tokens_BL = jnp.concatenate([history_BN, mask_B1], axis=1)
        params = jax.tree.unflatten(structure, [weights[name] for name in names])
        scores_BV = score_histories(config, num_items, params, tokens_BL)
        rows_B1 = jnp.arange(B)[:, None]
        best = top_k(mask_removed(scores_BV, rows_B1, history_BN), k)
        return {
            "items": best.items,
            "scores": best.scores,
            "probabilities": jnp.exp(log_probabilities(best.scores, scores_BV)),
        }

    return recommend
