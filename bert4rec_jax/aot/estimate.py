# SPDX-License-Identifier: Apache-2.0
"""Compiles the steps of a run for a target: memory use, operation counts and a bound on the speed.

The target's own compiler reports the memory. Times are lower bounds, because operations are divided
by the published peak of the device. Nothing is run or measured.
"""

import functools
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bert4rec_jax.aot.operations import count_operations
from bert4rec_jax.aot.targets import Target
from bert4rec_jax.config import Config
from bert4rec_jax.data import ItemFeatures, Packed, feature_count
from bert4rec_jax.devices import Layout, step_memory
from bert4rec_jax.errors import UserError
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.model import Inputs, masks_per_history
from bert4rec_jax.ranking import Histories, rank_step
from bert4rec_jax.training import StepSpec, state_template, train_step


@dataclass(frozen=True)
class Sizes:
    """Array sizes that depend on the data.

    Attributes:
      num_items: number of items.
      slots: K, masked slots per row in training.
      histories: histories that a device ranks at once.
      histories_per_row: most histories in a row.
      seen_pairs: pairs of a history and an item it contains, on each device.
      features: item features, if any.
    """

    num_items: int
    slots: int
    histories: int
    histories_per_row: int
    seen_pairs: int
    features: ItemFeatures | None = None


