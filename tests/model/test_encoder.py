# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_config
from plain_numpy import naive_encoder

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.data import TrainingBatches, load_dataset, split_dataset
from bert4rec_jax.devices import Placement, cpu
from bert4rec_jax.model import encoder as model
from bert4rec_jax.model import lookup, mask_items
from bert4rec_jax.training.step import StepSpec, batch_loss, step_keys, stream_key

CHOICES = [
    {"model.norm": "post", "model.positions": "left", "model.head": "transform"},
    {"model.norm": "pre", "model.positions": "right", "model.head": "tied"},
    {
        "masking.next_item_share": 1.0,
        "model.predict_from": "last_item",
        "model.norm": "pre",
        "model.head": "tied",
    },
    {
        "model.positions": "rotary",
        "model.norm": "pre",
        "masking.next_item_share": 0.25,
        "model.scale_embeddings": True,
    },
    {
        "model.positions": "rotary",
        "model.norm": "post",
        "model.head": "tied",
        "masking.next_item_share": 0.25,
    },
]


# The step of accelerators without their kernels, which run nowhere else.
WITHOUT_KERNELS = {"model.attention": "dense", "loss.chunk_items": 16}


def loss_of_batch(config, num_items, params, packed, machine):
    """Returns the summed loss of the eight rows of a batch at step 0, and the number of targets."""
    return batch_loss(
        StepSpec(config, num_items, 16),
        params,
        packed,
        np.arange(8),
        step_keys(jax.random.key(0), 0),
        Placement(machine),
    )


@pytest.mark.parametrize("machine", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("choice", CHOICES)
def test_loss_of_packed_rows_equals_that_of_single_unpadded_histories(cache, choice, machine):
    config = small_config(
        cache,
        **choice,
        **{"model.init_scale": 0.3},
        **({} if machine == "cpu" else WITHOUT_KERNELS | {"model.layers": 4}),
    )
    dataset = load_dataset(config.data, config.filter)
    split = split_dataset(dataset, config.split)
    packed = TrainingBatches(dataset, split, 16, 8, "newest", 0).batch(2)
    assert packed.segments.max() >= 2
    n = dataset.num_items
    params = model.init_params(config.model, n, jax.random.key(1))
    params["items"]["bias"] = jax.random.normal(jax.random.key(2), params["items"]["bias"].shape)
    total, targets = loss_of_batch(config, n, params, packed, machine)

    table, bias = (np.asarray(params["items"][k], np.float64) for k in ("embedding", "bias"))
    causal = (
        np.arange(8) % 4 == 3
        if config.masking.next_item_share == 0.25
        else np.full(8, config.masking.next_item_share == 1)
    )
    chosen = np.flatnonzero(~causal)
    rows = jax.tree.map(lambda x: x[chosen], packed)
    task = mask_items(
        config.masking, rows, 16, n, stream_key(jax.random.key(0), "masking", 0), chosen
    )
    tokens = packed.tokens.copy()
    tokens[chosen] = task.tokens
    expected, count = 0.0, 0
    for row in range(8):
        for number in range(1, packed.segments[row].max() + 1):
            inside = packed.segments[row] == number
            seen, true = tokens[row, inside], packed.tokens[row, inside]
            h = naive_encoder(config.model, params["encoder"], table[seen], causal[row])
            pairs = (
                [(i, true[i + 1]) for i in range(len(true) - 1)]
                if causal[row]
                else [(i, true[i]) for i in np.flatnonzero(seen != true)]
            )
            for column, label in pairs:
                logits = h[column] @ table[1 : n + 1].T + bias[1 : n + 1]
                expected += (
                    np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label - 1]
                )
                count += 1
    assert int(targets) == count > 20
    np.testing.assert_allclose(float(total), expected, rtol=2e-5)


