# SPDX-License-Identifier: Apache-2.0
"""The exact softmax over a catalogue as Pallas kernels for TPUs: logits never leave the chip."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

SLOTS, ITEMS = 1024, 512  # of a tile of logits
VMEM_BYTES = 100 * 2**20
# Gradients of so many bytes of hidden states stay on the chip while the catalogue passes by.
HIDDEN_BYTES = 16 * 2**20


def log_sum_exp(
    h_MD: jax.Array, embedding_VD: jax.Array, bias_V: jax.Array, interpret: bool
) -> jax.Array:
    """Returns float32[M], the log-sum-exp of h E^T + bias over the rows of the table.

    Args:
      h_MD: hidden states, of the dtype in which products are taken.
      embedding_VD: float32, the table or a shard of it.
      bias_V: float32.
      interpret: run without a TPU, slowly.
    """
    (M, D), V = h_MD.shape, embedding_VD.shape[0]
    slots, items = _tile(M, V)
    h_MD = _padded(h_MD, slots)
    lse = pl.pallas_call(
        functools.partial(_lse_kernel, V),
        grid=(len(h_MD) // slots, pl.cdiv(V, items)),
        in_specs=[
            pl.BlockSpec((slots, D), lambda m, v: (m, 0)),
            pl.BlockSpec((items, D), lambda m, v: (v, 0)),
            pl.BlockSpec((1, items), lambda m, v: (0, v)),
        ],
        out_specs=pl.BlockSpec((1, slots), lambda m, v: (0, m)),
        out_shape=jax.ShapeDtypeStruct((1, len(h_MD)), jnp.float32),
        scratch_shapes=[pltpu.VMEM((slots, 1), jnp.float32)] * 2,
        compiler_params=_compiler(),
        interpret=interpret,
        name="softmax",
        cost_estimate=pl.CostEstimate(
            flops=2 * M * V * D,
            transcendentals=M * V,
            bytes_accessed=(
                4 * V * D * (len(h_MD) // slots) + h_MD.size * h_MD.dtype.itemsize + 4 * M
            ),
        ),
    )(h_MD, embedding_VD, bias_V[None])
    return lse[0, :M]


def gradients(
    h_MD: jax.Array,
    embedding_VD: jax.Array,
    bias_V: jax.Array,
    lse_M: jax.Array,
    scale_M: jax.Array,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what sum(scale * log_sum_exp) has for gradients: float32 [M, D], [V, D] and [V].

    Args:
      h_MD: as for `log_sum_exp`, as are the table, the bias and `interpret`.
      embedding_VD: see there.
      bias_V: see there.
      lse_M: float32, over the whole catalogue where the table is a shard.
      scale_M: float32.
      interpret: see there.
    """
    M, D = h_MD.shape
    most = max(HIDDEN_BYTES // (4 * D) // SLOTS, 1) * SLOTS
    if most >= M:
        return _gradients(h_MD, embedding_VD, bias_V, lse_M, scale_M, interpret)
    parts = [
        _gradients(
            h_MD[i : i + most],
            embedding_VD,
            bias_V,
            lse_M[i : i + most],
            scale_M[i : i + most],
            interpret,
        )
        for i in range(0, M, most)
    ]
    d_h, d_embedding, d_bias = zip(*parts)
    return jnp.concatenate(d_h), sum(d_embedding), sum(d_bias)


def _gradients(
    h_MD: jax.Array,
    embedding_VD: jax.Array,
    bias_V: jax.Array,
    lse_M: jax.Array,
    scale_M: jax.Array,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    (M, D), V = h_MD.shape, embedding_VD.shape[0]
    slots, items = _tile(M, V)
    h_MD, statistics_2M = (
        _padded(h_MD, slots),
        _padded(jnp.stack([lse_M, scale_M], axis=1), slots).T,
    )
    d_h, d_embedding, d_bias = pl.pallas_call(
        functools.partial(_gradient_kernel, V),
        grid=(pl.cdiv(V, items), len(h_MD) // slots),
        in_specs=[
            pl.BlockSpec((slots, D), lambda v, m: (m, 0)),
            pl.BlockSpec((items, D), lambda v, m: (v, 0)),
            pl.BlockSpec((1, items), lambda v, m: (0, v)),
            pl.BlockSpec((2, slots), lambda v, m: (0, m)),
        ],
        out_specs=[
            pl.BlockSpec((len(h_MD), D), lambda v, m: (0, 0)),
            pl.BlockSpec((items, D), lambda v, m: (v, 0)),
            pl.BlockSpec((1, items), lambda v, m: (0, v)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((len(h_MD), D), (V, D), (1, V))
        ],
        compiler_params=_compiler(),
        interpret=interpret,
        name="softmax_gradient",
        cost_estimate=pl.CostEstimate(
            flops=6 * M * V * D,
            transcendentals=M * V,
            bytes_accessed=(
                8 * V * D + h_MD.size * h_MD.dtype.itemsize * pl.cdiv(V, items) + 4 * h_MD.size
            ),
        ),
    )(h_MD, embedding_VD, bias_V[None], statistics_2M)
    return d_h[:M], d_embedding, d_bias[0]


def _tile(slots: int, items: int) -> tuple[int, int]:
    """Returns the sides of a tile of logits, multiples of 128 or the whole dimension."""
    return min(SLOTS, pl.cdiv(slots, 128) * 128), ITEMS if items > ITEMS else items


def _padded(x: jax.Array, multiple: int) -> jax.Array:
    missing = -len(x) % multiple
    return jnp.pad(x, ((0, missing), (0, 0))) if missing else x


def _compiler() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
    )


def _logits(
    V: int, tile: jax.Array, h: jax.Array, embedding_ref: Any, bias_ref: Any
) -> tuple[jax.Array, jax.Array]:
    """Returns the logits [slots, items] of a tile and its rows of the table.

    Beyond the table, logits are -1e9 and rows are 0.
    """
    embedding, bias = embedding_ref[...], bias_ref[...]
    items = embedding.shape[0]
    if V % items:  # the last tile reads beyond the table
        first = tile * items
        embedding = jnp.where(
            first + jax.lax.broadcasted_iota(jnp.int32, (items, 1), 0) < V, embedding, 0
        )
        bias = jnp.where(first + jax.lax.broadcasted_iota(jnp.int32, (1, items), 1) < V, bias, -1e9)
    embedding = embedding.astype(h.dtype)
    logits = jax.lax.dot_general(
        h, embedding, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    return logits + bias, embedding


def _lse_kernel(
    V: int, h_ref: Any, embedding_ref: Any, bias_ref: Any, lse_ref: Any, max_M1: Any, sum_M1: Any
) -> None:
    tile = pl.program_id(1)

    @pl.when(tile == 0)
    def _() -> None:
        max_M1[...] = jnp.full_like(max_M1, -2e9)
        sum_M1[...] = jnp.zeros_like(sum_M1)

    logits = _logits(V, tile, h_ref[...], embedding_ref, bias_ref)[0]
    top = jnp.maximum(max_M1[...], logits.max(axis=1, keepdims=True))
    sum_M1[...] = sum_M1[...] * jnp.exp(max_M1[...] - top) + jnp.exp(logits - top).sum(
        axis=1, keepdims=True
    )
    max_M1[...] = top

    @pl.when(tile == pl.num_programs(1) - 1)
    def _() -> None:
        lse_ref[...] = (max_M1[...] + jnp.log(sum_M1[...])).T


def _gradient_kernel(V: int, *refs: Any) -> None:
    h_ref, embedding_ref, bias_ref, statistics_ref, d_h_ref, d_embedding_ref, d_bias_ref = refs
    tile, part = pl.program_id(0), pl.program_id(1)
    h = h_ref[...]
    logits, embedding = _logits(V, tile, h, embedding_ref, bias_ref)
    statistics = statistics_ref[...].T
    p = jnp.exp(logits - statistics[:, 0:1]) * statistics[:, 1:2]
    here = pl.ds(pl.multiple_of(part * h.shape[0], h.shape[0]), h.shape[0])

    @pl.when(tile == 0)
    def _() -> None:
        d_h_ref[here, :] = jnp.zeros((h.shape[0], h.shape[1]), jnp.float32)

    @pl.when(part == 0)
    def _() -> None:
        d_embedding_ref[...] = jnp.zeros_like(d_embedding_ref)
        d_bias_ref[...] = jnp.zeros_like(d_bias_ref)

    d_bias_ref[...] += p.sum(axis=0, keepdims=True)
    p = p.astype(h.dtype)
    d_h_ref[here, :] += jnp.dot(p, embedding, preferred_element_type=jnp.float32)
    d_embedding_ref[...] += jax.lax.dot_general(
        p, h, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
