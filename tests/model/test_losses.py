# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert4rec_jax.config import LossConfig
from bert4rec_jax.devices.cpu import compiler_options
from bert4rec_jax.model import losses
from bert4rec_jax.model.item_table import table_rows

N, M, D = 150, 40, 8


@pytest.fixture(scope="module")
def arrays():
    keys = jax.random.split(jax.random.key(0), 5)
    rows = table_rows(N)
    items = {
        "embedding": jax.random.normal(keys[0], (rows, D)),
        "bias": jax.random.normal(keys[1], (rows,)),
    }
    h = 3 * jax.random.normal(keys[2], (M, D))
    labels = jax.random.randint(keys[3], (M,), 1, N + 1)
    weights = (jax.random.uniform(keys[4], (M,)) < 0.8).astype(jnp.float32)
    return items, h, labels, weights


def naive(items, h, labels, weights):
    logits = h @ items["embedding"][1 : N + 1].T + items["bias"][1 : N + 1]
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels - 1))


@pytest.mark.parametrize("chunk", [0, 64, 29])
@pytest.mark.parametrize("keep", [True, False])
def test_chunked_softmax_equals_the_naive_one_in_value_and_gradient(
    arrays, chunk, keep, monkeypatch
):
    items, h, labels, weights = arrays
    if not keep:
        monkeypatch.setattr(losses, "KEEP_BYTES", 0)
    # Three times: the gradient that comes from above is not always 1.
    loss = lambda items, h: (
        3
        * losses.loss_sum(  # noqa: E731
            LossConfig(chunk_items=chunk), items, h, labels, weights, N, jax.random.key(0)
        )
    )
    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(items, h)
    expected, expected_gradient = jax.value_and_grad(
        lambda *x: 3 * naive(*x, labels, weights), argnums=(0, 1)
    )(items, h)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=6e-5),
        gradient,
        expected_gradient,
    )


def test_softmax_survives_large_logits(arrays):
    items, h, labels, weights = arrays
    value = losses.loss_sum(
        LossConfig(chunk_items=16), items, 1e4 * h, labels, weights, N, jax.random.key(0)
    )
    np.testing.assert_allclose(value, naive(items, 1e4 * h, labels, weights), rtol=1e-5)


def test_memory_does_not_grow_with_the_catalogue_times_the_slots(monkeypatch):
    monkeypatch.setattr(losses, "KEEP_BYTES", 2**20)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 2**20)
    n, m, d = 8190, 1024, 4

    def peak(chunk):
        items = {"embedding": jnp.zeros((table_rows(n), d)), "bias": jnp.zeros(table_rows(n))}
        loss = lambda items, h: losses.loss_sum(  # noqa: E731
            LossConfig(chunk_items=chunk),
            items,
            h,
            jnp.ones(m, jnp.int32),
            jnp.ones(m),
            n,
            jax.random.key(0),
        )
        compiled = (
            jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=compiler_options())
            .lower(items, jnp.zeros((m, d)))
            .compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    logits = n * m * 4
    assert peak(n + 100) > 0.9 * logits
    assert peak(0) < 0.15 * logits


def test_sampled_softmax_estimates_the_full_loss(arrays):
    items, h, labels, weights = arrays
    items, h = jax.tree.map(lambda x: 0.3 * x, (items, h))
    full = float(naive(items, h, labels, weights))
    config = LossConfig(name="sampled_softmax", negatives=100)
    sampled = [
        float(losses.loss_sum(config, items, h, labels, weights, N, jax.random.key(k)))
        for k in range(40)
    ]
    assert abs(np.mean(sampled) - full) < 0.01 * full


def test_the_partition_function_of_sampled_softmax_is_unbiased():
    # (n - 1) / N instead of n / N would be a tenth too little; the first and the last item count three times, so that
    # it shows if one of them is never drawn.
    n, negatives, draws = 10, 5, 4000
    bias = jnp.zeros(table_rows(n)).at[jnp.array([1, n])].set(np.log(3))
    items = {"embedding": jnp.zeros((table_rows(n), 1)), "bias": bias}
    config = LossConfig(name="sampled_softmax", negatives=negatives)
    loss = lambda key: losses.loss_sum(  # noqa: E731
        config, items, jnp.ones((1, 1)), jnp.array([1]), jnp.ones(1), n, key
    )
    partition = 3 * np.exp(jax.vmap(loss)(jax.random.split(jax.random.key(0), draws)))
    assert abs(partition.mean() - (n + 4)) < 4 * partition.std() / np.sqrt(draws) < 0.4


