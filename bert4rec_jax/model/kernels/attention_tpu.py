# SPDX-License-Identifier: Apache-2.0
"""Attention inside segments as one Pallas kernel for TPUs, forward and backward.

JAX's splash attention lacks dropout and a causal mask for queries at chosen columns. It requires
heads of 64 lanes and rows of 128 columns. Here a block of queries passes over its row's keys, in
chunks with a running maximum where the row is long; the log-sum-exp is kept, and the backward pass
computes the weights again. Scores never leave the chip, and what is compiled does not grow with the
row. The heads of a block lie side by side in the last dimension, as the dense layers left them, and
keys and values in one array; rotary positions are turned here too, so that nothing has to be
sliced, turned or copied on the way.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert4rec_jax.model.dropout import is_kept

MASKED = -1e9
LANES = 128
# Keys that are met at once, and bytes of the scores of a block of queries with them in float32;
# some eight arrays of this size are alive. Both bound what the compiler has to lay out, instruction
# by instruction.
CHUNK = 512
SCORES_BYTES = 2**18
VMEM_BYTES = 100 * 2**20
# Name of the forward values that the backward pass needs, for rematerialization of the rest.
KEPT = "attention"


class KernelOptions(NamedTuple):
    """Static options of a kernel.

    Attributes:
      heads: H, a divisor of D.
      causal: whether keys in columns after the last visible one are hidden; otherwise columns are
        not read.
      rate: dropout rate of the weights; 0 for no dropout.
      length: number of keys of a row without filler.
      every_column: whether there is one query per column, in order. If so, the kernel rotates the
        queries.
      interpret: whether to run without a TPU, slowly.
    """

    heads: int
    causal: bool
    rate: float
    length: int
    every_column: bool
    interpret: bool


def attend(
    q_BQD: jax.Array,
    kv_BLD2: jax.Array,
    queries_B2Q: jax.Array,
    keys_B2L: jax.Array,
    seeds_B2: jax.Array,
    frequencies: np.ndarray | None,
    options: KernelOptions,
) -> jax.Array:
    """Returns softmax(q k^T) v inside segments, float[B, Q, D]; see `model.attention`.

    Args:
      q_BQD: scaled queries; the heads are consecutive parts of the last dimension.
      kv_BLD2: float[B, L, 2 D], keys followed by values.
      queries_B2Q: int32, segment of every query and the last column that it attends to.
      keys_B2L: int32, segment and column of every key; columns count from 0.
      seeds_B2: uint32, dropout seeds of the rows.
      frequencies: [E / 2], angle per column by which keys are rotated and, with `every_column`,
        queries. None if positions are not rotary.
      options: static options.
    """
    length = kv_BLD2.shape[1]
    missing = -length % LANES
    if missing and length > CHUNK:  # chunks are whole registers
        kv_BLD2 = jnp.pad(kv_BLD2, ((0, 0), (0, missing), (0, 0)))
        keys_B2L = jnp.pad(keys_B2L, ((0, 0), (0, 0), (0, missing)), constant_values=-1)
    rotary = None
    if frequencies is not None:
        plan = _Plan(options, q_BQD, kv_BLD2, None)
        rows = max(plan.L, pl.cdiv(plan.Q, plan.block) * plan.block)
        angle = jnp.asarray(np.arange(rows)[:, None] * frequencies, jnp.float32)
        cos = jnp.cos(angle)
        sin = jnp.sin(angle)
        rotary = jnp.concatenate([cos, cos] * plan.heads + [-sin, sin] * plan.heads, axis=1)
    return _attend(q_BQD, kv_BLD2, queries_B2Q, keys_B2L, seeds_B2, rotary, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(
    q: jax.Array,
    kv: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    seeds: jax.Array,
    rotary: jax.Array | None,
    options: KernelOptions,
) -> jax.Array:
    return _forward(q, kv, queries, keys, seeds, rotary, options)[0]


def _forward(
    q: jax.Array,
    kv: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    seeds: jax.Array,
    rotary: jax.Array | None,
    options: KernelOptions,
) -> tuple[jax.Array, tuple[Any, ...]]:
    plan = _Plan(options, q, kv, rotary)
    y, lse = pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), plan.lse_shape()],
        grid=plan.grid,
        in_specs=plan.inputs(),
        out_specs=[plan.query, plan.lse],
        scratch_shapes=plan.scratch(q.dtype),
        compiler_params=plan.compiler("parallel"),
        cost_estimate=plan.cost(2, 4),
        interpret=options.interpret,
        name="attention",
    )(*plan.arguments(q, kv, queries, keys, seeds, rotary))
    y, lse = (checkpoint_name(x, KEPT) for x in (y, lse))
    return y, (q, kv, queries, keys, seeds, rotary, y, lse)


def _backward(
    options: KernelOptions, residuals: tuple[Any, ...], dy: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, kv, queries, keys, seeds, rotary, y, lse = residuals
    plan = _Plan(options, q, kv, rotary)
    dq, dkv = pl.pallas_call(
        functools.partial(_backward_kernel, plan),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, kv)],
        grid=plan.grid,
        in_specs=[*plan.inputs(), plan.query, plan.query, plan.lse],
        out_specs=[plan.query, pl.BlockSpec((1, plan.L, 2 * plan.D), lambda b, g, i: (b, 0, 0))],
        scratch_shapes=[
            pltpu.VMEM((rows, plan.lanes), jnp.float32) for rows in (plan.block, plan.L, plan.L)
        ]
        + plan.scratch(q.dtype),
        compiler_params=plan.compiler("arbitrary"),
        cost_estimate=plan.cost(5, 8),
        interpret=options.interpret,
        name="attention_gradient",
    )(*plan.arguments(q, kv, queries, keys, seeds, rotary), y, dy, lse)
    return dq, dkv, None, None, None, None


_attend.defvjp(_forward, _backward)


class _Plan:
    """The grid of a call: rows x groups of heads x blocks of queries, the last one in order."""

    def __init__(
        self, options: KernelOptions, q: jax.Array, kv: jax.Array, rotary: jax.Array | None
    ) -> None:
        (self.B, self.Q, self.D), self.L, self.options = q.shape, kv.shape[1], options
        self.E, self.itemsize = self.D // options.heads, q.dtype.itemsize
        # A group is a full register of lanes where heads divide it, else all heads.
        whole = self.D % LANES == 0 and (LANES % self.E == 0 or self.E % LANES == 0)
        self.lanes = max(self.E, LANES) if whole else self.D
        self.heads, self.groups = self.lanes // self.E, self.D // self.lanes
        fitting = [size for size in range(LANES, CHUNK + 1, LANES) if self.L % size == 0]
        self.chunk = fitting[-1] if self.L > CHUNK and fitting else self.L
        block = max(SCORES_BYTES // (4 * self.chunk) // LANES, 1) * LANES
        self.block = self.Q if block >= self.Q else block
        self.grid = (self.B, self.groups, pl.cdiv(self.Q, self.block))
        self.query = pl.BlockSpec((1, self.block, self.lanes), lambda b, g, i: (b, i, g))
        self.lse = pl.BlockSpec((1, 1, self.heads, self.block), lambda b, g, i: (b, g, 0, i))
        # Keys and values in one block where there is one group, else in two of the same array.
        if self.groups == 1:
            self.kv = [pl.BlockSpec((1, self.L, 2 * self.D), lambda b, g, i: (b, 0, 0))]
        else:
            self.kv = [
                pl.BlockSpec((1, self.L, self.lanes), lambda b, g, i: (b, 0, g)),
                pl.BlockSpec((1, self.L, self.lanes), lambda b, g, i: (b, 0, self.groups + g)),
            ]
        self.rotary = rotary

    def arguments(
        self,
        q: jax.Array,
        kv: jax.Array,
        queries: jax.Array,
        keys: jax.Array,
        seeds: jax.Array,
        rotary: jax.Array | None,
    ) -> list:
        """Returns what `inputs` describes."""
        return [
            seeds,
            queries,
            keys,
            *([] if rotary is None else [rotary]),
            q,
            *[kv] * len(self.kv),
        ]

    def inputs(self) -> list:
        specs = [
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((1, 2, self.block), lambda b, g, i: (b, 0, i)),
            pl.BlockSpec((1, 2, self.L), lambda b, g, i: (b, 0, 0)),
        ]
        if self.rotary is not None:
            specs.append(pl.BlockSpec(self.rotary.shape, lambda b, g, i: (0, 0)))
        return [*specs, self.query, *self.kv]

    def scratch(self, dtype: Any) -> list:
        """Returns scratch memory for the rotated queries of a block and the keys of a row."""
        if self.rotary is None:
            return []
        return [pltpu.VMEM((rows, self.lanes), dtype) for rows in (self.block, self.L)]

    def lse_shape(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.B, self.groups, self.heads, self.Q), jnp.float32)

    def compiler(self, groups: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", groups, "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        )

    def cost(self, products: int, arrays: int) -> pl.CostEstimate:
        moved = self.B * self.D * self.itemsize * (self.Q + self.L) * arrays // 2
        moved += 4 * self.B * self.groups * self.heads * self.Q  # log-sum-exp
        moved += 0 if self.rotary is None else 4 * self.rotary.size
        scores = self.B * self.groups * self.heads * self.Q * self.L
        return pl.CostEstimate(
            flops=2 * products * scores * self.E, transcendentals=scores, bytes_accessed=moved
        )


class _Block:
    """The inputs of a kernel's call, and what both kernels do with them."""

    def __init__(self, plan: _Plan, inputs: tuple[Any, ...], scratch: list[Any]) -> None:
        self.plan, (seeds, queries, self.keys), rest = plan, inputs[:3], list(inputs[3:])
        # Outside of loops, because the interpreter does not provide the program id inside.
        row, self.group, self.number = (pl.program_id(axis) for axis in range(3))
        self.seeds = seeds[row, 0], seeds[row, 1]
        columns = queries[0].T
        self.segment_Q1, self.last_seen_Q1 = columns[:, 0:1], columns[:, 1:2]
        self.inside = None
        if plan.Q % plan.block:  # the last block reads beyond the queries
            rows = jax.lax.broadcasted_iota(jnp.int32, (plan.block, 1), 0)
            self.inside = self.number * plan.block + rows < plan.Q
        self.rotary: Any = None if plan.rotary is None else rest.pop(0)
        self.q, *self.kv = rest
        if self.rotary is not None:
            self.rotated_queries, self.rotated_keys = scratch

            @self.once(0)
            def _(rows: Any) -> None:
                self.rotated_keys[rows] = _apply_rotary(
                    plan, self.kv[0][0, rows, : plan.lanes], self.rotary[rows]
                )

            if plan.options.every_column:
                self.rotated_queries[...] = _apply_rotary(plan, self.q[0], self.query_rotary())
            else:
                self.rotated_queries[...] = self.q[0]

    def once(self, number: int) -> Callable[[Callable[[Any], None]], None]:
        """Runs a function for every chunk of a row's keys, once, at block `number` of queries."""

        def decorated(visit: Callable[[Any], None]) -> None:
            pl.when(self.number == number)(
                lambda: self.chunks(lambda _, rows, carry: visit(rows), None)
            )

        return decorated

    def query_rotary(self) -> jax.Array:
        size = self.plan.block
        if self.plan.grid[2] == 1:  # any size; of several blocks it is a multiple of 128
            return self.rotary[:size]
        return self.rotary[pl.ds(pl.multiple_of(self.number * size, size), size)]

    def inner(self, x: jax.Array) -> jax.Array:
        """Returns rows of a block of queries, zero beyond the last query."""
        return x if self.inside is None else jnp.where(self.inside, x, jnp.zeros_like(x))

    def lanes(self, head: int, first: int = 0) -> slice:
        return slice(first + head * self.plan.E, first + (head + 1) * self.plan.E)

    def query(self, head: int) -> jax.Array:
        """Returns queries of a head of the group, [block, E]."""
        lanes = self.lanes(head)
        return self.inner(
            self.q[0, :, lanes] if self.rotary is None else self.rotated_queries[:, lanes]
        )

    def key(self, head: int, rows: Any) -> jax.Array:
        """Returns keys of a head in `rows`, [C, E]."""
        lanes = self.lanes(head)
        return self.kv[0][0, rows, lanes] if self.rotary is None else self.rotated_keys[rows, lanes]

    def value(self, head: int, rows: Any) -> jax.Array:
        """Returns values of a head in `rows`, [C, E]."""
        first = self.plan.lanes if len(self.kv) == 1 else 0
        return self.kv[-1][0, rows, self.lanes(head, first)]

    def chunks(self, visit: Callable[[Any, Any, Any], Any], carry: Any) -> Any:
        """Returns visit(first key, its chunk's rows, carry) after all chunks of keys."""
        plan = self.plan
        if plan.chunk == plan.L:
            return visit(0, slice(0, plan.L), carry)

        def one(number: jax.Array, carry: Any) -> Any:
            first = pl.multiple_of(number * plan.chunk, plan.chunk)
            return visit(first, pl.ds(first, plan.chunk), carry)

        return jax.lax.fori_loop(0, plan.L // plan.chunk, one, carry)

    def scores(self, q: jax.Array, k: jax.Array, rows: Any) -> jax.Array:
        """Returns masked scores [block, C] in float32."""
        scores = jax.lax.dot_general(
            q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        allowed = self.segment_Q1 == self.keys[0, 0:1, rows]
        if self.plan.options.causal:
            allowed &= self.last_seen_Q1 >= self.keys[0, 1:2, rows]
        return jnp.where(allowed, scores, MASKED)

    def kept(self, head: int, first: Any) -> jax.Array | None:
        """Returns the dropout factors of the weights [block, C] of keys from `first` on."""
        plan, rate, length = self.plan, self.plan.options.rate, self.plan.options.length
        if rate == 0:
            return None
        number = self.group * plan.heads + head
        start = (number * plan.Q + self.number * plan.block) * length + first
        shape = (plan.block, plan.chunk)
        place = (
            start
            + jax.lax.broadcasted_iota(jnp.int32, shape, 0) * length
            + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        )
        return jnp.where(is_kept(place, self.seeds, rate), 1 / (1 - rate), 0.0)


def _apply_rotary(plan: _Plan, x: jax.Array, rotary: jax.Array, inverse: bool = False) -> jax.Array:
    """Rotates x[n, lanes] in the precision of x; with `inverse`, gradients back in float32.

    Pairs are (e, e + E/2) of each head. What exchanges them is a product with a matrix of zeros and
    ones, which is exact, and which the compiler does well for any number of lanes.
    """
    lanes, half = plan.lanes, plan.E // 2
    cos, sin = rotary[:, :lanes], rotary[:, lanes:]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (lanes, lanes), axis) for axis in (0, 1))
    exchange = jnp.where(column == jnp.where(row % plan.E < half, row + half, row - half), 1.0, 0.0)
    product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    if inverse:
        return x * cos + product(x * sin, exchange, precision=jax.lax.Precision.HIGHEST)
    exact = None if x.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    return (x * cos + product(x, exchange.astype(x.dtype), precision=exact) * sin).astype(x.dtype)


