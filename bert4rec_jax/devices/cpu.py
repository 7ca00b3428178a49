# SPDX-License-Identifier: Apache-2.0
"""What is there only because of XLA's CPU backend.

Loop bodies run on one core there, so chunks of a catalogue are unrolled (`model/losses.py`); gathers and scatters are
slower than products with one-hot matrices (`model/encoder.py`); and independent operations all start at once.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp


def compiler_options(platform: str) -> dict | None:
    """Returns what XLA is told where it compiles for a CPU, None for other machines.

    Operations are ordered by memory: its default starts independent ones as early as it can, so that all chunks of a
    large catalogue would be alive at once. Vectors are as wide as the processor has them: its default is 256 bits, also
    where there are 512.
    """
    if platform != "cpu":
        return None
    wide = {"xla_cpu_prefer_vector_width": 512} if _has_wide_vectors() else {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED", **wide}


@functools.cache
def _has_wide_vectors(description: str = "/proc/cpuinfo") -> bool:
    """Returns whether the processor, in Linux's description of it, has AVX-512; False where there is none."""
    try:
        return "avx512f" in Path(description).read_text().split()
    except OSError:
        return False


def after(x: jax.Array, done: list[jax.Array]) -> jax.Array:
    """Returns x, but not before `done` is computed: unrolled chunks then live one after another, not all at once.

    XLA drops an `optimization_barrier` before it schedules on CPU, so this is a dependence that it cannot see through:
    nothing is added, but a compiler has to respect NaN. It also keeps XLA from taking the exponentials of the forward
    pass for those of the backward pass.
    """
    return x + sum((0 * y.reshape(-1)[0] for y in done), jnp.zeros((), x.dtype)).astype(x.dtype)


@jax.custom_vjp
def rows(table_PD: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns table_PD[ids]; the gradient is a product with a one-hot matrix, where a scatter would be slow."""
    return table_PD[ids]


def _rows_forward(table_PD, ids):
    return table_PD[ids], (ids, table_PD.shape[0])


def _rows_backward(residuals, gradient):
    ids, count = residuals
    one_hot_NP = jax.nn.one_hot(ids.reshape(-1), count, dtype=gradient.dtype)
    return jnp.einsum("np,nd->pd", one_hot_NP, gradient.reshape(-1, gradient.shape[-1])), None


rows.defvjp(_rows_forward, _rows_backward)


def pick(x_BLD: jax.Array, slots_BK: jax.Array) -> jax.Array:
    """Returns x_BLD[b, slots_BK[b]] as a product with a one-hot matrix: [B, K, D]."""
    one_hot_BKL = jax.nn.one_hot(slots_BK, x_BLD.shape[1], dtype=x_BLD.dtype)
    return one_hot_BKL @ x_BLD
