# SPDX-License-Identifier: Apache-2.0
"""Attention inside segments as Pallas kernels for NVIDIA GPUs, through Triton, forward and backward.

JAX's own `mha` kernel wants as many queries as keys and knows no dropout, and cuDNN needs its library even to be
lowered. As there, a block of queries passes over blocks of keys with a running maximum, the log-sum-exp is kept, and
the backward pass computes the weights again, once for the queries and once for keys and values. Scores never leave
the chip.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bert4rec_jax.model.dropout import kept_in_kernel

MASKED = -1e9


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def attend(
    q_BQD,
    k_BLD,
    v_BLD,
    queries_B2Q,
    keys_B2L,
    seeds_B2,
    heads: int,
    causal: bool,
    rate: float,
    interpret: bool,
):
    """Returns softmax(q k^T) v inside segments, float[B, Q, D]; arguments as in `kernels.attention_tpu.attend`.

    Keys and values are two arrays, and queries and keys are turned already where positions are rotary.
    """
    return _forward(
        q_BQD, k_BLD, v_BLD, queries_B2Q, keys_B2L, seeds_B2, heads, causal, rate, interpret
    )[0]


def _forward(q, k, v, queries, keys, seeds, heads, causal, rate, interpret):
    plan = _Plan(q, k, heads, causal, rate)
    y, lse = pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        grid=(pl.cdiv(plan.Q, plan.block), plan.B, plan.H),
        in_specs=plan.inputs(over_queries=True),
        out_specs=[
            plan.part(True),
            pl.BlockSpec((None, None, plan.block), lambda i, b, h: (b, h, i)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((plan.B, plan.Q, plan.H, plan.E), q.dtype),
            jax.ShapeDtypeStruct((plan.B, plan.H, plan.Q), jnp.float32),
        ],
        compiler_params=plan.compiler(),
        cost_estimate=plan.cost(2, 4),
        interpret=interpret,
        name="attention",
    )(seeds, queries, keys, *map(plan.split, (q, k, v)))
    y = y.reshape(q.shape)
    return y, (q, k, v, queries, keys, seeds, y, lse)


def _backward(heads, causal, rate, interpret, residuals, dy):
    q, k, v, queries, keys, seeds, y, lse = residuals
    plan = _Plan(q, k, heads, causal, rate)
    product = dy.astype(jnp.float32) * y.astype(jnp.float32)
    delta = plan.split(product).sum(-1).transpose(0, 2, 1)
    arguments = (seeds, queries, keys, *map(plan.split, (q, k, v, dy)), lse, delta)
    call = functools.partial(pl.pallas_call, compiler_params=plan.compiler(), interpret=interpret)
    shapes = [
        jax.ShapeDtypeStruct((plan.B, x.shape[1], plan.H, plan.E), x.dtype) for x in (q, k, v)
    ]
    row = pl.BlockSpec((None, None, plan.block), lambda i, b, h: (b, h, i))
    whole = pl.BlockSpec((None, None, plan.Q), lambda i, b, h: (b, h, 0))
    dq = call(
        functools.partial(_query_gradient_kernel, plan),
        grid=(pl.cdiv(plan.Q, plan.block), plan.B, plan.H),
        in_specs=[*plan.inputs(over_queries=True), plan.part(True), row, row],
        out_specs=plan.part(True),
        out_shape=shapes[0],
        cost_estimate=plan.cost(3, 5),
        name="attention_gradient_q",
    )(*arguments)
    dk, dv = call(
        functools.partial(_key_gradient_kernel, plan),
        grid=(pl.cdiv(plan.L, plan.block), plan.B, plan.H),
        in_specs=[*plan.inputs(over_queries=False), plan.part(False, plan.Q), whole, whole],
        out_specs=[plan.part(True), plan.part(True)],
        out_shape=shapes[1:],
        cost_estimate=plan.cost(4, 6),
        name="attention_gradient_kv",
    )(*arguments)
    return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape), None, None, None


attend.defvjp(_forward, _backward)


class _Plan:
    """How a call is cut into blocks; `block` rows of queries or keys, one head."""

    def __init__(self, q, k, heads: int, causal: bool, rate: float):
        (self.B, self.Q, D), self.L = q.shape, k.shape[1]
        self.H, self.E, self.causal, self.rate = heads, D // heads, causal, rate
        self.itemsize = q.dtype.itemsize
        # Triton multiplies blocks whose sides are powers of two, and at least 16.
        self.width = max(pl.next_power_of_2(self.E), 16)
        self.block = 64 if self.width * self.itemsize <= 128 else 32

    def split(self, x):
        """Returns [B, L, D] as [B, L, H, E]."""
        return x.reshape(*x.shape[:2], self.H, self.E)

    def part(self, blocks: bool, rows: int = 0):
        """Returns the spec of one head: a block of the grid's first dimension, or all `rows`."""
        if blocks:
            return pl.BlockSpec((None, self.block, None, self.width), lambda i, b, h: (b, i, h, 0))
        return pl.BlockSpec((None, rows, None, self.width), lambda i, b, h: (b, 0, h, 0))

    def inputs(self, over_queries: bool) -> list:
        keys, queries = self.part(not over_queries, self.L), self.part(over_queries, self.Q)
        return [
            pl.BlockSpec((None, 2), lambda i, b, h: (b, 0)),
            pl.BlockSpec((None, 2, self.Q), lambda i, b, h: (b, 0, 0)),
            pl.BlockSpec((None, 2, self.L), lambda i, b, h: (b, 0, 0)),
            queries,
            keys,
            keys,
        ]

    def compiler(self):
        return plgpu.CompilerParams(num_warps=4, num_stages=2)

    def cost(self, products: int, arrays: int):
        scores = self.B * self.H * self.Q * self.L
        moved = self.B * self.H * self.E * self.itemsize * (self.Q + self.L) * arrays // 2
        return pl.CostEstimate(
            flops=2 * products * scores * self.E, transcendentals=scores, bytes_accessed=moved
        )

    def load(self, ref, start, local, length: int):
        """Returns rows `start`.. of one head, [block, width], zero beyond the array's end.

        Args:
          ref: a block (then `local` is 0) or all rows (then it is `start`).
          start: number of the first row in the array.
          local: its number in `ref`.
          length: rows of the array.
        """
        rows = start + jnp.arange(self.block)
        mask = (rows < length)[:, None] & (jnp.arange(self.width) < self.E)[None, :]
        return plgpu.load(ref.at[pl.ds(local, self.block), :], mask=mask, other=0.0)

    def store(self, ref, start, value, length: int):
        rows = start + jnp.arange(self.block)
        mask = (rows < length)[:, None] & (jnp.arange(self.width) < self.E)[None, :]
        plgpu.store(ref, value.astype(ref.dtype), mask=mask)

    def vector(self, ref, start, local, length: int, other=0.0, of=None):
        """Returns a block of a vector, or of row `of` of a matrix; `other` beyond the array's end."""
        mask = start + jnp.arange(self.block) < length
        index = pl.ds(local, self.block)
        return plgpu.load(
            ref.at[index] if of is None else ref.at[jnp.int32(of), index], mask=mask, other=other
        )

    def scores(self, q, k, query, key, queries_ref, keys_ref):
        """Returns masked scores [block of queries, block of keys] in float32; `query` and `key` number the first."""
        scores = _dot(q, k.T)
        allowed = (
            self.vector(queries_ref, query, query, self.Q, -2, of=0)[:, None]
            == self.vector(keys_ref, key, key, self.L, -1, of=0)[None, :]
        )
        if self.causal:
            allowed &= (
                self.vector(queries_ref, query, query, self.Q, 0, of=1)[:, None]
                >= self.vector(keys_ref, key, key, self.L, 0, of=1)[None, :]
            )
        # A key beyond the array's end counts for nothing, even where a query sees no key at all.
        inside = key + jnp.arange(self.block) < self.L
        return jnp.where(inside[None, :], jnp.where(allowed, scores, MASKED), -jnp.inf)

    def draws(self, seeds_ref):
        """Returns what `kept` draws from. Outside of loops: the interpreter knows no program id inside."""
        return pl.program_id(2), seeds_ref[0], seeds_ref[1]

    def kept(self, query, key, draws):
        """Returns by what dropout multiplies weights of a block."""
        head, *seeds = draws
        rows, columns = query + jnp.arange(self.block), key + jnp.arange(self.block)
        place = (head * self.Q + rows[:, None]) * self.L + columns[None, :]
        return jnp.where(kept_in_kernel(place, seeds, self.rate), 1 / (1 - self.rate), 0.0)


