# SPDX-License-Identifier: Apache-2.0
"""Errors of XLA that users can act on, as `UserError`s: out of memory, and lost processes."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from bert4rec_jax.config import Config
from bert4rec_jax.devices.memory import memory_advice
from bert4rec_jax.devices.processes import lost_process
from bert4rec_jax.errors import UserError


@contextlib.contextmanager
def translate_errors(config: Config, step_bytes: Callable[[], int]) -> Iterator[None]:
    """Turns errors of XLA that the user can act on into `UserError`s.

    Args:
      config: configuration of the run.
      step_bytes: compiles the training step again and returns its memory on each device.
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


def _out_of_memory(config: Config, step_bytes: Callable[[], int], reason: str) -> str:
    try:
        gibibytes = step_bytes() / 2**30
        predicted = f"a training step is predicted to take {gibibytes:.2f} GiB on each device"
    except jax.errors.JaxRuntimeError:
        predicted = "a training step cannot even be compiled"
    return (
        f"out of memory: {predicted} ({reason}). {memory_advice(config)} If this happened during "
        f"ranking, lower config.eval.batch_rows = {config.eval.batch_rows}."
    )
