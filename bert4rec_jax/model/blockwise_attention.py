# SPDX-License-Identifier: Apache-2.0
"""Attention in a loop over blocks of keys, in plain JAX: memory is linear in the length of a row.

The softmax is computed online (Rabe and Staats 2021; FlashAttention, Dao et al. 2022): a running
maximum, the sum of exponentials and the weighted sum of values are updated with each block. The
backward pass recomputes the weights of each block from the log-sum-exp, so no array of all pairs of
queries and keys exists.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bert4rec_jax.model.dropout import is_kept

BLOCK = 256
# Score of a key that a query does not attend to.
MASKED = -1e9
# Segment of the keys that fill up the last block: no query has it.
_NO_SEGMENT = -1


class Mask(NamedTuple):
    """Which keys each query attends to: those of its segment in columns up to `last_visible`.

    Attributes:
      query_segments: int32[B, Q].
      key_segments: int32[B, L], not negative.
      last_visible: int32[B or 1, Q], or None if columns do not matter.
      key_columns: int32[B, L].
    """

    query_segments: jax.Array
    key_segments: jax.Array
    last_visible: jax.Array | None
    key_columns: jax.Array


# The maximum, the sum of exponentials and the weighted sum of values so far.
_Running = tuple[jax.Array, jax.Array, jax.Array]


class _Block(NamedTuple):
    """One block of C keys; with a leading dimension, all blocks."""

    k_BHCE: jax.Array
    v_BHCE: jax.Array
    segments_BC: jax.Array
    columns_BC: jax.Array
    first: jax.Array  # number of its first key


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attend(
    q_BHQE: jax.Array,
    k_BHLE: jax.Array,
    v_BHLE: jax.Array,
    mask: Mask,
    seeds_B2: jax.Array | None,
    rate: float,
    block: int = BLOCK,
) -> jax.Array:
    """Returns softmax(q k^T) v under a mask, float[B, H, Q, E], of the dtype of q.

    Products are computed in the dtype of q; scores and sums are float32.

    Args:
      q_BHQE: scaled queries, rotated if positions are rotary.
      k_BHLE: keys, likewise.
      v_BHLE: values.
      mask: the keys of each query. Every query needs at least one.
      seeds_B2: uint32, dropout seeds of the rows (see `row_seeds`), or None for no dropout.
      rate: dropout rate of the weights.
      block: number of keys per block.
    """
    return _forward(q_BHQE, k_BHLE, v_BHLE, mask, seeds_B2, rate, block)[0]


def _forward(
    q_BHQE: jax.Array,
    k_BHLE: jax.Array,
    v_BHLE: jax.Array,
    mask: Mask,
    seeds_B2: jax.Array | None,
    rate: float,
    block: int,
) -> tuple[jax.Array, tuple[Any, ...]]:
    def visit(carry: _Running, keys: _Block) -> tuple[_Running, None]:
        max_BHQ1, total_BHQ1, sum_BHQE = carry
        scores_BHQC = _scores(q_BHQE, keys, mask)
        new_max_BHQ1 = jnp.maximum(max_BHQ1, scores_BHQC.max(-1, keepdims=True))
        weights_BHQC = jnp.exp(scores_BHQC - new_max_BHQ1)
        shrink_BHQ1 = jnp.exp(max_BHQ1 - new_max_BHQ1)
        total_BHQ1 = total_BHQ1 * shrink_BHQ1 + weights_BHQC.sum(-1, keepdims=True)
        if seeds_B2 is not None:
            weights_BHQC *= _kept(weights_BHQC.shape, keys.first, k_BHLE.shape[2], seeds_B2, rate)
        read_BHQE = _product("bhqc,bhce->bhqe", weights_BHQC.astype(q_BHQE.dtype), keys.v_BHCE)
        return (new_max_BHQ1, total_BHQ1, sum_BHQE * shrink_BHQ1 + read_BHQE), None

    B, H, Q, E = q_BHQE.shape
    start = (jnp.full((B, H, Q, 1), 2 * MASKED), jnp.zeros((B, H, Q, 1)), jnp.zeros((B, H, Q, E)))
    blocks = _blocks(k_BHLE, v_BHLE, mask, block)
    (max_BHQ1, total_BHQ1, sum_BHQE), _ = jax.lax.scan(visit, start, blocks)
    y_BHQE = (sum_BHQE / total_BHQ1).astype(q_BHQE.dtype)
    lse_BHQ1 = max_BHQ1 + jnp.log(total_BHQ1)
    return y_BHQE, (q_BHQE, k_BHLE, v_BHLE, mask, seeds_B2, y_BHQE, lse_BHQ1)


def _backward(
    rate: float, block: int, residuals: tuple[Any, ...], dy_BHQE: jax.Array
) -> tuple[jax.Array | None, ...]:
    q_BHQE, k_BHLE, v_BHLE, mask, seeds_B2, y_BHQE, lse_BHQ1 = residuals
    L = k_BHLE.shape[2]
    dtype = q_BHQE.dtype
    dy_y_BHQE = dy_BHQE.astype(jnp.float32) * y_BHQE.astype(jnp.float32)
    delta_BHQ1 = dy_y_BHQE.sum(-1, keepdims=True)

    def visit(dq_BHQE: jax.Array, keys: _Block) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        weights_BHQC = jnp.exp(_scores(q_BHQE, keys, mask) - lse_BHQ1)
        d_weights_BHQC = _product("bhqe,bhce->bhqc", dy_BHQE, keys.v_BHCE)
        dropped_BHQC = weights_BHQC
        if seeds_B2 is not None:
            kept_BHQC = _kept(weights_BHQC.shape, keys.first, L, seeds_B2, rate)
            d_weights_BHQC *= kept_BHQC
            dropped_BHQC = weights_BHQC * kept_BHQC
        d_scores_BHQC = (weights_BHQC * (d_weights_BHQC - delta_BHQ1)).astype(dtype)
        dv_BHCE = _product("bhqc,bhqe->bhce", dropped_BHQC.astype(dtype), dy_BHQE)
        dk_BHCE = _product("bhqc,bhqe->bhce", d_scores_BHQC, q_BHQE)
        dq_BHQE += _product("bhqc,bhce->bhqe", d_scores_BHQC, keys.k_BHCE)
        return dq_BHQE, (dk_BHCE.astype(dtype), dv_BHCE.astype(dtype))

    blocks = _blocks(k_BHLE, v_BHLE, mask, block)
    dq_BHQE, (dk, dv) = jax.lax.scan(visit, jnp.zeros(q_BHQE.shape), blocks)
    return dq_BHQE.astype(dtype), _joined(dk, L), _joined(dv, L), None, None


attend.defvjp(_forward, _backward)


def _blocks(k_BHLE: jax.Array, v_BHLE: jax.Array, mask: Mask, size: int) -> _Block:
    """Returns all blocks of keys, stacked in a leading dimension; the last one is filled up."""
    L = k_BHLE.shape[2]
    count = -(-L // size)

    def split(x: jax.Array, axis: int, filler: int = 0) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, count * size - L)
        x = jnp.pad(x, widths, constant_values=filler)
        parts = x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(parts, axis, 0)

    return _Block(
        split(k_BHLE, 2),
        split(v_BHLE, 2),
        split(mask.key_segments, 1, _NO_SEGMENT),
        split(mask.key_columns, 1),
        jnp.arange(count, dtype=jnp.int32) * size,
    )


def _joined(blocks: jax.Array, length: int) -> jax.Array:
    """Undoes the split of [B, H, L, E] into blocks."""
    parts = jnp.moveaxis(blocks, 0, 2)
    B, H, count, size, E = parts.shape
    return parts.reshape(B, H, count * size, E)[:, :, :length]


def _scores(q_BHQE: jax.Array, keys: _Block, mask: Mask) -> jax.Array:
    """Returns float32[B, H, Q, C], `MASKED` for keys that a query does not attend to."""
    allowed_BQC = mask.query_segments[:, :, None] == keys.segments_BC[:, None, :]
    if mask.last_visible is not None:
        allowed_BQC &= mask.last_visible[:, :, None] >= keys.columns_BC[:, None, :]
    return jnp.where(allowed_BQC[:, None], _product("bhqe,bhce->bhqc", q_BHQE, keys.k_BHCE), MASKED)


def _product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _kept(
    shape: tuple[int, ...], first: jax.Array, length: int, seeds_B2: jax.Array, rate: float
) -> jax.Array:
    """Returns the dropout factors of the weights [B, H, Q, C] of keys from `first` on.

    They are the same as for dense attention, whose weights of a row are numbered in the order [H,
    Q, L].
    """
    _, H, Q, C = shape

    def index(axis: int) -> jax.Array:
        return jax.lax.broadcasted_iota(jnp.int32, (1, H, Q, C), axis)

    position = (index(1) * Q + index(2)) * length + first + index(3)
    per_row = (-1, 1, 1, 1)
    seeds = (seeds_B2[:, 0].reshape(per_row), seeds_B2[:, 1].reshape(per_row))
    return jnp.where(is_kept(position, seeds, rate), 1 / (1 - rate), 0.0)