def _dot(a, b):
    return plgpu.dot(a, b, precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)


def _forward_kernel(plan, seeds_ref, queries_ref, keys_ref, q_ref, k_ref, v_ref, y_ref, lse_ref):
    query = pl.program_id(0) * plan.block
    q, draws = plan.load(q_ref, query, 0, plan.Q), plan.draws(seeds_ref)

    def visit(number, carry):
        y, top, total = carry
        key = number * plan.block
        k, v = plan.load(k_ref, key, key, plan.L), plan.load(v_ref, key, key, plan.L)
        scores = plan.scores(q, k, query, key, queries_ref, keys_ref)
        new_top = jnp.maximum(top, scores.max(axis=1))
        weights = jnp.exp(scores - new_top[:, None])
        shrink = jnp.exp(top - new_top)
        total = total * shrink + weights.sum(axis=1)
        if plan.rate:
            weights *= plan.kept(query, key, draws)
        return y * shrink[:, None] + _dot(weights.astype(v.dtype), v), new_top, total

    start = (jnp.zeros((plan.block, plan.width)), jnp.full(plan.block, -2e9), jnp.zeros(plan.block))
    y, top, total = jax.lax.fori_loop(0, pl.cdiv(plan.L, plan.block), visit, start)
    plan.store(y_ref, query, y / total[:, None], plan.Q)
    plgpu.store(lse_ref, top + jnp.log(total), mask=query + jnp.arange(plan.block) < plan.Q)


