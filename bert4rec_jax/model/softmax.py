# SPDX-License-Identifier: Apache-2.0
"""The exact softmax loss on accelerators: logits are never written to memory, or a chunk of them at a time.

Only two sums run over the whole catalogue: the log-sum-exp of a slot's logits, and the gradients of scale *
log-sum-exp. A kernel computes them, or a loop over chunks. `losses` has the formulation for CPUs, which is unrolled.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bert4rec_jax.devices.platform import platform
from bert4rec_jax.model.item_table import add_rows, all_rows, first_row, own_rows

KERNELS = {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}
CHUNK_BYTES = 64 * 2**20


class _Sums(NamedTuple):
    """The two sums over a shard of the catalogue; arguments and results as in `kernels.softmax_tpu`.

    Attributes:
      log_sum_exp: (h_MD, embedding_VD, bias_V) -> float32[M].
      gradients: (h_MD, embedding_VD, bias_V, lse_M, scale_M) -> float32 [M, D], [V, D], [V].
    """

    log_sum_exp: Callable
    gradients: Callable


def chosen_way(chunk_items: int) -> str:
    """Returns which of the ways this machine takes: "pallas_tpu", "pallas_gpu" or "scan"."""
    return "scan" if chunk_items else KERNELS.get(platform(), "scan")


def _sums(way: str, chunk_items: int) -> _Sums:
    if way == "scan":
        return _Sums(
            functools.partial(_scanned_log_sum_exp, chunk_items),
            functools.partial(_scanned_gradients, chunk_items),
        )
    # Importing Pallas takes half a second, which a run on CPU need not wait for.
    if way == "pallas_tpu":
        from bert4rec_jax.model.kernels import softmax_tpu as kernels
    else:
        from bert4rec_jax.model.kernels import softmax_gpu as kernels
    interpret = way != KERNELS.get(platform())
    return _Sums(
        functools.partial(kernels.log_sum_exp, interpret=interpret),
        functools.partial(kernels.gradients, interpret=interpret),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def cross_entropy(
    h_MD: jax.Array,
    embedding_VD: jax.Array,
    bias_V: jax.Array,
    labels_M: jax.Array,
    weights_M: jax.Array,
    way: str,
    chunk_items: int = 0,
    axis: str | None = None,
) -> jax.Array:
    """Sum over slots of weight * -log softmax(h E^T + bias)[label], exact over the whole catalogue.

    Args:
      h_MD: hidden states; products are taken in their dtype and summed in float32.
      embedding_VD: float32, this device's shard of the item table.
      bias_V: float32, output bias, -1e9 on rows that are no candidates.
      labels_M: int32, global item ids.
      weights_M: float32.
      way: see `chosen_way`.
      chunk_items: of "scan": rows of the table a chunk; 0 chooses from `CHUNK_BYTES`.
      axis: mesh axis over which the table is split, or None.
    """
    return _forward(h_MD, embedding_VD, bias_V, labels_M, weights_M, way, chunk_items, axis)[0]


def _forward(h_MD, embedding_VD, bias_V, labels_M, weights_M, way, chunk_items, axis):
    own_M = labels_M.shape[0]
    hidden, labels = all_rows(h_MD, axis), all_rows(labels_M, axis)
    lse_M = _sums(way, chunk_items).log_sum_exp(hidden, embedding_VD, bias_V)
    ids_M = labels - first_row(embedding_VD.shape[0], axis)
    target_M = jnp.einsum(
        "md,md->m",
        hidden,
        _taken(embedding_VD, ids_M).astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    ) + _taken(bias_V, ids_M)
    if axis is not None:
        lse_M = jax.nn.logsumexp(jax.lax.all_gather(lse_M, axis), axis=0)
        target_M = jax.lax.psum(target_M, axis)
    losses_M = lse_M - target_M
    if axis is not None:
        losses_M = jax.lax.dynamic_slice_in_dim(losses_M, jax.lax.axis_index(axis) * own_M, own_M)
    return jnp.sum(losses_M * weights_M), (h_MD, embedding_VD, bias_V, labels_M, weights_M, lse_M)


def _backward(way, chunk_items, axis, residuals, gradient):
    h_MD, embedding_VD, bias_V, labels_M, weights_M, lse_M = residuals
    hidden, labels = all_rows(h_MD, axis), all_rows(labels_M, axis)
    scale_M = all_rows(weights_M * gradient, axis)
    ids_M = labels - first_row(embedding_VD.shape[0], axis)
    d_hidden, d_embedding, d_bias = _sums(way, chunk_items).gradients(
        hidden, embedding_VD, bias_V, lse_M, scale_M
    )
    d_hidden -= scale_M[:, None] * _taken(embedding_VD, ids_M)
    d_embedding = add_rows(d_embedding, ids_M, -scale_M[:, None] * hidden)
    d_bias = add_rows(d_bias, ids_M, -scale_M)
    return own_rows(d_hidden, axis).astype(h_MD.dtype), d_embedding, d_bias, None, None


cross_entropy.defvjp(_forward, _backward)


def _taken(table, ids_M):
    """Returns rows of a shard; those of others read as zero."""
    return table.at[ids_M].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def _chunked(chunk_items, slots, embedding_VD, bias_V):
    """Returns the table in equal chunks, float32 [n, C, D] and [n, C]; what fills the last one up is no candidate."""
    V, D = embedding_VD.shape
    size = min(chunk_items or max(CHUNK_BYTES // (4 * slots), 128), V)
    missing = -V % size
    if missing:
        embedding_VD = jnp.pad(embedding_VD, ((0, missing), (0, 0)))
        bias_V = jnp.pad(bias_V, (0, missing), constant_values=-1e9)
    return embedding_VD.reshape(-1, size, D), bias_V.reshape(-1, size)


def _scanned_log_sum_exp(chunk_items, h_MD, embedding_VD, bias_V):
    def visit(carry, chunk):
        top_M, sum_M = carry
        logits_MC = _logits(h_MD, *chunk)
        new_top_M = jnp.maximum(top_M, logits_MC.max(axis=1))
        shifted_M = jnp.exp(logits_MC - new_top_M[:, None]).sum(axis=1)
        return (new_top_M, sum_M * jnp.exp(top_M - new_top_M) + shifted_M), None

    M = h_MD.shape[0]
    (top_M, sum_M), _ = jax.lax.scan(
        visit, (jnp.full(M, -2e9), jnp.zeros(M)), _chunked(chunk_items, M, embedding_VD, bias_V)
    )
    return top_M + jnp.log(sum_M)


def _scanned_gradients(chunk_items, h_MD, embedding_VD, bias_V, lse_M, scale_M):
    def visit(d_h_MD, chunk):
        p_MC = jnp.exp(_logits(h_MD, *chunk) - lse_M[:, None]) * scale_M[:, None]
        d_bias_C, p_MC = p_MC.sum(axis=0), p_MC.astype(h_MD.dtype)
        d_h_MD += jnp.dot(p_MC, chunk[0].astype(h_MD.dtype), preferred_element_type=jnp.float32)
        return d_h_MD, (
            jnp.einsum("mc,md->cd", p_MC, h_MD, preferred_element_type=jnp.float32),
            d_bias_C,
        )

    V, D = embedding_VD.shape
    d_h_MD, (d_embedding, d_bias) = jax.lax.scan(
        visit, jnp.zeros(h_MD.shape), _chunked(chunk_items, h_MD.shape[0], embedding_VD, bias_V)
    )
    return d_h_MD, d_embedding.reshape(-1, D)[:V], d_bias.reshape(-1)[:V]


def _logits(h_MD, embedding_CD, bias_C):
    return (
        jnp.einsum(
            "md,cd->mc", h_MD, embedding_CD.astype(h_MD.dtype), preferred_element_type=jnp.float32
        )
        + bias_C
    )
