# SPDX-License-Identifier: Apache-2.0
"""Losses of hidden states against the item table: exact softmax in chunks of items, and two sampled ones.

All return the *sum* of weighted losses over this device's slots; the step divides by the global sum of weights.
`axis` is the mesh axis over which the table is split, or None (see `item_table.py`).
"""

import functools
import math

import jax
import jax.numpy as jnp

from bert4rec_jax.config import LossConfig
from bert4rec_jax.devices import cpu
from bert4rec_jax.devices.platform import platform
from bert4rec_jax.model import softmax
from bert4rec_jax.model.item_table import (
    add_rows,
    all_rows,
    candidate_bias,
    first_row,
    lookup,
    own_rows,
)

# Probabilities up to this size are kept for the backward pass; beyond it they are computed again.
KEEP_BYTES = 512 * 2**20
CHUNK_BYTES = 64 * 2**20
# XLA's CPU backend runs loop bodies on one core, so chunks are unrolled, and there must not be too many to compile.
MAX_CHUNKS = 32


def loss_sum(
    config: LossConfig,
    items: dict,
    h_MD: jax.Array,
    labels_M: jax.Array,
    weights_M: jax.Array,
    num_items: int,
    key: jax.Array,
    axis: str | None = None,
) -> jax.Array:
    """Returns the summed loss of the configured kind.

    Args:
      config: which loss.
      items: `params["items"]`, this device's shard.
      h_MD: hidden states of this device's slots.
      labels_M: int32, target item ids in 1..num_items (anything where the weight is 0).
      weights_M: float32, 0 for slots that hold no target.
      num_items: size of the catalogue.
      key: PRNG key for negatives, the same on all devices.
      axis: mesh axis over which the table is split, or None.
    """
    embedding_VD = items["embedding"]
    bias_V = candidate_bias(items["bias"], num_items, axis)
    if config.name == "softmax" and platform() == "cpu":
        return softmax_cross_entropy(
            h_MD,
            embedding_VD.astype(h_MD.dtype),
            bias_V,
            labels_M,
            weights_M,
            config.chunk_items,
            axis,
        )
    if config.name == "softmax":
        return softmax.cross_entropy(
            h_MD,
            embedding_VD,
            bias_V,
            labels_M,
            weights_M,
            softmax.chosen_way(config.chunk_items),
            config.chunk_items,
            axis,
        )
    negatives_N = jax.random.randint(key, (config.negatives,), 1, num_items + 1)
    sampled = {
        "sampled_softmax": sampled_softmax,
        "gbce": functools.partial(gbce, t=config.gbce_t),
    }[config.name]
    return sampled(
        h_MD, embedding_VD, bias_V, labels_M, weights_M, negatives_N, num_items=num_items, axis=axis
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def softmax_cross_entropy(
    h_MD: jax.Array,
    embedding_VD: jax.Array,
    bias_V: jax.Array,
    labels_M: jax.Array,
    weights_M: jax.Array,
    chunk_items: int = 0,
    axis: str | None = None,
) -> jax.Array:
    """Sum over slots of weight * -log softmax(h E^T + bias)[label], exact over the whole catalogue.

    The catalogue is visited in chunks. Each chunk's exponentials are taken relative to its own maximum, and the
    difference to the global log-sum-exp is applied to the small [M, D] factors of the gradient products, so no
    array over the catalogue is read a second time for normalisation. Exponentials are kept for the backward pass
    while they fit into `KEEP_BYTES` and computed again beyond, so that memory does not grow with M * V.

    Args:
      h_MD: hidden states.
      embedding_VD: this device's shard of the item table.
      bias_V: float32, output bias, -1e9 on rows that are no candidates.
      labels_M: int32, global item ids.
      weights_M: float32.
      chunk_items: rows of the table a chunk; 0 chooses from `CHUNK_BYTES`.
      axis: mesh axis over which the table is split, or None.
    """
    return _softmax_forward(h_MD, embedding_VD, bias_V, labels_M, weights_M, chunk_items, axis)[0]


def _chunks(slots: int, rows: int, chunk_items: int) -> list[slice]:
    size = chunk_items or CHUNK_BYTES // (4 * slots)
    size = max(size, 1) if chunk_items else max(size, math.ceil(rows / MAX_CHUNKS))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _exponentials(h_MD, embedding_VD, bias_V, chunk):
    logits_MC = jnp.einsum(
        "md,cd->mc", h_MD, embedding_VD[chunk], preferred_element_type=jnp.float32
    )
    logits_MC += bias_V[chunk]
    max_M = logits_MC.max(axis=1)
    return jnp.exp(logits_MC - max_M[:, None]), max_M


def _softmax_forward(h_MD, embedding_VD, bias_V, labels_M, weights_M, chunk_items, axis):
    own_M = labels_M.shape[0]
    hidden, labels = all_rows(h_MD, axis), all_rows(labels_M, axis)
    rows = embedding_VD.shape[0]
    chunks = _chunks(hidden.shape[0], rows, chunk_items)
    keep = len(chunks) == 1 or hidden.shape[0] * rows * 4 <= KEEP_BYTES
    kept, maxima, log_sums = [], [], []
    for chunk in chunks:
        operand_MD = hidden if keep else cpu.order_after(hidden, log_sums[-1:])
        e_MC, max_M = _exponentials(operand_MD, embedding_VD, bias_V, chunk)
        kept.append(e_MC if keep else None)
        maxima.append(max_M)
        log_sums.append(max_M + jnp.log(e_MC.sum(axis=1)))
    log_sum_M = jax.nn.logsumexp(jnp.stack(log_sums), axis=0)
    ids_M = labels - first_row(rows, axis)
    target_MD = embedding_VD.at[ids_M].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    target_M = jnp.einsum("md,md->m", hidden, target_MD, preferred_element_type=jnp.float32)
    target_M += bias_V.at[ids_M].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    if axis is not None:
        log_sum_M = jax.nn.logsumexp(jax.lax.all_gather(log_sum_M, axis), axis=0)
        target_M = jax.lax.psum(target_M, axis)
    losses_M = log_sum_M - target_M
    if axis is not None:
        losses_M = jax.lax.dynamic_slice_in_dim(losses_M, jax.lax.axis_index(axis) * own_M, own_M)
    residuals = (
        h_MD,
        embedding_VD,
        bias_V,
        labels_M,
        weights_M,
        log_sum_M,
        tuple(kept),
        tuple(maxima),
    )
    return jnp.sum(losses_M * weights_M), residuals


def _softmax_backward(chunk_items, axis, residuals, gradient):
    h_MD, embedding_VD, bias_V, labels_M, weights_M, log_sum_M, kept, maxima = residuals
    hidden, labels = all_rows(h_MD, axis), all_rows(labels_M, axis)
    scale_M = all_rows(weights_M * gradient, axis)
    ids_M = labels - first_row(embedding_VD.shape[0], axis)
    target_MD = embedding_VD.at[ids_M].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    d_hidden = -scale_M[:, None] * target_MD.astype(jnp.float32)
    d_embedding, d_bias = [], []
    for chunk, e_MC, max_M in zip(
        _chunks(*hidden.shape[:1], embedding_VD.shape[0], chunk_items), kept, maxima
    ):
        if e_MC is None:
            done = [log_sum_M, d_hidden, *d_embedding[-1:], *d_bias[-1:]]
            e_MC, _ = _exponentials(cpu.order_after(hidden, done), embedding_VD, bias_V, chunk)
        scale_to_p_M = scale_M * jnp.exp(max_M - log_sum_M)
        e_MC = e_MC.astype(h_MD.dtype)
        d_hidden += scale_to_p_M[:, None] * jnp.dot(
            e_MC, embedding_VD[chunk], preferred_element_type=jnp.float32
        )
        scaled_MD = (hidden * scale_to_p_M[:, None]).astype(h_MD.dtype)
        d_embedding.append(
            jnp.einsum("mc,md->cd", e_MC, scaled_MD, preferred_element_type=jnp.float32)
        )
        d_bias.append(jnp.einsum("mc,m->c", e_MC, scale_to_p_M, preferred_element_type=jnp.float32))
    d_embedding = add_rows(jnp.concatenate(d_embedding), ids_M, -scale_M[:, None] * hidden)
    d_bias = add_rows(jnp.concatenate(d_bias), ids_M, -scale_M)
    d_h_MD = own_rows(d_hidden, axis).astype(h_MD.dtype)
    return d_h_MD, d_embedding.astype(embedding_VD.dtype), d_bias, None, None


softmax_cross_entropy.defvjp(_softmax_forward, _softmax_backward)


def _sampled_logits(h_MD, embedding_VD, bias_V, labels_M, negatives_N, axis):
    """Returns target logits [M] and negative logits [M, N]; a negative that is the slot's target gets -1e9."""
    bias_V1 = bias_V[:, None]
    # Rows are looked up before they are rounded: the table is large, and its gradient stays float32.
    target_M = (
        jnp.einsum(
            "md,md->m",
            h_MD,
            lookup(embedding_VD, labels_M, axis).astype(h_MD.dtype),
            preferred_element_type=jnp.float32,
        )
        + lookup(bias_V1, labels_M, axis)[:, 0]
    )
    negative_MN = (
        jnp.einsum(
            "md,nd->mn",
            h_MD,
            lookup(embedding_VD, negatives_N, axis).astype(h_MD.dtype),
            preferred_element_type=jnp.float32,
        )
        + lookup(bias_V1, negatives_N, axis)[:, 0]
    )
    return target_M, jnp.where(labels_M[:, None] == negatives_N, -1e9, negative_MN)


def sampled_softmax(
    h_MD, embedding_VD, bias_V, labels_M, weights_M, negatives_N, *, num_items, axis=None
):
    """Softmax over the target and shared uniform negatives with log-Q correction (Jean et al. 2015).

    Negatives are drawn from all items, and those that hit the slot's own target do not count. Each of N then stands
    for num_items / N items, so log(num_items / N) is added to its logit: the partition function is estimated without
    bias. Arguments as in `loss_sum`; `negatives_N` int32 ids.
    """
    target_M, negative_MN = _sampled_logits(h_MD, embedding_VD, bias_V, labels_M, negatives_N, axis)
    negative_MN += math.log(num_items / negatives_N.shape[0])
    log_sum_M = jnp.logaddexp(target_M, jax.nn.logsumexp(negative_MN, axis=1))
    return jnp.sum(weights_M * (log_sum_M - target_M))


def gbce(h_MD, embedding_VD, bias_V, labels_M, weights_M, negatives_N, *, num_items, t, axis=None):
    """Generalised binary cross-entropy of gSASRec (Petrov and Macdonald 2023) with shared uniform negatives.

    With sampling rate a = N / (num_items - 1), the positive's probability is raised to
    beta = a * (t * (1 - 1/a) + 1/a): t = 0 is plain sampled BCE, with t = 1 the sigmoid of an item's score is its
    probability. The sum over target and negatives is divided by N + 1, as in the paper, so that its size does not
    grow with the number of negatives.
    """
    target_M, negative_MN = _sampled_logits(h_MD, embedding_VD, bias_V, labels_M, negatives_N, axis)
    rate = min(negatives_N.shape[0] / (num_items - 1), 1.0)
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    losses_M = -beta * jax.nn.log_sigmoid(target_M) - jax.nn.log_sigmoid(-negative_MN).sum(axis=1)
    return jnp.sum(weights_M * losses_M) / (negatives_N.shape[0] + 1)
