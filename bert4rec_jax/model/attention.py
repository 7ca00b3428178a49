# SPDX-License-Identifier: Apache-2.0
"""Attention inside segments: written out in arrays for CPUs, as one fused kernel for TPUs and GPUs.

All ways compute the same, dropout included. Written out, weights [B, H, Q, L] lie in memory, which XLA's CPU backend
does well and accelerators wait for.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.devices.platform import platform
from bert4rec_jax.model.dropout import Draws, dropout, row_seeds

# RoFormer has 10,000; histories are shorter than documents.
ROTARY_BASE = 1000.0
KERNELS = {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}


def attend(
    config: ModelConfig,
    causal: bool | tuple[bool, ...],
    query_BQD: jax.Array,
    key_value_BLD2: jax.Array,
    queries: tuple[jax.Array, jax.Array, jax.Array],
    keys: tuple[jax.Array, jax.Array, jax.Array],
    draws: Draws | None,
) -> jax.Array:
    """Returns what queries read from the values of their own segment: float[B, Q, D], heads side by side.

    Args:
      config: the model's configuration.
      causal: whether a query sees only columns up to its own; one for each row where rows differ.
      query_BQD: queries, heads side by side.
      key_value_BLD2: float[B, L, 2 D], keys and then values.
      queries: int32 segments [B, Q], positions [B, Q] and columns [B or 1, Q] of the queries.
      keys: the same of the keys, [.., L]; `queries` are this very tuple where there is one for each column. Padding is
        a segment of its own, so that no query is without keys.
      draws: of the dropout on weights, None for none.
    """
    chosen = config.attention
    if chosen == "auto":
        chosen = KERNELS.get(platform(), "dense")
    path = _dense if chosen == "dense" else _fused
    return path(
        config,
        chosen,
        _last_seen(causal, queries[2], key_value_BLD2.shape[1]),
        query_BQD,
        key_value_BLD2,
        queries,
        keys,
        draws,
    )


def _last_seen(causal, columns, length):
    """Returns the last column that each query may see, int32[B or 1, Q], or None where all see all of them."""
    if isinstance(causal, bool):
        return columns if causal else None
    return jnp.where(np.array(causal)[:, None], columns, length)


def _dense(config, _, last_seen, query_BQD, key_value_BLD2, queries, keys, draws):
    (B, L, _), D = key_value_BLD2.shape, query_BQD.shape[-1]
    heads = (config.heads, D // config.heads)
    q_BHQE = query_BQD.reshape(B, -1, *heads).transpose(0, 2, 1, 3)
    k_BHLE, v_BHLE = key_value_BLD2.reshape(B, L, 2, *heads).transpose(2, 0, 3, 1, 4)
    if config.positions == "rotary":
        q_BHQE, k_BHLE = (
            rotate(x, place[1][:, None]) for x, place in ((q_BHQE, queries), (k_BHLE, keys))
        )
    allowed_BQL = queries[0][:, :, None] == keys[0][:, None, :]
    if last_seen is not None:
        allowed_BQL &= last_seen[:, :, None] >= keys[2]
    scores_BHQL = jnp.einsum("bhqe,bhle->bhql", q_BHQE * heads[1] ** -0.5, k_BHLE)
    scores_BHQL = jnp.where(allowed_BQL[:, None], scores_BHQL.astype(jnp.float32), -1e9)
    scores_BHQL -= jax.lax.stop_gradient(scores_BHQL.max(-1, keepdims=True))
    weights_BHQL = jnp.exp(scores_BHQL)
    # Normalising after the product spares one pass over [B, H, Q, L].
    total_BHQ1 = weights_BHQL.sum(-1, keepdims=True)
    weights_BHQL = dropout(weights_BHQL.astype(query_BQD.dtype), config.attention_dropout, draws)
    y_BHQE = jnp.einsum("bhql,bhle->bhqe", weights_BHQL, v_BHLE) / total_BHQ1.astype(
        query_BQD.dtype
    )
    return y_BHQE.transpose(0, 2, 1, 3).reshape(B, -1, D)


def _fused(config, kernel, last_seen, query_BQD, key_value_BLD2, queries, keys, draws):
    B, D = len(query_BQD), query_BQD.shape[-1]
    E = D // config.heads
    rate = config.attention_dropout if draws is not None else 0.0
    seeds_B2 = row_seeds(draws) if rate else jnp.zeros((B, 2), jnp.uint32)
    places = [
        jnp.stack([segments, jnp.broadcast_to(columns, segments.shape)], axis=1)
        for segments, columns in (
            (queries[0], queries[2] if last_seen is None else last_seen),
            keys[::2],
        )
    ]
    # On another machine the kernel is interpreted: slow, and what tests do.
    interpret = kernel != KERNELS.get(platform())
    how = (places[0], places[1], seeds_B2, config.heads, last_seen is not None, rate)

    # By columns: inside a segment, where alone it matters, they are as far apart as positions, and those of keys are
    # the same in all rows.
    def turned(x_BLD, columns):
        if config.positions != "rotary":
            return x_BLD
        return rotate(x_BLD.reshape(*x_BLD.shape[:2], -1, E), columns[:, :, None]).reshape(
            x_BLD.shape
        )

    # Importing Pallas takes half a second, which a run on CPU need not wait for.
    if kernel == "pallas_tpu":
        from bert4rec_jax.model.kernels import attention_tpu

        # That kernel turns keys itself, and queries too unless they are at columns of their own.
        every_column = queries is keys
        q_BQD = (query_BQD if every_column else turned(query_BQD, queries[2])) * E**-0.5
        frequencies = _frequencies(E) if config.positions == "rotary" else None
        return attention_tpu.attend(
            q_BQD, key_value_BLD2, *how, frequencies, every_column, interpret
        )
    from bert4rec_jax.model.kernels import attention_gpu

    q_BQD, k_BLD = turned(query_BQD, queries[2]), turned(key_value_BLD2[..., :D], keys[2])
    return attention_gpu.attend(q_BQD * E**-0.5, k_BLD, key_value_BLD2[..., D:], *how, interpret)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Turns queries or keys by angles in proportion to their positions (RoFormer, Su et al. 2021, section 3.2).

    The product of a query and a key then depends on how far apart they are and not on where. Pairs are (e, e + E/2).
    Wavelengths run from 2 pi to nearly 2 pi * `ROTARY_BASE` positions.

    Args:
      x: float[..., E], E even.
      positions: int32, of the leading dimensions of x or broadcast to them.
    """
    half = x.shape[-1] // 2
    angle = positions[..., None] * _frequencies(x.shape[-1]).astype(np.float32)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = x[..., :half], x[..., half:]
    # In float32 whatever the dtype of x: a rounded angle would depend on the place.
    return jnp.concatenate(
        [first * cos - second * sin, first * sin + second * cos], axis=-1
    ).astype(x.dtype)


def _frequencies(width: int) -> np.ndarray:
    return ROTARY_BASE ** (-np.arange(width // 2) / (width // 2))
