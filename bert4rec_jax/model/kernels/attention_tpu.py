# SPDX-License-Identifier: Apache-2.0
"""Attention inside segments as one Pallas kernel for TPUs, forward and backward.

JAX's splash attention knows no dropout, no causal mask for queries at chosen columns, and wants heads of 64 lanes and
rows of 128 columns. Rows of histories are short against on-chip memory, so here a block of queries meets all keys of
its row at once: no running maximum, and the backward pass computes the weights again from queries, keys and values,
which are all that is kept. Scores never leave the chip. The heads of a block lie side by side in the last dimension, as
the dense layers left them.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert4rec_jax.model.dropout import kept_in_kernel

MASKED = -1e9
LANES = 128
# Bytes of a block of scores in float32; some eight arrays of this size are alive.
SCORES_BYTES = 2**20
VMEM_BYTES = 100 * 2**20


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def attend(q_BQD, k_BLD, v_BLD, queries_B2Q, keys_B2L, seeds_B2, heads: int, causal: bool, rate: float,
           interpret: bool):
    """Returns softmax(q k^T) v inside segments, float[B, Q, D]; see `model.attention`.

    Args:
      q_BQD: scaled queries, heads side by side.
      k_BLD: keys.
      v_BLD: values.
      queries_B2Q: int32, segment and column of every query.
      keys_B2L: the same of every key.
      seeds_B2: uint32, of each row's dropout.
      heads: H, a divisor of D.
      causal: whether keys at later columns are hidden.
      rate: of dropout on the weights; 0 for none.
      interpret: run without a TPU, slowly.
    """
    return _forward(q_BQD, k_BLD, v_BLD, queries_B2Q, keys_B2L, seeds_B2, heads, causal, rate, interpret)[0]


def _forward(q, k, v, queries, keys, seeds, heads, causal, rate, interpret):
    plan = _Plan(q, k, heads)
    y = pl.pallas_call(
        functools.partial(_forward_kernel, plan, causal, rate),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=plan.grid, in_specs=plan.inputs(), out_specs=plan.query,
        compiler_params=plan.compiler(), cost_estimate=plan.cost(2, 4), interpret=interpret, name="attention",
    )(seeds, queries, keys, q, k, v)
    return y, (q, k, v, queries, keys, seeds)


def _backward(heads, causal, rate, interpret, residuals, dy):
    q, k, v, queries, keys, seeds = residuals
    plan = _Plan(q, k, heads)
    dq, dk, dv = pl.pallas_call(
        functools.partial(_backward_kernel, plan, causal, rate),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        grid=plan.grid, in_specs=[*plan.inputs(), plan.query], out_specs=[plan.query, plan.key, plan.key],
        scratch_shapes=[pltpu.VMEM((plan.L, plan.lanes), jnp.float32)] * 2,
        compiler_params=plan.compiler(), cost_estimate=plan.cost(5, 7), interpret=interpret, name="attention_gradient",
    )(seeds, queries, keys, q, k, v, dy)
    return dq, dk, dv, None, None, None


attend.defvjp(_forward, _backward)


class _Plan:
    """How a call is cut into blocks: rows x groups of heads x blocks of queries, the last in order."""

    def __init__(self, q, k, heads: int):
        (self.B, self.Q, self.D), self.L = q.shape, k.shape[1]
        self.heads, self.E, self.itemsize = heads, self.D // heads, q.dtype.itemsize
        # A group is a full register of lanes where heads divide it, else all heads.
        whole = self.D % LANES == 0 and (LANES % self.E == 0 or self.E % LANES == 0)
        self.lanes = max(self.E, LANES) if whole else self.D
        block = max(SCORES_BYTES // (4 * self.L) // LANES, 1) * LANES
        self.block = self.Q if block >= self.Q else block
        self.grid = (self.B, self.D // self.lanes, pl.cdiv(self.Q, self.block))
        self.query = pl.BlockSpec((1, self.block, self.lanes), lambda b, g, i: (b, i, g))
        self.key = pl.BlockSpec((1, self.L, self.lanes), lambda b, g, i: (b, 0, g))

    def inputs(self) -> list:
        return [pl.BlockSpec(memory_space=pltpu.SMEM),
                pl.BlockSpec((1, 2, self.block), lambda b, g, i: (b, 0, i)),
                pl.BlockSpec((1, 2, self.L), lambda b, g, i: (b, 0, 0)),
                self.query, self.key, self.key]

    def compiler(self):
        return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"),
                                    vmem_limit_bytes=VMEM_BYTES)

    def cost(self, products: int, arrays: int):
        moved = self.B * self.D * self.itemsize * (self.Q + self.L) * arrays // 2
        scores = self.B * self.heads * self.Q * self.L
        return pl.CostEstimate(flops=2 * products * scores * self.E, transcendentals=scores, bytes_accessed=moved)


def _weights(plan, causal, rate, head, seeds, queries, keys, q_ref, k_ref):
    """Returns softmax weights [block, L] of a head of the group, and by what dropout multiplies them (or None)."""
    lanes = slice(head * plan.E, (head + 1) * plan.E)
    scores = jax.lax.dot_general(q_ref[0, :, lanes], k_ref[0, :, lanes], (((1,), (1,)), ((), ())),
                                 preferred_element_type=jnp.float32)
    segment_Q1, column_Q1 = queries
    allowed = segment_Q1 == keys[0:1]
    if causal:
        allowed &= column_Q1 >= keys[1:2]
    scores = jnp.where(allowed, scores, MASKED)
    weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    weights = weights / weights.sum(axis=1, keepdims=True)
    if rate == 0:
        return weights, None
    number = pl.program_id(1) * (plan.lanes // plan.E) + head
    first = (number * plan.Q + pl.program_id(2) * plan.block) * plan.L
    place = first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0) * plan.L \
        + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    return weights, jnp.where(kept_in_kernel(place, seeds, rate), 1 / (1 - rate), 0.0)


def _columns(queries_ref):
    """Returns segment and column of the queries as columns [block, 1]."""
    both = queries_ref[0].T
    return both[:, 0:1], both[:, 1:2]


def _seeds(seeds_ref):
    row = pl.program_id(0)
    return seeds_ref[row, 0], seeds_ref[row, 1]


def _forward_kernel(plan, causal, rate, seeds_ref, queries_ref, keys_ref, q_ref, k_ref, v_ref, y_ref):
    queries, keys = _columns(queries_ref), keys_ref[0]
    for head in range(plan.lanes // plan.E):
        lanes = slice(head * plan.E, (head + 1) * plan.E)
        weights, kept = _weights(plan, causal, rate, head, _seeds(seeds_ref), queries, keys, q_ref, k_ref)
        weights = weights if kept is None else weights * kept
        y_ref[0, :, lanes] = jnp.dot(weights.astype(v_ref.dtype), v_ref[0, :, lanes],
                                     preferred_element_type=jnp.float32).astype(y_ref.dtype)


def _backward_kernel(plan, causal, rate, seeds_ref, queries_ref, keys_ref, q_ref, k_ref, v_ref, dy_ref,
                     dq_ref, dk_ref, dv_ref, dk_sum, dv_sum):
    block = pl.program_id(2)

    @pl.when(block == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    queries, keys = _columns(queries_ref), keys_ref[0]
    inside = None
    if plan.Q % plan.block:  # the last block reads beyond the queries
        rows = jax.lax.broadcasted_iota(jnp.int32, (plan.block, 1), 0)
        inside = block * plan.block + rows < plan.Q
    for head in range(plan.lanes // plan.E):
        lanes = slice(head * plan.E, (head + 1) * plan.E)
        dy, q = dy_ref[0, :, lanes], q_ref[0, :, lanes]
        if inside is not None:
            dy, q = jnp.where(inside, dy, 0), jnp.where(inside, q, 0)
        weights, kept = _weights(plan, causal, rate, head, _seeds(seeds_ref), queries, keys, q_ref, k_ref)
        if inside is not None:
            weights = jnp.where(inside, weights, 0)
        d_weights = jax.lax.dot_general(dy, v_ref[0, :, lanes], (((1,), (1,)), ((), ())),
                                        preferred_element_type=jnp.float32)
        if kept is not None:
            d_weights = d_weights * kept
        d_scores = weights * (d_weights - (weights * d_weights).sum(axis=1, keepdims=True))
        d_scores = d_scores.astype(q.dtype)
        weights = (weights if kept is None else weights * kept).astype(q.dtype)
        dq_ref[0, :, lanes] = jnp.dot(d_scores, k_ref[0, :, lanes],
                                      preferred_element_type=jnp.float32).astype(dq_ref.dtype)
        over_queries = (((0,), (0,)), ((), ()))
        dk_sum[:, lanes] += jax.lax.dot_general(d_scores, q, over_queries, preferred_element_type=jnp.float32)
        dv_sum[:, lanes] += jax.lax.dot_general(weights, dy, over_queries, preferred_element_type=jnp.float32)

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        dk_ref[0] = dk_sum[...].astype(dk_ref.dtype)
        dv_ref[0] = dv_sum[...].astype(dv_ref.dtype)
