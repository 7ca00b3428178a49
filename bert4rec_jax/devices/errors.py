# SPDX-License-Identifier: Apache-2.0
"""What devices and other processes throw at a run, in words that help: out of memory, a lost process."""

import contextlib
import math
import resource
from collections.abc import Callable, Iterator
from typing import Any

import jax

from bert4rec_jax.config import Config
from bert4rec_jax.errors import UserError


@contextlib.contextmanager
def explained(config: Config, step_bytes: Callable[[], int]) -> Iterator[None]:
    """Turns errors of XLA that the user can act upon into `UserError`s.

    Args:
      config: of what is running.
      step_bytes: compiles the training step again and returns how much memory it takes on each device.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        if "RESOURCE_EXHAUSTED" in reason or "out of memory" in reason.lower():
            raise UserError(_out_of_memory(config, step_bytes, reason)) from error
        if jax.process_count() > 1:
            raise lost_process(reason) from error
        raise


def check_memory(c: Config, state: Any) -> None:
    """Refuses a state that cannot be held, before anything is allocated.

    Asked for more than there is, a process may hang inside XLA, or be killed by the system without a word.

    Args:
      c: the run's configuration.
      state: parameters and moments as `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      UserError: parameters, moments and gradients alone take more than is free; says how much.
    """

    def bytes_of(tree):
        return sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )

    devices = jax.tree.leaves(state)[0].sharding.device_set
    needed, free = bytes_of(state) + bytes_of(state.params), _free_bytes(len(devices))
    if free is not None and needed > free:
        raise UserError(
            f"out of memory: parameters, optimizer moments and gradients alone take {needed / 2**30:.2f} GiB on each "
            f"device, and {free / 2**30:.2f} GiB are free. " + _remedies(c)
        )


def _free_bytes(sharers: int) -> int | None:
    """Returns what this process may still take on a device, None where that is not known."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics:
        return statistics.get("bytes_limit", 0) - statistics.get("bytes_in_use", 0) or None
    if jax.default_backend() != "cpu":
        return None
    free = []
    with (
        contextlib.suppress(OSError, ValueError, StopIteration),
        open("/proc/meminfo", encoding="ascii") as file,
    ):
        free.append(
            1024 * int(next(line for line in file if line.startswith("MemAvailable")).split()[1])
        )
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        with open("/proc/self/statm", encoding="ascii") as file:
            free.append(max(limit - int(file.read().split()[0]) * resource.getpagesize(), 0))
    return min(free) // sharers if free else None


def lost_process(reason: str) -> UserError:
    """Returns what to say when work with the other processes of a job failed."""
    return UserError(
        f"another process of this job has ended or cannot be reached ({reason}); what the last checkpoint "
        "holds is safe: start all processes again to go on from there."
    )


def _out_of_memory(c: Config, step_bytes: Callable[[], int], reason: str) -> str:
    try:
        predicted = (
            f"a training step is predicted to take {step_bytes() / 2**30:.2f} GiB on each device"
        )
    except jax.errors.JaxRuntimeError:
        predicted = "a training step cannot even be compiled"
    return (
        f"out of memory: {predicted} ({reason}). {_remedies(c)} If it happened while ranking, lower "
        f"config.eval.batch_rows = {c.eval.batch_rows}."
    )


def _remedies(c: Config) -> str:
    return (
        f"To make it smaller, lower config.model.width = {c.model.width}, config.model.max_length = "
        f"{c.model.max_length} or config.train.batch_rows = {c.train.batch_rows}, raise config.train.accumulate = "
        f"{c.train.accumulate}, set config.model.remat = True, set config.loss.chunk_items (now "
        f"{c.loss.chunk_items}; 0 chooses) to fewer items, use config.loss.name = 'sampled_softmax', or split the "
        f"table with config.parallel.item_shards."
    )
