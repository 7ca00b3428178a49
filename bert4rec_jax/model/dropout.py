# SPDX-License-Identifier: Apache-2.0
"""Dropout without random bits: whether an element stays is a hash of two numbers that its row draws and of
its place in the row.

The integer arithmetic is that of MurmurHash3's finaliser: a few instructions that fuse with what stands around them
and are computed again in the backward pass, where random bits of Threefry take twenty rounds and are kept in memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_SPREAD, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35


class Draws(NamedTuple):
    """What dropout draws from in training; None stands for evaluation.

    Every row of a batch draws for itself, so that what is dropped does not depend on how rows are dealt out to devices.

    Attributes:
      key: PRNG key of the step.
      rows_B: int32[B], numbers of the rows in the whole batch.
    """

    key: jax.Array
    rows_B: jax.Array


def dropout(x: jax.Array, rate: float, draws: Draws | None) -> jax.Array:
    """Zeroes a share `rate` of `x` ([B, ...]) and scales up the rest; the identity in evaluation."""
    if draws is None or rate == 0:
        return x
    first, second = (bits.reshape(-1, *(1,) * (x.ndim - 1)) for bits in row_seeds(draws).T)
    place = jax.lax.iota(jnp.uint32, x[0].size).reshape(1, *x.shape[1:])
    return jnp.where(_kept(place, first, second, rate), x * (1 / (1 - rate)), 0).astype(x.dtype)


def row_seeds(draws: Draws) -> jax.Array:
    """Returns uint32[B, 2]: the two numbers that each row draws, as `kept_in_kernel` wants them."""
    return jax.vmap(
        lambda row: jax.random.bits(jax.random.fold_in(draws.key, row), (2,), jnp.uint32)
    )(draws.rows_B)


def kept_in_kernel(place: jax.Array, seeds: tuple[jax.Array, jax.Array], rate: float) -> jax.Array:
    """Returns bool, whether the elements at `place` (int32, inside of a row) stay, given the row's seeds.

    In signed integers, which every kernel language compares.
    """
    signed = lambda number: jnp.int32(np.uint32(number).astype(np.int32))  # noqa: E731
    first, second = (jax.lax.convert_element_type(seed, jnp.int32) for seed in seeds)
    shifted = lambda h, by: jax.lax.shift_right_logical(h, jnp.int32(by))  # noqa: E731
    h = place * signed(_SPREAD) + first
    h = (h ^ shifted(h, 16)) * signed(_FIRST) ^ second
    h = (h ^ shifted(h, 13)) * signed(_SECOND)
    h = h ^ shifted(h, 16)
    return (h ^ signed(2**31)) >= signed(int(rate * 2**32) ^ 2**31)


def _kept(place, first, second, rate):
    h = place * jnp.uint32(_SPREAD) + first
    h = (h ^ (h >> 16)) * jnp.uint32(_FIRST) ^ second
    h = (h ^ (h >> 13)) * jnp.uint32(_SECOND)
    return h ^ (h >> 16) >= jnp.uint32(rate * 2**32)
