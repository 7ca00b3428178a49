# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention inside segments.

There are three implementations, which return the same values up to rounding, dropout included:
`dense` computes all weights [B, H, Q, L] at once, `blockwise` visits blocks of keys
(`blockwise_attention`), and `pallas_tpu` is one fused kernel (`kernels.attention_tpu`).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.model import blockwise_attention
from bert4rec_jax.model.dropout import DropoutKeys, dropout, row_seeds

# RoFormer uses 10,000; histories are shorter than documents.
ROTARY_BASE = 1000.0
# Rows up to this length use dense attention on GPUs: the weights of a row are small, and a loop
# over blocks of keys has more operations to launch.
DENSE_LENGTH = 1024

Implementation = Literal["dense", "blockwise", "pallas_tpu"]


class Places(NamedTuple):
    """Where queries or keys are.

    Attributes:
      segments: int32[B, N], number of the history in its row. Padding is a segment of its own, so
        every query has keys.
      positions: int32[B, N], position in the history, for rotary embeddings.
      columns: int32[B or 1, N], column in the row.
    """

    segments: jax.Array
    positions: jax.Array
    columns: jax.Array


def choose_implementation(
    requested: Literal["auto"] | Implementation, platform: str, length: int
) -> Implementation:
    """Returns the implementation for rows of `length` columns, given `ModelConfig.attention`."""
    if requested != "auto":
        return requested
    if platform == "tpu":
        return "pallas_tpu"
    if platform == "gpu" and length > DENSE_LENGTH:
        return "blockwise"
    return "dense"


def attend(
    config: ModelConfig,
    platform: str,
    causal: bool | tuple[bool, ...],
    query_BQD: jax.Array,
    key_value_BLD2: jax.Array,
    places: tuple[Places, Places],
    dropout_keys: DropoutKeys | None,
) -> jax.Array:
    """Returns the values that each query attends to in its own segment: float[B, Q, D].

    Args:
      config: the model's configuration.
      platform: see `Placement`.
      causal: whether a query only attends to columns up to its own; one value per row if rows
        differ.
      query_BQD: queries; the heads are consecutive parts of the last dimension.
      key_value_BLD2: float[B, L, 2 D], keys followed by values.
      places: of the queries and of the keys. They are the same object if there is one query per
        column.
      dropout_keys: for dropout of the attention weights; None for no dropout.
    """
    queries, _ = places
    length = key_value_BLD2.shape[1]
    last_visible = _last_visible(causal, queries.columns, length)
    implementation = choose_implementation(config.attention, platform, length)
    arguments = (config, query_BQD, key_value_BLD2, places, last_visible, dropout_keys)
    if implementation == "pallas_tpu":
        # On other platforms the kernel is interpreted, which is slow and meant for tests.
        return _tpu_kernel(*arguments, interpret=platform != "tpu")
    return _in_heads(implementation, *arguments)


def _last_visible(
    causal: bool | tuple[bool, ...], columns: jax.Array, length: int
) -> jax.Array | None:
    """Returns the last column that each query attends to, int32[B or 1, Q].

    None if all queries attend to all columns.
    """
    if isinstance(causal, bool):
        return columns if causal else None
    return jnp.where(np.array(causal)[:, None], columns, length)


