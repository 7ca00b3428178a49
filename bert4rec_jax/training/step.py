# SPDX-License-Identifier: Apache-2.0
"""One update of the parameters: a pure function of the state and a batch, written for one device.

Every random number is a function of (seed, stream, step, row), so an interrupted run that is
resumed continues exactly as it would have without the interruption.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert4rec_jax.config import Config
from bert4rec_jax.data import ItemFeatures, Packed
from bert4rec_jax.devices import Layout, Placement, in_parameter_layout
from bert4rec_jax.model import (
    DropoutKeys,
    Params,
    Targets,
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
from bert4rec_jax.model.tasks import Task
from bert4rec_jax.training.optimizer import make_optimizer

STREAMS = ("params", "masking", "dropout", "negatives")


class TrainState(NamedTuple):
    """The content of a checkpoint.

    Attributes:
      step: int32, number of completed updates.
      params: see `init_params`.
      opt_state: optax state of the same structure.
      skipped: int32, updates skipped because they were not finite (`train.on_nan = "skip"`).
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    skipped: jax.Array


@dataclass(frozen=True)
class StepSpec:
    """The parts of a training step that are fixed when it is compiled.

    Attributes:
      config: the run's configuration.
      num_items: size of the catalogue.
      num_slots: K, slots of a row with masked items.
      features: features of the items, or None.
    """

    config: Config
    num_items: int
    num_slots: int
    features: ItemFeatures | None = None


class StepKeys(NamedTuple):
    """PRNG keys of one step, the same on all devices."""

    masking: jax.Array
    dropout: jax.Array
    negatives: jax.Array


def stream_key(root: jax.Array, name: str, step: jax.Array | int = 0) -> jax.Array:
    """Returns the key of a named stream at a step, independent of all other streams and steps."""
    return jax.random.fold_in(jax.random.fold_in(root, STREAMS.index(name)), step)


def step_keys(root: jax.Array, step: jax.Array | int) -> StepKeys:
    """Returns the keys of a step of the run with this root key."""
    return StepKeys(*[stream_key(root, name, step) for name in StepKeys._fields])


def init_state(config: Config, num_items: int, num_features: int = 0) -> TrainState:
    """Returns the state before the first step; a function of the configuration alone."""
    key = stream_key(jax.random.key(config.seed), "params")
    params = init_params(config.model, num_items, key, num_features)
    opt_state = make_optimizer(config.optimizer, config.train.steps).init(params)
    # Two arrays, because a donated buffer must not be donated twice.
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, jnp.zeros((), jnp.int32))


def state_template(
    config: Config, num_items: int, layout: Layout, num_features: int = 0
) -> TrainState:
    """Returns shapes, dtypes and shardings of a run's state, into which a checkpoint is restored.

    Raises:
      UserError: the rows of the item table cannot be split evenly over the items axis.
    """
    shapes = jax.eval_shape(functools.partial(init_state, config, num_items, num_features))
    layout.check_table(len(shapes.params["items"]["bias"]), "config.parallel.item_shards")
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        layout.shardings(shapes),
    )


class _TaskRows(NamedTuple):
    """The rows of a batch with the same task.

    Attributes:
      packed: the rows.
      row_numbers: int32, their numbers in the whole batch.
      task: tokens and targets.
      causal: whether attention is causal.
    """

    packed: Packed
    row_numbers: jax.Array
    task: Task
    causal: bool


