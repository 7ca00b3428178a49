# SPDX-License-Identifier: Apache-2.0
"""The exact softmax over a catalogue as Pallas kernels for NVIDIA GPUs: logits live on the chip, a tile at a time."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

TILE = 64


def log_sum_exp(
    h_MD: jax.Array, embedding_VD: jax.Array, bias_V: jax.Array, interpret: bool
) -> jax.Array:
    """Returns float32[M], the log-sum-exp over the catalogue; as in `softmax_tpu`."""
    plan = _Plan(h_MD, embedding_VD)
    return pl.pallas_call(
        functools.partial(_lse_kernel, plan),
        grid=(pl.cdiv(plan.M, plan.tile),),
        in_specs=[plan.block(), plan.all(plan.V), plan.vector(plan.V)],
        out_specs=pl.BlockSpec((plan.tile,), lambda i: (i,)),
        out_shape=jax.ShapeDtypeStruct((plan.M,), jnp.float32),
        compiler_params=plan.compiler(),
        interpret=interpret,
        name="softmax",
        cost_estimate=plan.cost(1),
    )(h_MD, embedding_VD.astype(h_MD.dtype), bias_V)


def gradients(
    h_MD: jax.Array,
    embedding_VD: jax.Array,
    bias_V: jax.Array,
    lse_M: jax.Array,
    scale_M: jax.Array,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns gradients float32 [M, D], [V, D] and [V] of sum(scale * log_sum_exp); as in `softmax_tpu`.

    Blocks of a GPU cannot add to one array in turn, so one kernel walks the catalogue for each block of slots and
    another the slots for each block of the catalogue.
    """
    plan = _Plan(h_MD, embedding_VD)
    arguments = (h_MD, embedding_VD.astype(h_MD.dtype), bias_V, lse_M, scale_M)
    d_h = pl.pallas_call(
        functools.partial(_hidden_kernel, plan),
        grid=(pl.cdiv(plan.M, plan.tile),),
        in_specs=[
            plan.block(),
            plan.all(plan.V),
            plan.vector(plan.V),
            *[pl.BlockSpec((plan.tile,), lambda i: (i,))] * 2,
        ],
        out_specs=plan.block(),
        out_shape=jax.ShapeDtypeStruct((plan.M, plan.D), jnp.float32),
        compiler_params=plan.compiler(),
        interpret=interpret,
        name="softmax_gradient_h",
        cost_estimate=plan.cost(2),
    )(*arguments)
    d_embedding, d_bias = pl.pallas_call(
        functools.partial(_table_kernel, plan),
        grid=(pl.cdiv(plan.V, plan.tile),),
        in_specs=[
            plan.all(plan.M),
            plan.block(),
            pl.BlockSpec((plan.tile,), lambda i: (i,)),
            plan.vector(plan.M),
            plan.vector(plan.M),
        ],
        out_specs=[plan.block(), pl.BlockSpec((plan.tile,), lambda i: (i,))],
        out_shape=[
            jax.ShapeDtypeStruct((plan.V, plan.D), jnp.float32),
            jax.ShapeDtypeStruct((plan.V,), jnp.float32),
        ],
        compiler_params=plan.compiler(),
        interpret=interpret,
        name="softmax_gradient_table",
        cost_estimate=plan.cost(2),
    )(*arguments)
    return d_h, d_embedding, d_bias