def _forward_kernel(plan: _Plan, *refs: Any) -> None:
    inputs = len(plan.inputs())
    y_ref, lse_ref, *scratch = refs[inputs:]
    block = _Block(plan, refs[:inputs], scratch)
    for head in range(plan.heads):
        q = block.query(head)

        def visit(
            first: Any, rows: Any, carry: Any, head: int = head, q: jax.Array = q
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            top, total, sum_QE = carry
            scores = block.scores(q, block.key(head, rows), rows)
            new_top = jnp.maximum(top, scores.max(axis=1, keepdims=True))
            weights, before = jnp.exp(scores - new_top), jnp.exp(top - new_top)
            total = total * before + weights.sum(axis=1, keepdims=True)
            kept = block.kept(head, first)
            weights = weights if kept is None else weights * kept
            value = block.value(head, rows)
            read = jnp.dot(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
            return new_top, total, sum_QE * before + read

        start = (
            jnp.full((plan.block, 1), 2 * MASKED),
            jnp.zeros((plan.block, 1)),
            jnp.zeros((plan.block, plan.E)),
        )
        top, total, sum_QE = block.chunks(visit, start)
        y_ref[0, :, block.lanes(head)] = (sum_QE / total).astype(y_ref.dtype)
        lse_ref[0, 0, head : head + 1, :] = (top + jnp.log(total)).T


class _QuerySide(NamedTuple):
    """Arrays of one head and block of queries that the backward pass needs for every chunk.

    Attributes:
      head: number of the head in its group.
      lanes: the head's columns.
      q: [block, E], queries.
      dy: [block, E], gradient of the output.
      delta: float32[block, 1], sum over E of dy * y.
      lse: float32[block, 1], log-sum-exp of the scores.
    """

    head: int
    lanes: slice
    q: jax.Array
    dy: jax.Array
    delta: jax.Array
    lse: jax.Array


def _backward_kernel(plan: _Plan, *refs: Any) -> None:
    inputs = len(plan.inputs())
    y_ref, dy_ref, lse_ref, dq_ref, dkv_ref, dq_sum, dk_sum, dv_sum, *scratch = refs[inputs:]
    block = _Block(plan, refs[:inputs], scratch)

    @block.once(0)
    def _(rows: Any) -> None:
        dk_sum[rows] = jnp.zeros((plan.chunk, plan.lanes))
        dv_sum[rows] = jnp.zeros((plan.chunk, plan.lanes))

    for head in range(plan.heads):
        lanes, q = block.lanes(head), block.query(head)
        dy, y = block.inner(dy_ref[0, :, lanes]), block.inner(y_ref[0, :, lanes])
        delta = (dy.astype(jnp.float32) * y.astype(jnp.float32)).sum(axis=1, keepdims=True)
        lse = lse_ref[0, 0, head : head + 1, :].T
        query_side = _QuerySide(head, lanes, q, dy, delta, lse)

        def visit(first: Any, rows: Any, dq: jax.Array, side: _QuerySide = query_side) -> jax.Array:
            head, lanes, q, dy, delta, lse = side
            k = block.key(head, rows)
            weights = block.inner(jnp.exp(block.scores(q, k, rows) - lse))
            d_weights = jax.lax.dot_general(
                dy,
                block.value(head, rows),
                (((1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            kept = block.kept(head, first)
            if kept is not None:
                d_weights = d_weights * kept
            d_scores = (weights * (d_weights - delta)).astype(q.dtype)
            weights = (weights if kept is None else weights * kept).astype(q.dtype)
            over_queries = (((0,), (0,)), ((), ()))
            dk_sum[rows, lanes] += jax.lax.dot_general(
                d_scores, q, over_queries, preferred_element_type=jnp.float32
            )
            dv_sum[rows, lanes] += jax.lax.dot_general(
                weights, dy, over_queries, preferred_element_type=jnp.float32
            )
            return dq + jnp.dot(d_scores, k, preferred_element_type=jnp.float32)

        dq_sum[:, lanes] = block.chunks(visit, jnp.zeros((plan.block, plan.E)))
    dq = dq_sum[...]
    if block.rotary is not None and plan.options.every_column:
        dq = _apply_rotary(plan, dq, block.query_rotary(), inverse=True)
    dq_ref[0] = dq.astype(dq_ref.dtype)

    @block.once(plan.grid[2] - 1)
    def _(rows: Any) -> None:
        dk = dk_sum[rows]
        if block.rotary is not None:
            dk = _apply_rotary(plan, dk, block.rotary[rows], inverse=True)
        # All groups of a row leave together, so that keys' and values' gradients are one array
        # again.
        for first, gradient in ((0, dk), (plan.D, dv_sum[rows])):
            lanes: Any = slice(first, first + plan.lanes)
            if plan.groups > 1:
                lanes = pl.ds(pl.multiple_of(first + block.group * plan.lanes, LANES), plan.lanes)
            dkv_ref[0, rows, lanes] = gradient.astype(dkv_ref.dtype)