@pytest.mark.parametrize("name", ["sampled_softmax", "gbce"])
def test_a_slot_without_weight_does_not_count_in_sampled_losses(arrays, name):
    items, h, labels, weights = arrays
    config = LossConfig(name=name, negatives=20)
    used = np.flatnonzero(weights)
    assert 0 < len(used) < M
    value, expected = (
        losses.loss_sum(config, items, h[s], labels[s], weights[s], N, jax.random.key(0))
        for s in (slice(None), used)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def gbce_of_scores(scores_N, labels, weights, negatives, t):
    """The loss of slots that all have these scores of items 1.."""
    table = jnp.concatenate([jnp.zeros(1), scores_N])[:, None]
    return losses.gbce(
        jnp.ones((len(labels), 1)),
        table,
        jnp.zeros(len(table)),
        labels,
        weights,
        negatives,
        num_items=len(scores_N),
        t=t,
    )


def test_gbce_is_least_at_the_true_probabilities_when_it_is_calibrated():
    # Section 5 of the paper: with t = 1 the sigmoid of a score tends to the item's probability, with t = 0 it exceeds
    # it the more, the fewer negatives are drawn.
    n = 1000
    p = np.random.default_rng(0).dirichlet(np.ones(n))
    labels, halves = (
        jnp.arange(1, n + 1),
        np.random.default_rng(1).permutation(n).reshape(2, -1) + 1,
    )

    def pull(t):
        loss = lambda scores: (
            sum(
                gbce_of_scores(scores, labels, jnp.asarray(p), jnp.asarray(half), t)  # noqa: E731
                for half in halves
            )
            / 2
        )
        return np.asarray(jax.grad(loss)(jnp.asarray(np.log(p) - np.log1p(-p)))) * (n / 2 + 1) / p

    assert np.abs(pull(1.0)).max() < 0.005
    assert (pull(0.0) < -0.4).all() and (pull(0.5) < -0.2).all()


def test_gbce_does_not_grow_with_the_number_of_negatives():
    for count in (1, 20):
        negatives = jnp.full(count, 7)
        value = gbce_of_scores(jnp.zeros(50), jnp.array([3]), jnp.ones(1), negatives, 0.0)
        np.testing.assert_allclose(value, np.log(2), rtol=1e-6)


def test_a_negative_that_is_the_target_does_not_count():
    with_target = gbce_of_scores(
        jnp.arange(50.0), jnp.array([3]), jnp.ones(1), jnp.array([9, 3]), 0.0
    )
    without = gbce_of_scores(jnp.arange(50.0), jnp.array([3]), jnp.ones(1), jnp.array([9]), 0.0)
    np.testing.assert_allclose(3 * with_target, 2 * without, rtol=1e-6)


def test_calibration_is_configured_and_has_nothing_to_mend_where_no_item_is_left_out():
    n = 9
    items = {"embedding": jnp.zeros((table_rows(n), 1)), "bias": jnp.zeros(table_rows(n))}
    value = lambda t: float(
        losses.loss_sum(  # noqa: E731
            LossConfig(name="gbce", negatives=4, gbce_t=t),
            items,
            jnp.ones((1, 1)),
            jnp.array([3]),
            jnp.ones(1),
            n,
            jax.random.key(0),
        )
    )
    # Half of the other items are drawn, so t = 1 halves the positive part, which is log 2 here.
    np.testing.assert_allclose(value(0.0) - value(1.0), 0.5 * np.log(2) / 5, rtol=1e-4)
    others = jnp.array([1, 2, 4, 5, 6, 7, 8, 9])
    for negatives in (others, jnp.concatenate([others, others])):
        plain, calibrated = (
            gbce_of_scores(jnp.linspace(-1, 1, n), jnp.array([3]), jnp.ones(1), negatives, t)
            for t in (0.0, 1.0)
        )
        np.testing.assert_allclose(calibrated, plain, rtol=1e-5)