class _Plan:
    """Blocks of `tile` slots or items; Triton wants powers of two."""

    def __init__(self, h, embedding):
        (self.M, self.D), self.V = h.shape, embedding.shape[0]
        self.width = max(pl.next_power_of_2(self.D), 16)
        self.itemsize = h.dtype.itemsize
        self.tile = TILE if self.width * self.itemsize <= 512 else TILE // 2

    def block(self):
        return pl.BlockSpec((self.tile, self.width), lambda i: (i, 0))

    def all(self, rows: int):
        return pl.BlockSpec((rows, self.width), lambda i: (0, 0))

    def vector(self, length: int):
        return pl.BlockSpec((length,), lambda i: (0,))

    def compiler(self):
        return plgpu.CompilerParams(num_warps=4 if self.width <= 128 else 8, num_stages=2)

    def cost(self, products: int):
        # Neighbouring blocks walk the other operand together, through the cache that they share.
        moved = (self.M + self.V) * self.D * (self.itemsize + 4 * (products - 1))
        return pl.CostEstimate(
            flops=2 * products * self.M * self.V * self.D,
            transcendentals=self.M * self.V,
            bytes_accessed=moved,
        )

    def load(self, ref, start, local, length: int):
        """Returns rows `start`.. of a matrix, zero beyond its end; `local` is their place in `ref`."""
        mask = ((start + jnp.arange(self.tile)) < length)[:, None] & (
            jnp.arange(self.width) < self.D
        )[None, :]
        return plgpu.load(ref.at[pl.ds(local, self.tile), :], mask=mask, other=0.0)

    def load_vector(self, ref, start, local, length: int, other=0.0):
        return plgpu.load(
            ref.at[pl.ds(local, self.tile)],
            mask=start + jnp.arange(self.tile) < length,
            other=other,
        )

    def store(self, ref, start, value, length: int):
        mask = ((start + jnp.arange(self.tile)) < length)[:, None] & (
            jnp.arange(self.width) < self.D
        )[None, :]
        plgpu.store(ref, value, mask=mask)


def _dot(a, b):
    return plgpu.dot(a, b, precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)


def _lse_kernel(plan, h_ref, embedding_ref, bias_ref, lse_ref):
    slot = pl.program_id(0) * plan.tile
    h = plan.load(h_ref, slot, 0, plan.M)

    def visit(number, carry):
        top, total = carry
        item = number * plan.tile
        logits = _dot(h, plan.load(embedding_ref, item, item, plan.V).T)
        logits += plan.load_vector(bias_ref, item, item, plan.V, -jnp.inf)[None, :]
        new_top = jnp.maximum(top, logits.max(axis=1))
        return new_top, total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[:, None]).sum(
            axis=1
        )

    start = (jnp.full(plan.tile, -2e9), jnp.zeros(plan.tile))
    top, total = jax.lax.fori_loop(0, pl.cdiv(plan.V, plan.tile), visit, start)
    plgpu.store(lse_ref, top + jnp.log(total), mask=slot + jnp.arange(plan.tile) < plan.M)


def _hidden_kernel(plan, h_ref, embedding_ref, bias_ref, lse_ref, scale_ref, d_h_ref):
    slot = pl.program_id(0) * plan.tile
    h, lse = plan.load(h_ref, slot, 0, plan.M), plan.load_vector(lse_ref, slot, 0, plan.M)

    def visit(number, d_h):
        item = number * plan.tile
        embedding = plan.load(embedding_ref, item, item, plan.V)
        logits = (
            _dot(h, embedding.T) + plan.load_vector(bias_ref, item, item, plan.V, -jnp.inf)[None, :]
        )
        return d_h + _dot(jnp.exp(logits - lse[:, None]).astype(h.dtype), embedding)

    d_h = jax.lax.fori_loop(
        0, pl.cdiv(plan.V, plan.tile), visit, jnp.zeros((plan.tile, plan.width))
    )
    plan.store(d_h_ref, slot, d_h * plan.load_vector(scale_ref, slot, 0, plan.M)[:, None], plan.M)


def _table_kernel(
    plan, h_ref, embedding_ref, bias_ref, lse_ref, scale_ref, d_embedding_ref, d_bias_ref
):
    item = pl.program_id(0) * plan.tile
    embedding = plan.load(embedding_ref, item, 0, plan.V)
    bias = plan.load_vector(bias_ref, item, 0, plan.V, -jnp.inf)

    def visit(number, carry):
        d_embedding, d_bias = carry
        slot = number * plan.tile
        h = plan.load(h_ref, slot, slot, plan.M)
        lse, scale = (plan.load_vector(ref, slot, slot, plan.M) for ref in (lse_ref, scale_ref))
        p = jnp.exp(_dot(embedding, h.T) + (bias[:, None] - lse[None, :])) * scale[None, :]
        return d_embedding + _dot(p.astype(h.dtype), h), d_bias + p.sum(axis=1)

    start = (jnp.zeros((plan.tile, plan.width)), jnp.zeros(plan.tile))
    d_embedding, d_bias = jax.lax.fori_loop(0, pl.cdiv(plan.M, plan.tile), visit, start)
    plan.store(d_embedding_ref, item, d_embedding, plan.V)
    plgpu.store(d_bias_ref, d_bias, mask=item + jnp.arange(plan.tile) < plan.V)
