# SPDX-License-Identifier: Apache-2.0
"""All implementations of attention return the same values and gradients; TPU kernels are interpreted on the CPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.model import attention, blockwise_attention
from bert4rec_jax.model.attention import Places, attend, rotate
from bert4rec_jax.model.dropout import DropoutKeys, dropout, is_kept, row_seeds

OTHERS = ("blockwise", "pallas_tpu")
# Neither is a multiple of a block of a kernel.
LENGTH = 70
WIDTH = 24
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


def two_rows(dtype, slots: int | None):
    """Two rows with three histories and with one, then padding; slots in any order, with repetitions."""
    segments = np.zeros((2, LENGTH), np.int32)
    positions = np.zeros((2, LENGTH), np.int32)
    for row, lengths in enumerate([(20, 31, 9), (55,)]):
        start = 0
        for number, length in enumerate(lengths, 1):
            segments[row, start : start + length] = number
            positions[row, start : start + length] = np.arange(length)
            start += length
    columns = np.arange(LENGTH)[None]
    keys = Places(jnp.asarray(segments), jnp.asarray(positions), jnp.asarray(columns))
    queries = keys
    count = LENGTH
    if slots is not None:
        count = slots
        chosen = np.random.default_rng(0).integers(0, LENGTH, (2, slots))
        queries = Places(
            jnp.asarray(np.take_along_axis(segments, chosen, 1)),
            jnp.asarray(np.take_along_axis(positions, chosen, 1)),
            jnp.asarray(chosen),
        )
    random = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(random[0], (2, count, WIDTH)).astype(dtype)
    kv = jax.random.normal(random[1], (2, LENGTH, 2 * WIDTH)).astype(dtype)
    weights = jax.random.normal(random[2], q.shape) * (queries.segments > 0)[:, :, None]
    return q, kv, queries, keys, weights


def value_and_gradient(
    implementation: str,
    dtype,
    *,
    causal: bool | tuple[bool, ...],
    slots: int | None = None,
    **changes,
):
    base = ModelConfig(width=WIDTH, heads=3, attention_dropout=0.0)
    config = dataclasses.replace(base, attention=implementation, **changes)
    q, kv, queries, keys, weights = two_rows(dtype, slots)
    dropout_keys = DropoutKeys(jax.random.key(5), jnp.array([4, 9]))

    def total(q, kv):
        y = attend(config, "cpu", causal, q, kv, (queries, keys), dropout_keys)
        return (y.astype(jnp.float32) * weights).sum(), y

    (_, y), gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(q, kv)
    # The values that padding attends to are never used.
    return jnp.where((queries.segments > 0)[:, :, None], y, 0), *gradient


def assert_close(expected, actual, dtype, label):
    tolerance = 2e-5 if dtype == jnp.float32 else 4e-2
    for a, b in zip(expected, actual):
        assert b.dtype == dtype
        a = np.asarray(a, np.float32)
        b = np.asarray(b, np.float32)
        np.testing.assert_allclose(b, a, atol=tolerance * np.abs(a).max(), err_msg=label)


@pytest.mark.parametrize("implementation", OTHERS)
@pytest.mark.parametrize("case", CASES)
def test_every_implementation_equals_dense_attention_in_value_and_gradient(implementation, case):
    for dtype in (jnp.float32, jnp.bfloat16):
        expected = value_and_gradient("dense", dtype, **CASES[case])
        actual = value_and_gradient(implementation, dtype, **CASES[case])
        assert_close(expected, actual, dtype, f"{case}, {dtype.__name__}")


@pytest.mark.parametrize("block", [1, 16, 35, 64, 70, 100])
@pytest.mark.parametrize("case", ["causal slots, dropout", "rows of both kinds"])
def test_the_block_size_of_blockwise_attention_does_not_change_results(monkeypatch, case, block):
    plain = blockwise_attention.attend
    monkeypatch.setattr(blockwise_attention, "attend", lambda *a: plain(*a, block))
    expected = value_and_gradient("dense", jnp.float32, **CASES[case])
    actual = value_and_gradient("blockwise", jnp.float32, **CASES[case])
    assert_close(expected, actual, jnp.float32, f"blocks of {block}")


def test_the_memory_of_blockwise_attention_grows_linearly_with_the_length():
    def temporary_bytes(implementation, length):
        config = ModelConfig(width=16, heads=2, attention=implementation, attention_dropout=0.1)
        columns = jnp.arange(length)[None]
        places = Places(jnp.ones((1, length), jnp.int32), columns, columns)
        keys = DropoutKeys(jax.random.key(0), jnp.array([0]))

        def loss(q, kv):
            return attend(config, "cpu", True, q, kv, (places, places), keys).sum()

        shapes = (jnp.zeros((1, length, 16)), jnp.zeros((1, length, 32)))
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    blockwise = temporary_bytes("blockwise", 4096) / temporary_bytes("blockwise", 2048)
    dense = temporary_bytes("dense", 4096) / temporary_bytes("dense", 2048)
    assert blockwise < 2.2
    assert dense > 3.5


@pytest.mark.parametrize(
    "requested, platform, length, expected",
    [
        ("auto", "cpu", 10_000, "dense"),
        ("auto", "tpu", 200, "pallas_tpu"),
        ("auto", "gpu", 200, "dense"),
        ("auto", "gpu", 2048, "blockwise"),
        ("dense", "tpu", 2048, "dense"),
        ("blockwise", "cpu", 50, "blockwise"),
    ],
)
def test_the_implementation_depends_on_platform_and_length(requested, platform, length, expected):
    assert attention.choose_implementation(requested, platform, length) == expected


def test_rows_of_both_kinds_equal_batches_of_one_kind():
    mixed, bidirectional, causal = (
        value_and_gradient("dense", jnp.float32, causal=causal, positions="rotary")
        for causal in ((False, True), False, True)
    )
    for both, first, second in zip(mixed, bidirectional, causal):
        np.testing.assert_allclose(both[0], first[0], atol=1e-6)
        np.testing.assert_allclose(both[1], second[1], atol=1e-6)
        assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("implementation", OTHERS)
def test_other_histories_of_a_row_never_matter(implementation):
    """Keys and values outside a segment do not influence its values and gradients."""
    config = ModelConfig(width=WIDTH, heads=3, attention=implementation)
    q, kv, _, keys, _ = two_rows(jnp.float32, None)
    inside = (keys.segments == 2)[:, :, None]

    @functools.partial(jax.jit, static_argnums=0)
    def segment_gradients(causal, q, kv):
        def values(q, kv):
            return jnp.where(inside, attend(config, "cpu", causal, q, kv, (keys, keys), None), 0)

        y, pull_back = jax.vjp(values, q, kv)
        return y, *pull_back(jnp.cos(y))

    noise = jax.random.normal(jax.random.key(7), kv.shape)
    for causal in (False, True):
        first = segment_gradients(causal, q, kv)
        second = segment_gradients(causal, q, jnp.where(inside, kv, noise))
        jax.tree.map(np.testing.assert_array_equal, first, second)
        kv_gradient = np.asarray(first[2])
        assert np.abs(kv_gradient).max() > 0.01
        assert not kv_gradient[~np.asarray(inside)[..., 0]].any()


@pytest.mark.parametrize(
    "positions, slots, rate", [("rotary", False, 0.3), ("left", False, 0.0), ("rotary", True, 0.3)]
)
@pytest.mark.parametrize("implementation", OTHERS)
def test_long_rows_use_several_blocks(monkeypatch, implementation, positions, slots, rate):
    """300 columns are filled up to three chunks of the kernel, with two groups of heads of 128 lanes each."""
    from bert4rec_jax.model.kernels import attention_tpu

    monkeypatch.setattr(attention_tpu, "CHUNK", 128)
    monkeypatch.setattr(attention_tpu, "SCORES_BYTES", 1)  # blocks of 128 queries
    width = 256
    columns = jnp.arange(300)[None]
    keys = Places(jnp.repeat(jnp.arange(3), 100)[None], columns % 100, columns)
    queries = Places(*[x[:, ::2] for x in keys]) if slots else keys
    q = jax.random.normal(jax.random.key(0), (1, 300, width))
    q = q[:, ::2] if slots else q
    kv = jax.random.normal(jax.random.key(1), (1, 300, 2 * width))
    dropout_keys = DropoutKeys(jax.random.key(5), jnp.array([4]))

    def run(name):
        config = ModelConfig(
            width=width, heads=4, attention=name, positions=positions, attention_dropout=rate
        )

        def loss(q, kv):
            y = attend(config, "cpu", True, q, kv, (queries, keys), dropout_keys)
            return jnp.sin(y).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(q, kv)

    for a, b in zip(jax.tree.leaves(run(implementation)), jax.tree.leaves(run("dense"))):
        np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-5)


def test_kernels_drop_the_same_elements_as_dropout():
    keys = DropoutKeys(jax.random.key(1), jnp.array([3, 8]))
    shape = (2, 3, 5, 7)
    kept = dropout(jnp.ones(shape), 0.4, keys) > 0
    for row, seeds in enumerate(row_seeds(keys)):
        position = jnp.arange(3 * 5 * 7).reshape(shape[1:])
        np.testing.assert_array_equal(is_kept(position, tuple(seeds), 0.4), kept[row])


def test_rotated_products_depend_on_distances_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 4, 8))

    def products(shift):
        positions = jnp.arange(4)[None, None] + shift
        return jnp.einsum("bhqe,bhle->bhql", rotate(q, positions), rotate(k, positions))

    np.testing.assert_allclose(products(0), products(31), atol=1e-4)
    assert np.abs(products(0) - jnp.einsum("bhqe,bhle->bhql", q, k)).max() > 0.1
