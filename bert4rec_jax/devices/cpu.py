# SPDX-License-Identifier: Apache-2.0
"""Workarounds for XLA's CPU backend.

Loop bodies use only one core there, so the chunks of a large item table are unrolled
(`model/softmax_unrolled.py`). Gathers and scatters are slower than products with one-hot matrices
(`model/encoder.py`). Independent operations all start at once.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp


def compiler_options(platform: str) -> dict[str, str | int] | None:
    """Returns XLA's options if it compiles for a CPU, otherwise None.

    Operations are ordered by memory. By default, XLA starts independent operations as early as it
    can, so that all chunks of a large item table would be in memory at once. Vectors are as wide as
    the processor's; by default, XLA uses 256 bits even if the processor has 512.
    """
    if platform != "cpu":
        return None
    options: dict[str, str | int] = {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    }
    if _has_wide_vectors():
        options["xla_cpu_prefer_vector_width"] = 512
    return options


@functools.cache
def _has_wide_vectors(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Returns whether the processor has AVX-512, according to Linux; False on other systems."""
    try:
        return "avx512f" in Path(cpuinfo).read_text().split()
    except OSError:
        return False


def order_after(x: jax.Array, done: list[jax.Array]) -> jax.Array:
    """Returns x unchanged, but not before the arrays `done` are computed.

    Unrolled chunks are thus in memory one after another instead of all at once. XLA removes
    `optimization_barrier` before it schedules for CPUs. Adding 0 * y is a dependence that it cannot
    remove, because y might be NaN. It also prevents XLA from reusing the exponentials of the
    forward pass in the backward pass.
    """
    zero = jnp.zeros((), x.dtype)
    for y in done:
        zero += 0 * y.reshape(-1)[0]
    return x + zero.astype(x.dtype)


@jax.custom_vjp
def lookup_with_one_hot_gradient(table_RD: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns table_RD[ids]; its gradient is a product with a one-hot matrix, not a slow scatter.

    Args:
      table_RD: [rows, width].
      ids: row numbers, of any shape.
    """
    return table_RD[ids]


def _lookup_forward(table_RD: jax.Array, ids: jax.Array) -> tuple[jax.Array, tuple[jax.Array, int]]:
    return table_RD[ids], (ids, table_RD.shape[0])


def _lookup_backward(
    residuals: tuple[jax.Array, int], gradient: jax.Array
) -> tuple[jax.Array, None]:
    ids, count = residuals
    one_hot_NR = jax.nn.one_hot(ids.reshape(-1), count, dtype=gradient.dtype)
    gradient_ND = gradient.reshape(-1, gradient.shape[-1])
    return jnp.einsum("nr,nd->rd", one_hot_NR, gradient_ND), None


lookup_with_one_hot_gradient.defvjp(_lookup_forward, _lookup_backward)


def gather_by_one_hot(x_BLD: jax.Array, slots_BK: jax.Array) -> jax.Array:
    """Returns x_BLD[b, slots_BK[b]], shape [B, K, D], as a product with a one-hot matrix."""
    one_hot_BKL = jax.nn.one_hot(slots_BK, x_BLD.shape[1], dtype=x_BLD.dtype)
    return one_hot_BKL @ x_BLD