def test_padding_and_other_histories_never_matter(cache):
    config = small_config(cache)
    params = model.init_params(config.model, 60, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(1, 61, (1, 16)).astype(np.int32)
    segments = np.array([[1] * 6 + [2] * 7 + [0] * 3], np.int32)
    positions = np.array([[*range(6), *range(7), 0, 0, 0]], np.int32)
    slots = np.arange(6, dtype=np.int32)[None]

    def hidden(tokens):
        x = lookup(params["items"]["embedding"], tokens)
        return np.asarray(
            model.encode(
                config.model,
                params["encoder"],
                x,
                model.Inputs(tokens, segments, positions, slots),
                None,
                False,
                "cpu",
            )
        )

    changed = tokens.copy()
    changed[0, 6:] = np.random.default_rng(1).integers(1, 61, 10)
    np.testing.assert_array_equal(hidden(tokens), hidden(changed))
    changed = tokens.copy()
    changed[0, 0] += 1
    assert np.abs(hidden(tokens) - hidden(changed))[0, 1:].max() > 1e-6


def test_everything_that_is_to_be_dropped_draws_for_itself_at_its_rate(cache, monkeypatch):
    config = small_config(
        cache, **{"model.dropout": 0.25, "model.attention_dropout": 0.5, "model.max_length": 6}
    )
    params = model.init_params(config.model, 60, jax.random.key(0))
    numbers, places = jnp.arange(6)[None], []

    def noting(x, rate, keys):
        places.append((rate, x.shape, jax.random.key_data(keys.key)))
        return x

    monkeypatch.setattr(model, "dropout", noting)
    monkeypatch.setattr("bert4rec_jax.model.attention.dropout", noting)

    @jax.jit
    def keys():
        model.encode(
            config.model,
            params["encoder"],
            jnp.ones((1, 6, 16)),
            model.Inputs(numbers, numbers * 0 + 1, numbers, None),
            model.DropoutKeys(jax.random.key(1), jnp.zeros(1, jnp.int32)),
            False,
            "cpu",
        )
        return [key for *_, key in places]

    drawn = {tuple(key.tolist()) for key in keys()}
    # The embeddings; in each of two layers the attention weights, what attention gives and what the
    # network gives.
    states, weights = (0.25, (1, 6, 16)), (0.5, (1, 2, 6, 6))
    assert [place[:2] for place in places] == [states, *[weights, states, states] * 2]
    assert len(drawn) == len(places)


def test_dropped_attention_weights_are_not_made_up_for(cache):
    # Where all values are 1, attention gives the sum of the weights: 1 on average and not in every
    # place.
    config = small_config(cache, **{"model.attention_dropout": 0.5})
    numbers = jnp.tile(jnp.arange(16), (8, 1))
    zeros = {"kernel": jnp.zeros((16, 16)), "bias": jnp.zeros(16)}
    params = {
        "query": zeros,
        "out": zeros | {"kernel": jnp.eye(16)},
        "key_value": {"kernel": jnp.zeros((16, 32)), "bias": jnp.repeat(jnp.array([0.0, 1.0]), 16)},
    }
    sums = jax.jit(
        lambda draws: model.Attention(config.model, False, "cpu").apply(
            {"params": params},
            jnp.ones((8, 16, 16)),
            model.Inputs(numbers, numbers * 0 + 1, numbers, None),
            None,
            draws,
        )
    )(model.DropoutKeys(jax.random.key(1), jnp.arange(8)))
    assert abs(float(sums.mean()) - 1) < 0.1 and float(sums.std()) > 0.1


def test_weights_are_as_large_as_configured():
    config = ModelConfig(layers=1, width=32, ffn_width=64, init_scale=0.2)
    params = jax.jit(lambda key: model.init_params(config, 500, key))(jax.random.key(0))
    for weights in (params["items"]["embedding"], params["encoder"]["block_0"]["ffn_in"]["kernel"]):
        assert float(weights.std()) == pytest.approx(
            0.88 * 0.2, rel=0.05
        )  # two deviations are cut off


@pytest.mark.parametrize("dtype, epsilon", [("float32", 1e-12), ("bfloat16", 1e-6)])
def test_layer_norm_has_the_epsilon_of_bert(dtype, epsilon):
    """Normalising values as small as sqrt(epsilon) shows how large the epsilon is."""
    config = ModelConfig(layers=1, width=16, ffn_width=16, heads=2, norm="pre", dtype=dtype)
    norm = model._layer_norm(config, "norm")
    x = jnp.array([[-1.0, 1.0]]) * epsilon**0.5
    params = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    y = norm.apply(params, x)
    np.testing.assert_allclose(np.asarray(y, np.float32), [[-(0.5**0.5), 0.5**0.5]], rtol=0.01)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_expectation(rate):
    x = jnp.ones((400, 400))
    y = model.dropout(x, rate, model.DropoutKeys(jax.random.key(0), jnp.arange(400)))
    assert abs(float((y == 0).mean()) - rate) < 0.005
    assert abs(float(y.mean()) - 1) < 0.01
    assert model.dropout(x, rate, None) is x


def test_dropout_is_independent_from_place_to_place_and_from_key_to_key():
    rows = jnp.arange(1000)
    drops = [
        np.asarray(
            model.dropout(
                jnp.ones((1000, 64)),
                0.25,
                model.DropoutKeys(jax.random.fold_in(jax.random.key(3), n), rows),
            )
            == 0
        )
        for n in range(4)
    ]
    bound = 4.5 / np.sqrt(
        drops[0].size
    )  # standard deviations of a correlation of independent draws
    for number, first in enumerate(drops):
        assert abs(first.mean() - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / first.size)
        assert np.abs(first.mean(0) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 1000)
        for lag in (1, 2, 3, 4, 8, 16, 64, 128, 4096, 16384):
            flat = first.ravel()
            assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < bound, lag
        for other in drops[:number]:
            for shift in (0, 1, 64):
                assert abs(np.corrcoef(first.ravel(), np.roll(other.ravel(), shift))[0, 1]) < bound


def test_dropout_is_a_matter_of_the_row_and_not_of_its_neighbours():
    x, key = jnp.ones((6, 5, 8)), jax.random.key(1)
    whole = model.dropout(x, 0.5, model.DropoutKeys(key, jnp.arange(6)))
    part = model.dropout(x[:2], 0.5, model.DropoutKeys(key, jnp.array([4, 1])))
    np.testing.assert_array_equal(part, whole[jnp.array([4, 1])])
    assert (whole[4] != whole[1]).any()


def test_the_gradient_of_positions_is_that_of_a_lookup():
    table, ids = jax.random.normal(jax.random.key(0), (7, 4)), jnp.array([[0, 3, 3], [6, 1, 3]])
    weights = jax.random.normal(jax.random.key(1), (2, 3, 4))
    ours = jax.grad(lambda t: (cpu.lookup_with_one_hot_gradient(t, ids) ** 2 * weights).sum())(
        table
    )
    naive = jax.grad(lambda t: (t[ids] ** 2 * weights).sum())(table)
    np.testing.assert_allclose(ours, naive, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("choice", CHOICES)
def test_lower_precision_and_recomputation_give_the_same_model(cache, choice):
    config = small_config(cache, **choice)
    dataset = load_dataset(config.data, config.filter)
    packed = TrainingBatches(
        dataset, split_dataset(dataset, config.split), 16, 8, "newest", 0
    ).batch(0)
    params = model.init_params(config.model, 60, jax.random.key(0))

    def gradient(**changes):
        changed = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))

        def loss(params):
            return loss_of_batch(changed, 60, params, packed, "cpu")[0]

        return jax.jit(jax.value_and_grad(loss))(params)

    full, remat, half = gradient(), gradient(remat=True), gradient(dtype="bfloat16")
    np.testing.assert_allclose(full[0], remat[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), full[1], remat[1])
    np.testing.assert_allclose(full[0], half[0], rtol=0.02)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(half[1]))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_layers_in_a_loop_are_those_written_out(cache, choice, remat):
    """Dropout's draws and gradients too; only a TPU has the loop."""
    config = small_config(
        cache,
        **choice,
        **WITHOUT_KERNELS,
        **{
            "model.layers": 4,
            "model.dropout": 0.2,
            "model.attention_dropout": 0.2,
            "model.remat": remat,
        },
    )
    dataset = load_dataset(config.data, config.filter)
    packed = TrainingBatches(
        dataset, split_dataset(dataset, config.split), 16, 8, "newest", 0
    ).batch(0)
    params = model.init_params(config.model, 60, jax.random.key(0))

    def gradient(machine):
        def loss(params):
            return loss_of_batch(config, 60, params, packed, machine)[0]

        return jax.jit(jax.value_and_grad(loss))(params)

    written_out, looped = gradient("gpu"), gradient("tpu")
    np.testing.assert_allclose(looped[0], written_out[0], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), looped[1], written_out[1]
    )
