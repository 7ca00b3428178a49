# SPDX-License-Identifier: Apache-2.0
"""One update of the parameters: a pure function of the state and a batch, written for one device.

Every random number is a function of (seed, stream, step, row), so a run that is stopped and started again continues
exactly as it would have.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert4rec_jax.config import Config
from bert4rec_jax.data import ItemFeatures, Packed
from bert4rec_jax.devices import Axes, Layout, in_parameter_layout
from bert4rec_jax.devices.platform import platform
from bert4rec_jax.model import (
    Draws,
    at_slots,
    encode,
    encoder_inputs,
    fold_features,
    init_params,
    learns_next_item,
    lookup,
    loss_sum,
    mask_items,
    next_items,
)
from bert4rec_jax.training.optimizer import make_optimizer

STREAMS = ("params", "masking", "dropout", "negatives")


class TrainState(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: int32, updates done.
      params: see `init_params`.
      opt_state: optax state of the same structure.
      skipped: int32, updates left out because they were not finite (`train.on_nan = "skip"`).
    """

    step: jax.Array
    params: Any
    opt_state: Any
    skipped: jax.Array


def stream_key(root: jax.Array, name: str, step: jax.Array | int = 0) -> jax.Array:
    """Returns the key of a named stream at a step; keys of other names and steps are independent of it."""
    return jax.random.fold_in(jax.random.fold_in(root, STREAMS.index(name)), step)


def init_state(config: Config, num_items: int, num_features: int = 0) -> TrainState:
    """Returns the state before the first step; a function of the configuration alone."""
    key = stream_key(jax.random.key(config.seed), "params")
    params = init_params(config.model, num_items, key, num_features)
    opt_state = make_optimizer(config.optimizer, config.train.steps).init(params)
    # Two arrays, as a donated buffer must not be donated twice.
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, jnp.zeros((), jnp.int32))


def state_template(
    config: Config, num_items: int, layout: Layout, num_features: int = 0
) -> TrainState:
    """Returns the shapes, dtypes and shardings of a run's state: what a checkpoint is read into.

    Raises:
      UserError: the devices of the catalogue axis cannot share the item table.
    """
    shapes = jax.eval_shape(functools.partial(init_state, config, num_items, num_features))
    layout.check_table(len(shapes.params["items"]["bias"]), "config.parallel.item_shards")
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        layout.shardings(shapes),
    )


