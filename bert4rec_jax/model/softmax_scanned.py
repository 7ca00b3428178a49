# SPDX-License-Identifier: Apache-2.0
"""Sums of the exact softmax in a loop over chunks of the catalogue.

One chunk of logits is in memory at a time. Compile time and code size do not depend on the size of
the catalogue. Functions as in `softmax.Implementation`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bert4rec_jax.model.item_table import NON_ITEM_BIAS

CHUNK_BYTES = 64 * 2**20
# Logits of a chunk are at least this many columns wide, however many slots there are.
LEAST_ITEMS = 128


class SlotGradient(NamedTuple):
    """Inputs of the backward pass for each slot.

    Attributes:
      lse_M: float32, log-sum-exp over the whole catalogue, also if the table is a shard.
      scale_M: float32, gradient of the loss with respect to `lse_M`.
      start_MD: float32, gradient with respect to the hidden states from everything but the
        log-sum-exp.
    """

    lse_M: jax.Array
    scale_M: jax.Array
    start_MD: jax.Array


def log_sum_exp(
    chunk_items: int, h_MD: jax.Array, embedding_VD: jax.Array, bias_V: jax.Array
) -> tuple[jax.Array, None]:
    """Returns float32[M]; nothing is kept for the backward pass."""

    def visit(
        carry: tuple[jax.Array, jax.Array], chunk: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        max_M, sum_M = carry
        logits_MC = _logits(h_MD, *chunk)
        new_max_M = jnp.maximum(max_M, logits_MC.max(axis=1))
        new_sum_M = jnp.exp(logits_MC - new_max_M[:, None]).sum(axis=1)
        return (new_max_M, sum_M * jnp.exp(max_M - new_max_M) + new_sum_M), None

    M = h_MD.shape[0]
    start = (jnp.full(M, 2 * NON_ITEM_BIAS), jnp.zeros(M))
    (max_M, sum_M), _ = jax.lax.scan(visit, start, _chunks(chunk_items, M, embedding_VD, bias_V))
    return max_M + jnp.log(sum_M), None


def gradients(
    chunk_items: int,
    h_MD: jax.Array,
    embedding_VD: jax.Array,
    bias_V: jax.Array,
    slots: SlotGradient,
    saved: None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns gradients float32 [M, D], [V, D] and [V]."""
    del saved

    def visit(
        d_h_MD: jax.Array, chunk: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        embedding_CD, bias_C = chunk
        logits_MC = _logits(h_MD, embedding_CD, bias_C)
        p_MC = jnp.exp(logits_MC - slots.lse_M[:, None]) * slots.scale_M[:, None]
        d_bias_C = p_MC.sum(axis=0)
        p_MC = p_MC.astype(h_MD.dtype)
        embedding_CD = embedding_CD.astype(h_MD.dtype)
        d_h_MD += jnp.dot(p_MC, embedding_CD, preferred_element_type=jnp.float32)
        d_embedding_CD = jnp.einsum("mc,md->cd", p_MC, h_MD, preferred_element_type=jnp.float32)
        return d_h_MD, (d_embedding_CD, d_bias_C)

    V, D = embedding_VD.shape
    chunks = _chunks(chunk_items, h_MD.shape[0], embedding_VD, bias_V)
    d_h_MD, (d_embedding, d_bias) = jax.lax.scan(visit, slots.start_MD, chunks)
    return d_h_MD, d_embedding.reshape(-1, D)[:V], d_bias.reshape(-1)[:V]


def _chunks(
    chunk_items: int, slots: int, embedding_VD: jax.Array, bias_V: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the table in equal chunks, float32 [n, C, D] and [n, C].

    The last chunk is filled up with non-items.
    """
    V, D = embedding_VD.shape
    size = min(chunk_items or max(CHUNK_BYTES // (4 * slots), LEAST_ITEMS), V)
    missing = -V % size
    if missing:
        embedding_VD = jnp.pad(embedding_VD, ((0, missing), (0, 0)))
        bias_V = jnp.pad(bias_V, (0, missing), constant_values=NON_ITEM_BIAS)
    return embedding_VD.reshape(-1, size, D), bias_V.reshape(-1, size)


def _logits(h_MD: jax.Array, embedding_CD: jax.Array, bias_C: jax.Array) -> jax.Array:
    embedding_CD = embedding_CD.astype(h_MD.dtype)
    products = jnp.einsum("md,cd->mc", h_MD, embedding_CD, preferred_element_type=jnp.float32)
    return products + bias_C
