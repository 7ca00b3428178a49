# SPDX-License-Identifier: Apache-2.0
"""The kernels of accelerators, interpreted on CPU, against attention written out in arrays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.model.attention import attend, rotate
from bert4rec_jax.model.dropout import Draws, dropout, kept_in_kernel, row_seeds

KERNELS = ("pallas_tpu", "pallas_gpu")
L, D = 70, 24  # neither is a multiple of a kernel's block
CASES = {
    "bidirectional, learned positions": {"causal": False},
    "causal, rotary": {"causal": True, "positions": "rotary"},
    "slots": {"causal": False, "slots": 13, "positions": "rotary"},
    "causal slots, dropout": {"causal": True, "slots": 13, "attention_dropout": 0.3},
    "dropout": {"causal": False, "attention_dropout": 0.3},
    "rows of both kinds": {
        "causal": (False, True),
        "positions": "rotary",
        "attention_dropout": 0.3,
    },
}


def arrays(dtype, slots: int | None):
    """Two rows, of three histories and of one, with padding behind them; slots in any order, some of them twice."""
    segments = np.zeros((2, L), np.int32)
    positions = np.zeros((2, L), np.int32)
    for row, lengths in enumerate([(20, 31, 9), (55,)]):
        start = 0
        for number, length in enumerate(lengths, 1):
            segments[row, start : start + length] = number
            positions[row, start : start + length] = np.arange(length)
            start += length
    columns = np.arange(L)[None]
    chosen = (
        columns.repeat(2, 0)
        if slots is None
        else np.random.default_rng(0).integers(0, L, (2, slots))
    )
    keys = (jnp.asarray(segments), jnp.asarray(positions), jnp.asarray(columns))
    queries = (
        keys
        if slots is None
        else tuple(
            jnp.asarray(np.take_along_axis(x, chosen, 1))
            for x in (segments, positions, columns.repeat(2, 0))
        )
    )
    random = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(random[0], (2, chosen.shape[1], D)).astype(dtype)
    kv = jax.random.normal(random[1], (2, L, 2 * D)).astype(dtype)
    weights = jax.random.normal(random[2], q.shape) * (queries[0] > 0)[:, :, None]
    return q, kv, queries, keys, weights


def value_and_gradient(
    way: str, dtype, *, causal: bool | tuple[bool, ...], slots: int | None = None, **changes
):
    config = dataclasses.replace(
        ModelConfig(width=D, heads=3, attention_dropout=0.0), attention=way, **changes
    )
    q, kv, queries, keys, weights = arrays(dtype, slots)
    draws = Draws(jax.random.key(5), jnp.array([4, 9]))

    def total(q, kv):
        y = attend(config, causal, q, kv, queries, keys, draws)
        return (y.astype(jnp.float32) * weights).sum(), y

    (_, y), gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(q, kv)
    return jnp.where(
        (queries[0] > 0)[:, :, None], y, 0
    ), *gradient  # what padding reads is nobody's


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_the_dense_path_in_value_and_gradient(kernel, case):
    for dtype, tolerance in ((jnp.float32, 2e-5), (jnp.bfloat16, 4e-2)):
        expected, got = (value_and_gradient(way, dtype, **CASES[case]) for way in ("dense", kernel))
        for a, b in zip(expected, got):
            assert b.dtype == dtype
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            np.testing.assert_allclose(
                b, a, atol=tolerance * np.abs(a).max(), err_msg=f"{case} {dtype.__name__}"
            )


def test_rows_of_both_kinds_are_each_as_among_their_own():
    mixed, bidirectional, causal = (
        value_and_gradient("dense", jnp.float32, causal=causal, positions="rotary")
        for causal in ((False, True), False, True)
    )
    for both, first, second in zip(mixed, bidirectional, causal):
        np.testing.assert_allclose(both[0], first[0], atol=1e-6)
        np.testing.assert_allclose(both[1], second[1], atol=1e-6)
        assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("kernel", KERNELS)
def test_other_histories_of_a_row_never_matter(kernel):
    """Packed rows equal single rows: what is outside of a segment may be anything, in value and in gradient."""
    config = ModelConfig(width=D, heads=3, attention=kernel)
    q, kv, queries, keys, _ = arrays(jnp.float32, None)
    inside = (keys[0] == 2)[:, :, None]

    @functools.partial(jax.jit, static_argnums=0)
    def of_segment(causal, q, kv):
        read = lambda q, kv: jnp.where(
            inside, attend(config, causal, q, kv, queries, keys, None), 0
        )  # noqa: E731
        y, back = jax.vjp(read, q, kv)
        return y, *back(jnp.cos(y))

    changed = jax.random.normal(jax.random.key(7), kv.shape)
    for causal in (False, True):
        first = of_segment(causal, q, kv)
        second = of_segment(causal, q, jnp.where(inside, kv, changed))
        jax.tree.map(np.testing.assert_array_equal, first, second)
        assert (
            np.abs(first[2]).max() > 0.01
            and not np.asarray(first[2])[~np.asarray(inside)[..., 0]].any()
        )


@pytest.mark.parametrize(
    "positions, slots, rate", [("rotary", False, 0.3), ("left", False, 0.0), ("rotary", True, 0.3)]
)
def test_long_rows_take_several_blocks_and_chunks(monkeypatch, positions, slots, rate):
    """300 columns are filled up to three chunks; two groups of heads, of 128 lanes each."""
    from bert4rec_jax.model.kernels import attention_tpu

    monkeypatch.setattr(attention_tpu, "CHUNK", 128)
    monkeypatch.setattr(attention_tpu, "SCORES_BYTES", 1)  # blocks of 128 queries
    D, columns = 256, jnp.arange(300)[None]
    keys = (jnp.repeat(jnp.arange(3), 100)[None], columns % 100, columns)
    queries = tuple(x[:, ::2] for x in keys) if slots else keys
    q, kv = (
        jax.random.normal(jax.random.key(n), (1, 300, size)) for n, size in enumerate((D, 2 * D))
    )
    q = q[:, ::2] if slots else q
    draws = Draws(jax.random.key(5), jnp.array([4]))

    def run(way):
        config = ModelConfig(
            width=D, heads=4, attention=way, positions=positions, attention_dropout=rate
        )
        read = lambda q, kv: jnp.sin(attend(config, True, q, kv, queries, keys, draws)).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(read, argnums=(0, 1)))(q, kv)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-5),
        run("pallas_tpu"),
        run("dense"),
    )


def test_kernels_drop_what_the_dense_path_drops():
    draws, shape = Draws(jax.random.key(1), jnp.array([3, 8])), (2, 3, 5, 7)
    kept = dropout(jnp.ones(shape), 0.4, draws) > 0
    for row, seeds in enumerate(row_seeds(draws)):
        place = jnp.arange(3 * 5 * 7).reshape(shape[1:])
        np.testing.assert_array_equal(kept_in_kernel(place, tuple(seeds), 0.4), kept[row])


def test_rotation_depends_on_distances_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 4, 8))
    at = lambda shift: jnp.einsum(  # noqa: E731
        "bhqe,bhle->bhql", *(rotate(x, jnp.arange(4)[None, None] + shift) for x in (q, k))
    )
    np.testing.assert_allclose(at(0), at(31), atol=1e-4)
    assert np.abs(at(0) - jnp.einsum("bhqe,bhle->bhql", q, k)).max() > 0.1
