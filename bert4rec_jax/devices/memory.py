# SPDX-License-Identifier: Apache-2.0
"""Memory on devices: how much a compiled step and a state need, and whether it is free."""

import math
from typing import Any

import jax

from bert4rec_jax.config import Config
from bert4rec_jax.errors import UserError
from bert4rec_jax.host_memory import free_host_memory


def step_memory(program: jax.stages.Compiled) -> int:
    """Returns the bytes that a compiled program takes per device, including temporary arrays."""
    sizes: Any = program.memory_analysis()
    # An array that is updated in place is both an argument and an output.
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )


def check_memory(config: Config, state: Any) -> None:
    """Rejects a state that does not fit into memory, before anything is allocated.

    A process that requests more memory than exists may hang in XLA or be killed silently.

    Args:
      config: configuration of the run.
      state: parameters and moments as `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      UserError: parameters, moments and gradients alone exceed the free memory.
    """
    devices = jax.tree.leaves(state)[0].sharding.device_set
    needed = _bytes_per_device(state) + _bytes_per_device(state.params)
    free = _free_per_device(len(devices))
    if free is not None and needed > free:
        raise UserError(
            "out of memory: parameters, optimizer moments and gradients alone take "
            f"{needed / 2**30:.2f} GiB on each device, and {free / 2**30:.2f} GiB are free. "
            f"{memory_advice(config)}"
        )


def _bytes_per_device(tree: Any) -> int:
    total = 0
    for array in jax.tree.leaves(tree):
        total += math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
    return total


def _free_per_device(num_devices: int) -> int | None:
    statistics = jax.local_devices()[0].memory_stats()
    if statistics:
        return statistics.get("bytes_limit", 0) - statistics.get("bytes_in_use", 0) or None
    if jax.default_backend() != "cpu":
        return None
    free = free_host_memory()
    return None if free is None else free // num_devices


def memory_advice(config: Config) -> str:
    """Returns a sentence with the fields that reduce the memory of training, and their values."""
    return (
        f"To make it smaller, lower config.model.width = {config.model.width}, "
        f"config.model.max_length = {config.model.max_length} or "
        f"config.train.batch_rows = {config.train.batch_rows}, raise "
        f"config.train.accumulate = {config.train.accumulate}, set config.model.remat = True, set "
        f"config.loss.chunk_items (now {config.loss.chunk_items}; 0: automatic) to fewer items, "
        "use config.loss.name = 'sampled_softmax', or split the table with "
        "config.parallel.item_shards."
    )
