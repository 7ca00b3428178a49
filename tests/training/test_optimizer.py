# SPDX-License-Identifier: Apache-2.0
"""The learning rate of each step, and the parameters that weight decay applies to."""

import jax.numpy as jnp
import numpy as np
import pytest

from bert4rec_jax.config import OptimizerConfig
from bert4rec_jax.training.optimizer import learning_rate, make_optimizer, warmup_steps


@pytest.mark.parametrize(
    "schedule, middle, last", [("constant", 2.0, 2.0), ("linear", 1.1, 0.2), ("cosine", 1.1, 0.2)]
)
def test_the_learning_rate_warms_up_and_decays(schedule, middle, last):
    config = OptimizerConfig(
        learning_rate=2.0, warmup_steps=4, schedule=schedule, final_fraction=0.1
    )
    rate = learning_rate(config, 24)
    np.testing.assert_allclose([rate(step) for step in range(5)], [0.5, 1.0, 1.5, 2.0, 2.0])
    np.testing.assert_allclose([rate(14), rate(24)], [middle, last], rtol=1e-6)


def test_without_warm_up_the_rate_starts_at_its_peak():
    config = OptimizerConfig(learning_rate=2.0, schedule="linear")
    np.testing.assert_allclose([learning_rate(config, 10)(step) for step in (0, 5)], [2.0, 1.0])


def test_a_warm_up_that_does_not_fit_is_shortened():
    config = OptimizerConfig(warmup_steps=200)
    assert warmup_steps(config, 201) == 200
    assert warmup_steps(config, 200) == 100


def test_weight_decay_applies_to_matrices_only():
    config = OptimizerConfig(name="adamw", learning_rate=0.5, weight_decay=0.1)
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.full((2, 3), 4.0), "bias": jnp.full(3, 4.0)}
    zeros = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.1 * 4.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)
