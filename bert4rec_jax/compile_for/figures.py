# SPDX-License-Identifier: Apache-2.0
"""Compiling a run for machines that are not here: does it fit, and what binds it?

The compiler is the target's own, so what it says of memory and of bytes sent is what a run would have. Times are
bounds: operations and bytes divided by the speed that the maker publishes. Nothing is run, nothing is measured.
"""

import functools
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.data import ItemFeatures, Packed, feature_count
from bert4rec_jax.devices import Layout
from bert4rec_jax.devices.communication import Job
from bert4rec_jax.devices.program import accessed_bytes, operations, parse, sent_bytes
from bert4rec_jax.devices.targets import Target
from bert4rec_jax.errors import UserError
from bert4rec_jax.experiment import Experiment, state_template
from bert4rec_jax.model import Inputs, masks_per_history
from bert4rec_jax.ranking import Histories, rank_step
from bert4rec_jax.training import StepSpec, train_step


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a run's arrays take from its data.

    Attributes:
      num_items: size of the catalogue.
      slots: K, masked slots of a row in training.
      histories: that a device ranks at once.
      histories_in_a_row: the most of them in one row.
      removed: pairs of a history and an item it has seen, of a device.
      features: of the items, or None.
    """

    num_items: int
    slots: int
    histories: int
    histories_in_a_row: int
    removed: int
    features: ItemFeatures | None = None

    @property
    def num_features(self) -> int:
        """How many features there are."""
        return feature_count(self.features)


@dataclass(frozen=True)
class Report:
    """What the compiler says of one step.

    Attributes:
      name: "training" or "ranking".
      compile_seconds: on this machine, tracing left out.
      compile_cpu_seconds: of its processors meanwhile, which a machine that is busy with other work does not change.
      memory_bytes: that a device needs for state, batch and everything in between; None where it does not fit and the
        compiler does not say.
      fits: whether the device has them.
      error: what the compiler says where it does not fit.
      operations: of matrix products, on a device.
      memory_traffic_bytes: between a device and its own memory.
      all_traffic_bytes: with what the compiler keeps on the chip.
      arithmetic_seconds: operations at the published speed.
      memory_seconds: memory traffic at the published speed.
      sent_bytes: by a device, by kind of collective.
      least_sent_bytes: what formulas say cannot be avoided; None where there are none.
      positions_per_second: bound for all devices, from whichever of the two takes longer.
      formula_bytes: what docs/scaling.md makes of it beforehand; None for ranking.
    """

    name: str
    compile_seconds: float
    compile_cpu_seconds: float
    memory_bytes: int | None
    fits: bool
    error: str = ""
    operations: float = 0.0
    memory_traffic_bytes: int = 0
    all_traffic_bytes: int = 0
    arithmetic_seconds: float = 0.0
    memory_seconds: float = 0.0
    sent_bytes: dict[str, float] | None = None
    least_sent_bytes: float | None = None
    positions_per_second: float = 0.0
    formula_bytes: float | None = None

    @property
    def memory_ratio(self) -> float:
        """Returns how much longer memory traffic takes than arithmetic."""
        return self.memory_seconds / self.arithmetic_seconds


def sizes_of_data(config: Config, layout: Layout) -> Sizes:
    """Returns the sizes that a run of `config` has on its data, which are loaded as the run would load them."""
    experiment = Experiment(config, layout)
    histories = experiment.ranker("test").histories
    return Sizes(
        experiment.num_items,
        experiment.num_slots,
        histories.size,
        histories.slots_in_a_row,
        histories.pairs,
        experiment.features,
    )


def assumed_sizes(config: Config, layout: Layout, num_items: int) -> Sizes:
    """Returns sizes for a catalogue of `num_items` without any data: rows that are nearly one long history each.

    Raises:
      UserError: the configuration has item features, which only data have.
    """
    if config.data.feature_columns:
        raise UserError(
            "config.data.features stand in the item table, which --items leaves unread; leave one of them "
            "out."
        )
    c, length = config, config.model.max_length
    rows = c.eval.batch_rows // layout.num_devices
    return Sizes(
        num_items,
        min(int(masks_per_history(c.masking, length)[length]) + 3, length),
        2 * rows,
        4,
        rows * length,
    )


def programs(config: Config, sizes: Sizes, layout: Layout) -> dict[str, tuple[Any, tuple]]:
    """Returns the training step and the ranking step: mapped functions, and shapes to lower them with."""
    state = state_template(config, sizes.num_items, layout, sizes.num_features)
    key = jax.eval_shape(lambda: jax.random.key(0))
    length, sharding = config.model.max_length, layout.row_sharding()

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

    batch = Packed(*[array(config.train.batch_rows, length)] * 4)
    spec = StepSpec(config, sizes.num_items, sizes.slots, sizes.features)
    step = layout.compile_update(functools.partial(train_step, spec), state)
    rows, cases = config.eval.batch_rows, sizes.histories * layout.num_devices
    pairs = sizes.removed * layout.num_devices if config.eval.filter_seen else 0
    tokens = array(rows, length)
    histories = Histories(
        Inputs(tokens, tokens, tokens, array(rows, sizes.histories_in_a_row)),
        array(cases),
        array(pairs),
        array(pairs),
    )
    params = {
        name: state.params[name] for name in ("items", "encoder")
    }  # as `fold_features` returns them
    rank = functools.partial(rank_step, config, sizes.num_items, True)
    ranking = layout.compile_per_row(rank, params)
    return {
        "training": (step, (state, batch, key)),
        "ranking": (ranking, (params, (histories, (array(cases), array(cases, 0))))),
    }


def compiled(
    name: str,
    function: Any,
    arguments: tuple,
    target: Target,
    devices: int,
    positions: int,
    least_sent: float | None,
    formula: float | None,
) -> Report:
    """Compiles one step and reads the result.

    Args:
      name: of the step.
      function: mapped by a layout over the target's devices.
      arguments: shapes.
      target: see `targets`.
      devices: how many take part.
      positions: of all rows of a batch, for the bound.
      least_sent: see `Report`.
      formula: bytes, see `Report.formula_bytes`.
    """
    traced = function.trace(*arguments)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    try:
        program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        return Report(
            name,
            time.perf_counter() - begin,
            time.process_time() - begin_cpu,
            needed_bytes(str(error)),
            False,
            str(error).splitlines()[0][:300],
            formula_bytes=formula,
        )
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
    sizes, text = program.memory_analysis(), parse(program.as_text())
    memory = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )
    chip = target.chip
    done, moved = operations(traced.jaxpr), accessed_bytes(text)
    arithmetic, traffic = done / chip.flops, moved / chip.bandwidth
    return Report(
        name,
        seconds,
        cpu_seconds,
        memory,
        memory <= chip.memory,
        "",
        done,
        moved,
        accessed_bytes(text, slow_only=False),
        arithmetic,
        traffic,
        {k: v for k, v in sent_bytes(text, devices).items() if v},
        least_sent,
        positions / max(arithmetic, traffic),
        formula,
    )


def needed_bytes(error: str) -> int | None:
    """Returns how much memory a compiler says that it would need at least, None where it does not say."""
    used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMG])\)? (?:of|exceeds)", error)
    return int(float(used[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[used[2]]) if used else None


def report(
    config: Config,
    target: Target,
    num_items: int = 0,
    steps: tuple[str, ...] = ("training", "ranking"),
) -> list[Report]:
    """Compiles the steps of a run for a target.

    Args:
      config: of the run.
      target: prepared before JAX started.
      num_items: size of the catalogue, for shapes without data; 0: as in the data, which are loaded.
      steps: which of them.
    """
    layout = Layout(config.parallel, target.devices())
    for rows, field in (
        (config.train.batch_rows, "config.train.batch_rows"),
        (config.eval.batch_rows, "config.eval.batch_rows"),
    ):
        layout.check_rows(rows, field)
    try:
        sizes = (
            assumed_sizes(config, layout, num_items) if num_items else sizes_of_data(config, layout)
        )
    except UserError as error:
        if num_items or config.data.feature_columns:
            raise
        raise UserError(
            f"{error} --compile_for needs no data where --items gives the size of the catalogue."
        ) from None
    job, model = _job(config, sizes, layout), config.model
    least = job.least() if config.loss.name == "softmax" else None
    formula = (
        job.state_bytes()
        + job.activation_bytes(model.layers, model.ffn_width) / config.train.accumulate
    )
    both = programs(config, sizes, layout)
    rows = {
        "training": (config.train.batch_rows, least, formula),
        "ranking": (config.eval.batch_rows, None, None),
    }
    return [
        compiled(
            name,
            *both[name],
            target,
            layout.num_devices,
            rows[name][0] * config.model.max_length,
            *rows[name][1:],
        )
        for name in steps
    ]


def _job(config: Config, sizes: Sizes, layout: Layout) -> Job:
    """Returns what the formulas of docs/scaling.md need to know."""
    c, state = config, state_template(config, sizes.num_items, layout)
    encoder = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(state.params["encoder"]))
    share, length = c.masking.next_item_share, c.model.max_length
    return Job(
        state.params["items"]["bias"].shape[0],
        c.model.width,
        encoder,
        c.train.batch_rows // layout.num_devices,
        length,
        share * length + (1 - share) * sizes.slots,
        layout.num_devices // c.parallel.item_shards,
        c.parallel.item_shards,
        2 if c.model.dtype == "bfloat16" else 4,
    )
