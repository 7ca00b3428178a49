# SPDX-License-Identifier: Apache-2.0
"""Adam and AdamW with warm-up and decay."""

import jax
import optax

from bert4rec_jax.config import OptimizerConfig


def warmup_steps(config: OptimizerConfig, steps: int) -> int:
    """Returns the length of the warm-up: half of a run that is too short for `warmup_steps`."""
    return config.warmup_steps if config.warmup_steps < steps else steps // 2


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate of each step in a run of `steps` updates.

    The rate grows linearly and reaches its peak at the end of the warm-up. Then it is constant, or
    decays along a line or a cosine to `final_fraction` of the peak.
    """
    peak = config.learning_rate
    warmup = warmup_steps(config, steps)
    decay_steps = steps - warmup
    if config.schedule == "linear":
        main = optax.linear_schedule(peak, peak * config.final_fraction, decay_steps)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, decay_steps, config.final_fraction)
    else:
        main = optax.constant_schedule(peak)
    if warmup == 0:
        return main
    growth = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([growth, main], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `steps` updates.

    Weight decay does not apply to vectors (biases and LayerNorm scales). The train step clips the
    gradient, because the global norm of a sharded item table is a sum over devices.
    """
    schedule = learning_rate(config, steps)
    betas = {"b1": config.beta1, "b2": config.beta2}
    if config.name == "adam":
        return optax.adam(schedule, **betas)
    return optax.adamw(
        schedule,
        weight_decay=config.weight_decay,
        **betas,
        mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    )
