# SPDX-License-Identifier: Apache-2.0
"""Adam and AdamW with warm-up and decay."""

import jax
import optax

from bert4rec_jax.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns step -> rate: a linear warm-up that reaches the peak at step `warmup_steps`, then the schedule.

    That is constant, or linear or cosine down to `final_fraction` of the peak.
    """
    peak, decay_steps = config.learning_rate, steps - config.warmup_steps
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, peak * config.final_fraction, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps, config.final_fraction),
    }[config.schedule]()
    if config.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps - 1)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `steps` updates.

    Weight decay leaves out vectors: biases and LayerNorm scales. Clipping is the step's own affair, because the
    global norm of a split item table is a sum over devices.
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
