# SPDX-License-Identifier: Apache-2.0
"""What devices and other processes throw at a run, in words that help: out of memory, a lost process."""

import contextlib
from collections.abc import Callable, Iterator

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


def lost_process(reason: str) -> UserError:
    """Returns what to say when work with the other processes of a job failed."""
    return UserError(f"another process of this job has ended or cannot be reached ({reason}); what the last checkpoint "
                     "holds is safe: start all processes again to go on from there.")


def _out_of_memory(c: Config, step_bytes: Callable[[], int], reason: str) -> str:
    try:
        predicted = f"a training step is predicted to take {step_bytes() / 2**30:.2f} GiB on each device"
    except jax.errors.JaxRuntimeError:
        predicted = "a training step cannot even be compiled"
    return (
        f"out of memory: {predicted} ({reason}). To make it smaller, lower config.train.batch_rows = "
        f"{c.train.batch_rows}, config.model.width = {c.model.width} or config.model.max_length = "
        f"{c.model.max_length}, raise config.train.accumulate = {c.train.accumulate}, set config.model.remat = True, "
        f"set config.loss.chunk_items (now {c.loss.chunk_items}; 0 chooses) to fewer items, use config.loss.name = "
        f"'sampled_softmax', or split the table with config.parallel.catalogue; if it happened while ranking, lower "
        f"config.eval.batch_rows = {c.eval.batch_rows}.")