def _block_gradient(plan, query, key, q, k, v, dy, lse, delta, draws, queries_ref, keys_ref):
    """Returns weights after dropout and the gradient of scores, both [queries, keys] in float32."""
    weights = jnp.exp(plan.scores(q, k, query, key, queries_ref, keys_ref) - lse[:, None])
    d_weights = _dot(dy, v.T)
    if plan.rate:
        kept = plan.kept(query, key, draws)
        return weights * kept, weights * (d_weights * kept - delta[:, None])
    return weights, weights * (d_weights - delta[:, None])


def _query_gradient_kernel(
    plan, seeds_ref, queries_ref, keys_ref, q_ref, k_ref, v_ref, dy_ref, lse_ref, delta_ref, dq_ref
):
    query = pl.program_id(0) * plan.block
    q, dy = plan.load(q_ref, query, 0, plan.Q), plan.load(dy_ref, query, 0, plan.Q)
    lse, delta = plan.vector(lse_ref, query, 0, plan.Q), plan.vector(delta_ref, query, 0, plan.Q)
    draws = plan.draws(seeds_ref)

    def visit(number, dq):
        key = number * plan.block
        k, v = plan.load(k_ref, key, key, plan.L), plan.load(v_ref, key, key, plan.L)
        _, d_scores = _block_gradient(
            plan, query, key, q, k, v, dy, lse, delta, draws, queries_ref, keys_ref
        )
        return dq + _dot(d_scores.astype(k.dtype), k)

    dq = jax.lax.fori_loop(
        0, pl.cdiv(plan.L, plan.block), visit, jnp.zeros((plan.block, plan.width))
    )
    plan.store(dq_ref, query, dq, plan.Q)


def _key_gradient_kernel(
    plan,
    seeds_ref,
    queries_ref,
    keys_ref,
    q_ref,
    k_ref,
    v_ref,
    dy_ref,
    lse_ref,
    delta_ref,
    dk_ref,
    dv_ref,
):
    key = pl.program_id(0) * plan.block
    k, v = plan.load(k_ref, key, 0, plan.L), plan.load(v_ref, key, 0, plan.L)
    draws = plan.draws(seeds_ref)

    def visit(number, carry):
        dk, dv = carry
        query = number * plan.block
        q, dy = plan.load(q_ref, query, query, plan.Q), plan.load(dy_ref, query, query, plan.Q)
        # Beyond the last query nothing has weight.
        lse = plan.vector(lse_ref, query, query, plan.Q, jnp.inf)
        delta = plan.vector(delta_ref, query, query, plan.Q)
        weights, d_scores = _block_gradient(
            plan, query, key, q, k, v, dy, lse, delta, draws, queries_ref, keys_ref
        )
        return dk + _dot(d_scores.astype(q.dtype).T, q), dv + _dot(weights.astype(dy.dtype).T, dy)

    zero = jnp.zeros((plan.block, plan.width))
    dk, dv = jax.lax.fori_loop(0, pl.cdiv(plan.Q, plan.block), visit, (zero, zero))
    plan.store(dk_ref, key, dk, plan.L)
    plan.store(dv_ref, key, dv, plan.L)