def _in_heads(
    implementation: Implementation,
    config: ModelConfig,
    query_BQD: jax.Array,
    key_value_BLD2: jax.Array,
    places: tuple[Places, Places],
    last_visible: jax.Array | None,
    dropout_keys: DropoutKeys | None,
) -> jax.Array:
    """Splits the heads, rotates and scales, and calls one of the implementations in plain JAX."""
    B, L, _ = key_value_BLD2.shape
    D = query_BQD.shape[-1]
    heads = (config.heads, D // config.heads)
    queries, keys = places
    q_BHQE = query_BQD.reshape(B, -1, *heads).transpose(0, 2, 1, 3)
    k_BHLE, v_BHLE = key_value_BLD2.reshape(B, L, 2, *heads).transpose(2, 0, 3, 1, 4)
    if config.positions == "rotary":
        q_BHQE = rotate(q_BHQE, queries.positions[:, None])
        k_BHLE = rotate(k_BHLE, keys.positions[:, None])
    q_BHQE = q_BHQE * heads[1] ** -0.5
    rate = config.attention_dropout
    if implementation == "dense":
        allowed_BQL = queries.segments[:, :, None] == keys.segments[:, None, :]
        if last_visible is not None:
            allowed_BQL &= last_visible[:, :, None] >= keys.columns
        y_BHQE = _dense(q_BHQE, k_BHLE, v_BHLE, allowed_BQL, rate, dropout_keys)
    else:
        mask = blockwise_attention.Mask(
            queries.segments, keys.segments, last_visible, jnp.broadcast_to(keys.columns, (B, L))
        )
        seeds_B2 = row_seeds(dropout_keys) if dropout_keys is not None and rate else None
        y_BHQE = blockwise_attention.attend(q_BHQE, k_BHLE, v_BHLE, mask, seeds_B2, rate)
    return y_BHQE.transpose(0, 2, 1, 3).reshape(B, -1, D)


def _dense(
    q_BHQE: jax.Array,
    k_BHLE: jax.Array,
    v_BHLE: jax.Array,
    allowed_BQL: jax.Array,
    rate: float,
    dropout_keys: DropoutKeys | None,
) -> jax.Array:
    """Returns softmax(q k^T) v with all weights in memory: float[B, H, Q, E]."""
    dtype = q_BHQE.dtype
    scores_BHQL = jnp.einsum("bhqe,bhle->bhql", q_BHQE, k_BHLE)
    scores_BHQL = jnp.where(
        allowed_BQL[:, None], scores_BHQL.astype(jnp.float32), blockwise_attention.MASKED
    )
    scores_BHQL -= jax.lax.stop_gradient(scores_BHQL.max(-1, keepdims=True))
    weights_BHQL = jnp.exp(scores_BHQL)
    # Normalising after the product saves one pass over [B, H, Q, L].
    total_BHQ1 = weights_BHQL.sum(-1, keepdims=True).astype(dtype)
    weights_BHQL = dropout(weights_BHQL.astype(dtype), rate, dropout_keys)
    return jnp.einsum("bhql,bhle->bhqe", weights_BHQL, v_BHLE) / total_BHQ1


def _tpu_kernel(
    config: ModelConfig,
    query_BQD: jax.Array,
    key_value_BLD2: jax.Array,
    places: tuple[Places, Places],
    last_visible: jax.Array | None,
    dropout_keys: DropoutKeys | None,
    interpret: bool,
) -> jax.Array:
    # Importing Pallas takes half a second, which only TPUs need.
    from bert4rec_jax.model.kernels import attention_tpu

    B, Q, D = query_BQD.shape
    E = D // config.heads
    queries, keys = places
    rate = config.attention_dropout if dropout_keys is not None else 0.0
    every_column = queries is keys
    rotary = config.positions == "rotary"
    if rotary and not every_column:
        # The kernel rotates keys, and queries if there is one per column. It rotates by columns:
        # inside a segment, the distance of two columns is the distance of their positions.
        heads_BQHE = query_BQD.reshape(B, Q, -1, E)
        query_BQD = rotate(heads_BQHE, queries.columns[:, :, None]).reshape(B, Q, D)
    options = attention_tpu.KernelOptions(
        heads=config.heads,
        causal=last_visible is not None,
        rate=rate,
        length=key_value_BLD2.shape[1],
        every_column=every_column,
        interpret=interpret,
    )
    return attention_tpu.attend(
        query_BQD * E**-0.5,
        key_value_BLD2,
        _stacked(queries.segments, queries.columns if last_visible is None else last_visible),
        _stacked(keys.segments, keys.columns),
        row_seeds(dropout_keys) if dropout_keys and rate else jnp.zeros((B, 2), jnp.uint32),
        rotary_frequencies(E) if rotary else None,
        options,
    )


def _stacked(segments: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.stack([segments, jnp.broadcast_to(columns, segments.shape)], axis=1)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotates queries or keys by angles proportional to their positions (RoFormer, Su et al. 2021).

    The product of a query and a key then depends on their distance only. Pairs are (e, e + E/2).
    Wavelengths range from 2 pi to nearly 2 pi * `ROTARY_BASE` positions.

    Args:
      x: float[..., E], E even.
      positions: int32, broadcastable to the leading dimensions of x.
    """
    half = x.shape[-1] // 2
    angle = positions[..., None] * rotary_frequencies(x.shape[-1]).astype(np.float32)
    cos = jnp.cos(angle)
    sin = jnp.sin(angle)
    first = x[..., :half]
    second = x[..., half:]
    # In float32 for every dtype of x: a rounded angle would depend on the absolute position.
    rotated = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return rotated.astype(x.dtype)


def rotary_frequencies(width: int) -> np.ndarray:
    """Returns float64[width / 2], the angle per position of each pair."""
    return ROTARY_BASE ** (-np.arange(width // 2) / (width // 2))
