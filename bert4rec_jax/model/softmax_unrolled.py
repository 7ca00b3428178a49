# SPDX-License-Identifier: Apache-2.0
"""Sums of the exact softmax over unrolled chunks of the catalogue, for XLA's CPU backend.

That backend runs the body of a loop on one core, but the operations of an unrolled loop on all of
them. Exponentials are kept for the backward pass while they fit into `KEEP_BYTES` and recomputed
otherwise, so that memory does not grow with M * V. The exponentials of a chunk are relative to its
own maximum. The difference to the global log-sum-exp is applied to the small [M, D] factors of the
gradient products, so no array over the catalogue is read again to normalise it. Functions as in
`softmax.Implementation`.
"""

import math

import jax
import jax.numpy as jnp

from bert4rec_jax.devices import cpu
from bert4rec_jax.model.softmax_scanned import SlotGradient

# Exponentials up to this size are kept for the backward pass.
KEEP_BYTES = 512 * 2**20
CHUNK_BYTES = 64 * 2**20
# Unrolled chunks take time to compile, so there are at most this many unless a chunk size is given.
MAX_CHUNKS = 32


def log_sum_exp(
    chunk_items: int, h_MD: jax.Array, embedding_VD: jax.Array, bias_V: jax.Array
) -> tuple[jax.Array, list[tuple[jax.Array | None, jax.Array]]]:
    """Returns float32[M], and the residuals of each chunk.

    Residuals are the exponentials, float32[M, C] or None, and their maxima, float32[M].
    """
    embedding_VD = embedding_VD.astype(h_MD.dtype)
    slots = h_MD.shape[0]
    rows = embedding_VD.shape[0]
    chunks = _chunks(slots, rows, chunk_items)
    keep = len(chunks) == 1 or slots * rows * 4 <= KEEP_BYTES
    saved = []
    log_sums: list[jax.Array] = []
    for chunk in chunks:
        operand_MD = h_MD if keep else cpu.order_after(h_MD, log_sums[-1:])
        e_MC, max_M = _exponentials(operand_MD, embedding_VD[chunk], bias_V[chunk])
        saved.append((e_MC if keep else None, max_M))
        log_sums.append(max_M + jnp.log(e_MC.sum(axis=1)))
    return jax.nn.logsumexp(jnp.stack(log_sums), axis=0), saved


def gradients(
    chunk_items: int,
    h_MD: jax.Array,
    embedding_VD: jax.Array,
    bias_V: jax.Array,
    slots: SlotGradient,
    saved: list[tuple[jax.Array | None, jax.Array]],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns gradients float32 [M, D], [V, D] and [V]; `saved` is from `log_sum_exp`."""
    embedding_VD = embedding_VD.astype(h_MD.dtype)
    chunks = _chunks(h_MD.shape[0], embedding_VD.shape[0], chunk_items)
    d_h_MD = slots.start_MD
    d_embedding: list[jax.Array] = []
    d_bias: list[jax.Array] = []
    for chunk, (e_MC, max_M) in zip(chunks, saved):
        if e_MC is None:
            done = [slots.lse_M, d_h_MD, *d_embedding[-1:], *d_bias[-1:]]
            operand_MD = cpu.order_after(h_MD, done)
            e_MC, _ = _exponentials(operand_MD, embedding_VD[chunk], bias_V[chunk])
        scale_M = slots.scale_M * jnp.exp(max_M - slots.lse_M)
        e_MC = e_MC.astype(h_MD.dtype)
        read_MD = jnp.dot(e_MC, embedding_VD[chunk], preferred_element_type=jnp.float32)
        d_h_MD += scale_M[:, None] * read_MD
        scaled_MD = (h_MD * scale_M[:, None]).astype(h_MD.dtype)
        d_embedding.append(
            jnp.einsum("mc,md->cd", e_MC, scaled_MD, preferred_element_type=jnp.float32)
        )
        d_bias.append(jnp.einsum("mc,m->c", e_MC, scale_M, preferred_element_type=jnp.float32))
    return d_h_MD, jnp.concatenate(d_embedding), jnp.concatenate(d_bias)


def _chunks(slots: int, rows: int, chunk_items: int) -> list[slice]:
    size = chunk_items or max(CHUNK_BYTES // (4 * slots), math.ceil(rows / MAX_CHUNKS))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _exponentials(
    h_MD: jax.Array, embedding_CD: jax.Array, bias_C: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns exp(logits - max) float32[M, C] and the maxima float32[M]."""
    logits_MC = jnp.einsum("md,cd->mc", h_MD, embedding_CD, preferred_element_type=jnp.float32)
    logits_MC += bias_C
    max_M = logits_MC.max(axis=1)
    return jnp.exp(logits_MC - max_M[:, None]), max_M