def batch_loss(
    spec: StepSpec,
    params: Params,
    packed: Packed,
    row_numbers: jax.Array,
    keys: StepKeys,
    placement: Placement,
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss summed over a device's slots, and the number of slots with a target.

    Args:
      spec: the fixed parts of the step.
      params: as `fold_features` returns them.
      packed: this device's rows.
      row_numbers: int32[B], consecutive numbers of the rows in the whole batch.
      keys: PRNG keys of the step.
      placement: where the function runs.
    """
    groups = _group_by_task(spec, packed, row_numbers, keys.masking)
    encode_rows = functools.partial(_encode_rows, spec, params, keys.dropout, placement)
    # One pass over rows of both tasks reads the weights once and computes one product for each of
    # their gradients. A CPU is bound by arithmetic, not by memory. It gains more from a last layer
    # that is computed at the slots of masked items only.
    if len(groups) == 2 and placement.platform != "cpu":
        states = _encode_together(encode_rows, groups, placement.platform)
    else:
        states = [encode_rows(group, group.task.slots, group.causal) for group in groups]
    h_MD = jnp.concatenate([h.reshape(-1, h.shape[-1]) for h in states])
    labels_M = jnp.concatenate([group.task.labels.reshape(-1) for group in groups])
    weights_M = jnp.concatenate([group.task.weights.reshape(-1) for group in groups])
    total = loss_sum(
        spec.config.loss,
        spec.num_items,
        params["items"],
        h_MD,
        Targets(labels_M, weights_M),
        keys.negatives,
        placement,
    )
    return total, weights_M.sum()


def _group_by_task(
    spec: StepSpec, packed: Packed, row_numbers: jax.Array, masking_key: jax.Array
) -> list[_TaskRows]:
    """Returns the rows with masked items, then those that learn the next item, if there are any."""
    masking = spec.config.masking
    learns_next = learns_next_item(masking.next_item_share, packed.tokens.shape[0])
    groups = []
    for next_item in (False, True):
        chosen = np.flatnonzero(learns_next == next_item)
        if len(chosen) == 0:
            continue
        rows = Packed(*[x[chosen] for x in packed])
        numbers = row_numbers[chosen]
        if next_item:
            task = next_items(rows)
        else:
            task = mask_items(masking, rows, spec.num_slots, spec.num_items, masking_key, numbers)
        groups.append(_TaskRows(rows, numbers, task, next_item))
    return groups


def _encode_rows(
    spec: StepSpec,
    params: Params,
    dropout_key: jax.Array,
    placement: Placement,
    rows: _TaskRows,
    slots: jax.Array | None,
    causal: bool | tuple[bool, ...],
) -> jax.Array:
    """Returns the hidden states of rows at `slots`, or in all columns: float[B, K, D]."""
    model = spec.config.model
    inputs = encoder_inputs(model, rows.packed, rows.task.tokens, slots)
    x_BLD = lookup(params["items"]["embedding"], inputs.tokens, placement.items)
    keys = DropoutKeys(dropout_key, rows.row_numbers)
    return encode(model, params["encoder"], x_BLD, inputs, keys, causal, placement.platform)


def _encode_together(
    encode_rows: Callable[..., jax.Array], groups: list[_TaskRows], platform: str
) -> list[jax.Array]:
    """Returns the hidden states of both groups at their slots, computed in one pass."""
    masked, next_item = groups
    together = _TaskRows(
        Packed(*[jnp.concatenate(x) for x in zip(masked.packed, next_item.packed)]),
        jnp.concatenate([masked.row_numbers, next_item.row_numbers]),
        masked.task._replace(tokens=jnp.concatenate([masked.task.tokens, next_item.task.tokens])),
        causal=False,
    )
    sizes = [len(group.task.tokens) for group in groups]
    causal = (False,) * sizes[0] + (True,) * sizes[1]
    h_BLD = encode_rows(together, None, causal)
    slots = masked.task.slots
    assert slots is not None  # only next-item tasks predict at all columns
    return [at_slots(h_BLD[: sizes[0]], slots, platform), h_BLD[sizes[0] :]]


def train_step(
    spec: StepSpec,
    state: TrainState,
    packed: Packed,
    root: jax.Array,
    placement: Placement,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update, written for one device's rows.

    Args:
      spec: the fixed parts of the step.
      state: before the update.
      packed: this device's rows.
      root: the run's root key.
      placement: where the function runs; sums go over the devices of its axes.

    Returns:
      The new state, and `loss` (mean over the batch's targets), `targets`, `grad_norm`.
    """
    config = spec.config
    fold = functools.partial(fold_features, features=spec.features, axis=placement.items)
    params, unfold = jax.vjp(fold, state.params)
    keys = step_keys(root, state.step)
    with jax.default_matmul_precision(config.model.matmul_precision):
        total, targets, gradient = _sum_parts(spec, params, packed, keys, placement)

    # Sums of numerators and denominators, because shards have different numbers of targets.
    total, targets = placement.sum((total, targets))
    items_gradient = jax.tree.map(
        lambda g: in_parameter_layout(g, placement.platform), gradient["items"]
    )
    gradient = {
        "items": placement.sum(items_gradient, over_items=False),
        "encoder": placement.sum(gradient["encoder"]),
    }
    (gradient,) = unfold(jax.tree.map(lambda g: g / targets, gradient))
    if spec.features is not None:
        gradient["features"] = placement.sum(gradient["features"], over_data=False)
    norm = _global_norm(gradient, placement)
    if config.optimizer.clip_norm:
        shrink = jnp.minimum(1.0, config.optimizer.clip_norm / norm)
        gradient = jax.tree.map(lambda g: g * shrink, gradient)

    new = _updated(config, state, gradient)
    if config.train.on_nan == "skip":
        finite = jnp.isfinite(norm) & jnp.isfinite(total)
        new = _keep_if(finite, new, state)
    return new, {"loss": total / targets, "targets": targets, "grad_norm": norm}


def _sum_parts(
    spec: StepSpec, params: Params, packed: Packed, keys: StepKeys, placement: Placement
) -> tuple[jax.Array, jax.Array, Params]:
    """Returns the summed loss, number of targets and gradient of all parts of a device's rows."""
    rows = packed.tokens.shape[0]
    parts = spec.config.train.accumulate
    rows_per_part = rows // parts

    def gradient_of_part(part: Any, packed_part: Any) -> Any:
        first = placement.index() * rows + part * rows_per_part
        row_numbers = first + np.arange(rows_per_part)

        def loss(params: Any) -> Any:
            return batch_loss(spec, params, packed_part, row_numbers, keys, placement)

        (total, targets), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return total, targets, gradient

    if parts == 1:
        return gradient_of_part(0, packed)

    def add_part(sums: Any, part: Any) -> Any:
        return jax.tree.map(jnp.add, sums, gradient_of_part(*part)), None

    split = jax.tree.map(lambda x: x.reshape(parts, rows_per_part, *x.shape[1:]), packed)
    first_part = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(gradient_of_part, 0, first_part)
    zeros = jax.tree.map(jnp.zeros_like, shapes)
    sums, _ = jax.lax.scan(add_part, zeros, (jnp.arange(parts), split))
    return sums


def _global_norm(gradient: Params, placement: Placement) -> jax.Array:
    """Returns the norm of a gradient whose `items` are this device's shard."""
    whole = {name: g for name, g in gradient.items() if name != "items"}
    items_square = placement.sum(_square_sum(gradient["items"]), over_data=False)
    return jnp.sqrt(items_square + _square_sum(whole))


def _square_sum(tree: Any) -> Any:
    return sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))


def _updated(config: Config, state: TrainState, gradient: Params) -> TrainState:
    """Returns the state after the optimizer's update."""
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state, state.skipped)


def _keep_if(finite: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """Returns `new` if the update is finite, otherwise `old` with the update counted as skipped."""
    params, opt_state = jax.tree.map(
        lambda after, before: jnp.where(finite, after, before),
        (new.params, new.opt_state),
        (old.params, old.opt_state),
    )
    return TrainState(new.step, params, opt_state, old.skipped + ~finite)