@dataclass(frozen=True)
class Step:
    """A step to compile.

    Attributes:
      name: "training" or "ranking".
      function: compiled by a layout over the target's devices.
      arguments: their shapes and shardings.
      positions: in all rows of a batch.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    positions: int


@dataclass(frozen=True)
class Report:
    """The compiler's report on one step.

    Attributes:
      name: "training" or "ranking".
      compile_seconds: on this machine, without tracing.
      compile_cpu_seconds: processor time of the same, which does not depend on other work of the
        machine.
      memory_bytes: per device, for state, batch and temporary arrays; None if the step does not fit
        and the compiler does not report the size.
      fits: whether the device has this much memory.
      error: the compiler's message if the step does not fit.
      operations: of matrix products, on each device.
      arithmetic_seconds: operations divided by the device's peak.
      positions_per_second: upper bound from arithmetic, for all devices together.
    """

    name: str
    compile_seconds: float
    compile_cpu_seconds: float
    memory_bytes: int | None
    fits: bool
    error: str = ""
    operations: float = 0.0
    arithmetic_seconds: float = 0.0
    positions_per_second: float = 0.0


def sizes_from_data(config: Config, layout: Layout) -> Sizes:
    """Loads the data of a run and returns its sizes."""
    experiment = Experiment(config, layout)
    histories = experiment.ranker("test").histories
    return Sizes(
        experiment.num_items,
        experiment.num_slots,
        histories.batch_size,
        histories.slots_per_row,
        histories.removed.length,
        experiment.features,
    )


def assumed_sizes(config: Config, layout: Layout, num_items: int) -> Sizes:
    """Returns sizes without data, as if most rows contained one long history.

    Raises:
      UserError: the configuration has item features, which can only be read from data.
    """
    if config.data.feature_columns:
        raise UserError(
            "config.data.features needs the item table, which --items does not read; leave out one "
            "of them."
        )
    length = config.model.max_length
    rows = config.eval.batch_rows // layout.num_devices
    masks = int(masks_per_history(config.masking, length)[length])
    return Sizes(
        num_items,
        slots=min(masks + 3, length),
        histories=2 * rows,
        histories_per_row=4,
        seen_pairs=rows * length,
    )


def training_step(config: Config, sizes: Sizes, layout: Layout) -> Step:
    """Returns the training step."""
    length = config.model.max_length
    rows = config.train.batch_rows
    state = state_template(config, sizes.num_items, layout, feature_count(sizes.features))
    spec = StepSpec(config, sizes.num_items, sizes.slots, sizes.features)
    step = functools.partial(train_step, spec)
    batch = Packed(*[_integers(layout, rows, length)] * 4)
    function = layout.compile_update(step, state)
    return Step("training", function, (state, batch, _key()), rows * length)


def ranking_step(config: Config, sizes: Sizes, layout: Layout) -> Step:
    """Returns the ranking step; item features are already part of the item table."""
    length = config.model.max_length
    rows = config.eval.batch_rows
    cases = sizes.histories * layout.num_devices
    pairs = sizes.seen_pairs * layout.num_devices if config.eval.filter_seen else 0
    tokens = _integers(layout, rows, length)
    slots = _integers(layout, rows, sizes.histories_per_row)
    histories = Histories(
        Inputs(tokens, tokens, tokens, slots),
        _integers(layout, cases),
        _integers(layout, pairs),
        _integers(layout, pairs),
    )
    targets = (_integers(layout, cases), _integers(layout, cases, 0))
    state = state_template(config, sizes.num_items, layout, feature_count(sizes.features))
    params = {name: state.params[name] for name in ("items", "encoder")}
    step = functools.partial(rank_step, config, sizes.num_items, True)
    function = layout.compile_per_row(step, params)
    return Step("ranking", function, (params, (histories, targets)), rows * length)


def _integers(layout: Layout, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout.row_sharding())


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def compile_step(
    step: Step, target: Target, layout: Layout
) -> tuple[Report, jax.stages.Compiled | None]:
    """Compiles one step for a target; returns the report, and the program if it fits."""
    # Without the mesh in context, newer versions of JAX look for a real device of the target's
    # platform.
    with jax.sharding.use_abstract_mesh(layout.abstract_mesh):
        traced = step.function.trace(*step.arguments)
        begin = time.perf_counter()
        begin_cpu = time.process_time()
        error = ""
        program = None
        try:
            program = traced.lower().compile()
        except jax.errors.JaxRuntimeError as raised:
            error = str(raised)
            if "RESOURCE_EXHAUSTED" not in error and "out of memory" not in error.lower():
                raise
    seconds = time.perf_counter() - begin
    cpu_seconds = time.process_time() - begin_cpu
    if program is None:
        message = error.splitlines()[0][:300]
        needed = bytes_in_error(error)
        return Report(step.name, seconds, cpu_seconds, needed, False, message), None
    memory = step_memory(program)
    operations = count_operations(traced.jaxpr)
    arithmetic_seconds = operations / target.chip.flops
    report = Report(
        step.name,
        seconds,
        cpu_seconds,
        memory,
        memory <= target.chip.memory,
        operations=operations,
        arithmetic_seconds=arithmetic_seconds,
        positions_per_second=step.positions / arithmetic_seconds,
    )
    return report, program


def bytes_in_error(error: str) -> int | None:
    """Returns the needed memory in a compiler's error message, or None if it is not named."""
    used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMG])\)? (?:of|exceeds)", error)
    if not used:
        return None
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}[used[2]]
    return int(float(used[1]) * unit)


def report(config: Config, target: Target, num_items: int = 0) -> list[Report]:
    """Compiles the training and the ranking step of a run for a target.

    Args:
      config: configuration of the run.
      target: prepared before JAX looked for devices.
      num_items: number of items, to compile without data; 0: load the data.

    Raises:
      UserError: batches cannot be split over the devices, or the data cannot be loaded.
    """
    layout = Layout(config.parallel, target.devices())
    layout.check_rows(config.train.batch_rows, "config.train.batch_rows")
    layout.check_rows(config.eval.batch_rows, "config.eval.batch_rows")
    sizes = _sizes(config, layout, num_items)
    steps = [training_step(config, sizes, layout), ranking_step(config, sizes, layout)]
    return [compile_step(step, target, layout)[0] for step in steps]


def _sizes(config: Config, layout: Layout, num_items: int) -> Sizes:
    if num_items:
        return assumed_sizes(config, layout, num_items)
    try:
        return sizes_from_data(config, layout)
    except UserError as error:
        if config.data.feature_columns:
            raise
        raise UserError(
            f"{error} To use --compile_for without data, give the number of items with --items."
        ) from None