def batch_loss(
    config: Config,
    num_items: int,
    num_slots: int,
    params: Any,
    packed: Packed,
    root: jax.Array,
    step: jax.Array,
    first_row: jax.Array | int,
    axes: Axes,
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss summed over a device's slots, and the number of them that hold a target.

    Args:
      config: the run's configuration.
      num_items: size of the catalogue.
      num_slots: slots of a row with masks, K.
      params: as `fold_features` returns them.
      packed: this device's rows.
      root: the run's root key.
      step: int32, updates done.
      first_row: number of the first of these rows in the whole batch.
      axes: see `devices.Axes`.
    """
    row_numbers = first_row + np.arange(packed.tokens.shape[0])
    learns_next = learns_next_item(config.masking.next_item_share, len(row_numbers))
    parts, tasks, causal = [], [], []
    for next_item in (False, True):
        chosen = np.flatnonzero(learns_next == next_item)
        if len(chosen) == 0:
            continue
        rows, numbers = jax.tree.map(lambda x: x[chosen], packed), row_numbers[chosen]
        task = (
            next_items(rows)
            if next_item
            else mask_items(
                config.masking,
                rows,
                num_slots,
                num_items,
                stream_key(root, "masking", step),
                numbers,
            )
        )
        parts.append((rows, numbers, task.tokens))
        tasks.append(task)
        causal.append(next_item)

    def hidden(part, slots, causal):
        rows, numbers, tokens = part
        inputs = encoder_inputs(config.model, rows, tokens, slots)
        x_BLD = lookup(params["items"]["embedding"], inputs.tokens, axes.catalogue)
        draws = Draws(stream_key(root, "dropout", step), numbers)
        return encode(config.model, params["encoder"], x_BLD, inputs, draws, causal)

    if len(parts) == 2 and platform() != "cpu":
        # One pass, which reads the weights once and multiplies once for the gradient of each. A CPU, which waits for
        # arithmetic and not for memory, gains more from a last layer that is asked at the slots of masks alone.
        masked, together = len(tasks[0].tokens), jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        h_BLD = hidden(together, None, tuple(np.sort(learns_next).tolist()))
        h_parts = [at_slots(h_BLD[:masked], tasks[0].slots), h_BLD[masked:]]
    else:
        h_parts = [
            hidden(part, task.slots, is_causal)
            for part, task, is_causal in zip(parts, tasks, causal)
        ]
    h_MD = jnp.concatenate([h.reshape(-1, h.shape[-1]) for h in h_parts])
    labels_M, weights_M = (
        jnp.concatenate([x.reshape(-1) for x in xs])
        for xs in zip(*[(task.labels, task.weights) for task in tasks])
    )
    total = loss_sum(
        config.loss,
        params["items"],
        h_MD,
        labels_M,
        weights_M,
        num_items,
        stream_key(root, "negatives", step),
        axes.catalogue,
    )
    return total, weights_M.sum()


def train_step(
    config: Config,
    num_items: int,
    num_slots: int,
    state: TrainState,
    packed: Packed,
    root: jax.Array,
    axes: Axes,
    bags: ItemFeatures | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update, written for one device's rows; sums go over the devices of `axes`.

    Args:
      config: the run's configuration.
      num_items: size of the catalogue.
      num_slots: slots of a row with masks, K.
      state: before the update.
      packed: this device's rows.
      root: the run's root key.
      axes: see `devices.Axes`.
      bags: features of the items, or None.

    Returns:
      The new state, and `loss` (mean over the batch's targets), `targets`, `grad_norm`.
    """
    rows = packed.tokens.shape[0]
    parts = config.train.accumulate
    params, unfold = jax.vjp(
        lambda params: fold_features(params, bags, axes.catalogue), state.params
    )

    def part_gradient(part, rows_of_part):
        first_row = axes.index() * rows + part * (rows // parts)
        loss = lambda params: batch_loss(  # noqa: E731
            config, num_items, num_slots, params, rows_of_part, root, state.step, first_row, axes
        )
        (loss_sum, targets), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return loss_sum, targets, gradient

    if parts == 1:
        loss_sum, targets, gradient = part_gradient(0, packed)
    else:
        split = jax.tree.map(lambda x: x.reshape(parts, rows // parts, *x.shape[1:]), packed)
        zero = jax.tree.map(
            jnp.zeros_like, jax.eval_shape(part_gradient, 0, jax.tree.map(lambda x: x[0], split))
        )
        (loss_sum, targets, gradient), _ = jax.lax.scan(
            lambda total, part: (jax.tree.map(jnp.add, total, part_gradient(*part)), None),
            zero,
            (jnp.arange(parts), split),
        )

    # Sums of numerators and denominators: shards hold different numbers of targets.
    loss_sum, targets = axes.sum((loss_sum, targets))
    gradient = {
        "items": axes.sum(jax.tree.map(in_parameter_layout, gradient["items"]), over_catalogue=False),
        "encoder": axes.sum(gradient["encoder"]),
    }
    (gradient,) = unfold(jax.tree.map(lambda g: g / targets, gradient))
    over_shards = Axes(None, axes.catalogue)
    if bags is not None:
        gradient["features"] = over_shards.sum(gradient["features"])
    whole = {name: g for name, g in gradient.items() if name != "items"}
    square = over_shards.sum(_square_sum(gradient["items"])) + _square_sum(whole)
    norm = jnp.sqrt(square)
    if config.optimizer.clip_norm:
        shrink = jnp.minimum(1.0, config.optimizer.clip_norm / norm)
        gradient = jax.tree.map(lambda g: g * shrink, gradient)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params, skipped = optax.apply_updates(state.params, updates), state.skipped
    if config.train.on_nan == "skip":
        finite = jnp.isfinite(norm) & jnp.isfinite(loss_sum)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        skipped += ~finite
    metrics = {"loss": loss_sum / targets, "targets": targets, "grad_norm": norm}
    return TrainState(state.step + 1, params, opt_state, skipped), metrics


def _square_sum(tree):
    return sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))
