# SPDX-License-Identifier: Apache-2.0
"""Dropout without random bits.

An element is kept or dropped by a hash of its position and two per-row seeds.
The hash is the finaliser of MurmurHash3. It takes a few integer instructions, which fuse with the
operations around them and are recomputed in the backward pass. Random bits of Threefry take twenty
rounds and are stored in memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_SPREAD = 0x9E3779B1
_FIRST = 0x85EBCA6B
_SECOND = 0xC2B2AE35


class DropoutKeys(NamedTuple):
    """Randomness of dropout in training; None in evaluation.

    The seeds of a row depend on its number in the whole batch, so the dropped elements do not
    depend on how the batch is distributed over devices.

    Attributes:
      key: PRNG key of the step, or of one place in the model.
      rows_B: int32[B], numbers of the rows in the whole batch.
    """

    key: jax.Array
    rows_B: jax.Array


def dropout(x: jax.Array, rate: float, keys: DropoutKeys | None) -> jax.Array:
    """Drops a share `rate` of `x` ([B, ...]) and scales up the rest; the identity in evaluation."""
    if keys is None or rate == 0:
        return x
    per_row = (-1, *(1,) * (x.ndim - 1))
    first, second = row_seeds(keys).T
    seeds = (first.reshape(per_row), second.reshape(per_row))
    position = jax.lax.iota(jnp.int32, x[0].size).reshape(1, *x.shape[1:])
    return jnp.where(is_kept(position, seeds, rate), x * (1 / (1 - rate)), 0).astype(x.dtype)


def row_seeds(keys: DropoutKeys) -> jax.Array:
    """Returns uint32[B, 2], the two seeds of each row."""

    def seeds_of_row(row: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(keys.key, row), (2,), jnp.uint32)

    return jax.vmap(seeds_of_row)(keys.rows_B)


def is_kept(position: jax.Array, seeds: tuple[jax.Array, jax.Array], rate: float) -> jax.Array:
    """Returns bool, whether the elements at `position` are kept.

    All arithmetic is in signed integers, because kernels cannot compare unsigned ones.

    Args:
      position: int32, positions of elements within their row of the batch.
      seeds: the two seeds of the row (see `row_seeds`), broadcastable to `position`.
      rate: share of elements to drop.
    """
    first, second = (jax.lax.convert_element_type(seed, jnp.int32) for seed in seeds)
    h = position * _signed(_SPREAD) + first
    h = (h ^ _shift_right(h, 16)) * _signed(_FIRST) ^ second
    h = (h ^ _shift_right(h, 13)) * _signed(_SECOND)
    h = h ^ _shift_right(h, 16)
    # Flipping the sign bit turns a signed comparison into an unsigned one.
    return (h ^ _signed(2**31)) >= _signed(int(rate * 2**32) ^ 2**31)


def _signed(number: int) -> jax.Array:
    return jnp.int32(np.uint32(number).astype(np.int32))


def _shift_right(x: jax.Array, bits: int) -> jax.Array:
    return jax.lax.shift_right_logical(x, jnp.int32(bits))
