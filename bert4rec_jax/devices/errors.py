# SPDX-License-Identifier: Apache-2.0
"""What devices and other processes throw at a run, in words that help: out of memory, a lost process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax

from bert4rec_jax.errors import UserError

if TYPE_CHECKING:
    from bert4rec_jax.experiment import Experiment


@contextlib.contextmanager
def explained(experiment: Experiment) -> Iterator[None]:
    """Turns errors of XLA that the user can act upon into `UserError`s.

    Args:
      experiment: what is running; its step is compiled again to predict how much memory it takes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        if "RESOURCE_EXHAUSTED" in reason or "out of memory" in reason.lower():
            raise UserError(out_of_memory(experiment, reason)) from error
        if jax.process_count() > 1:
            raise lost_process(reason) from error
        raise


def lost_process(reason: str) -> UserError:
    """Returns what to say when work with the other processes of a job failed."""
    return UserError(f"another process of this job has ended or cannot be reached ({reason}); what the last checkpoint "
                     "holds is safe: start all processes again to go on from there.")


def step_bytes(experiment: Experiment) -> int:
    """Returns the memory that a training step takes on each device: state, batch, activations, gradients."""
    compiled = experiment.step.lower(experiment.template, experiment.batch(0), experiment.root).compile()
    sizes = compiled.memory_analysis()
    # The state is updated in place: its bytes are both argument and output.
    return (sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
            + sizes.temp_size_in_bytes)


def out_of_memory(experiment: Experiment, reason: str) -> str:
    """Returns what to say when a device had too little memory.

    Args:
      experiment: what was running.
      reason: the first line of XLA's error.
    """
    c = experiment.config
    try:
        predicted = f"a training step is predicted to take {step_bytes(experiment) / 2**30:.2f} GiB on each device"
    except jax.errors.JaxRuntimeError:
        predicted = "a training step cannot even be compiled"
    return (
        f"out of memory: {predicted} ({reason}). To make it smaller, lower config.train.batch_rows = "
        f"{c.train.batch_rows}, raise config.train.accumulate = {c.train.accumulate}, set config.model.remat = True, "
        f"set config.loss.chunk_items (now {c.loss.chunk_items}; 0 chooses) to fewer items, use config.loss.name = "
        f"'sampled_softmax', or split the table with config.parallel.catalogue; if it happened while ranking, lower "
        f"config.eval.batch_rows = {c.eval.batch_rows}.")
