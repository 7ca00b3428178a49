# SPDX-License-Identifier: Apache-2.0
"""The processes of one job: joining them, agreeing on a decision, and ending together."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bert4rec_jax.errors import UserError
from bert4rec_jax.terminal import say


def join_cluster() -> None:
    """Connects this process with the others of its job; call this before anything uses a device.

    JAX detects SLURM, Open MPI, Kubernetes and TPU pods. Elsewhere, the environment variables
    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID are required.

    Raises:
      UserError: the other processes cannot be reached.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    settings: dict[str, Any] = {}
    for name in ("num_processes", "process_id"):
        value = os.environ.get(f"JAX_{name.upper()}")
        if value is not None:
            settings[name] = _whole_number(f"JAX_{name.upper()}", value)
    try:
        jax.distributed.initialize(
            coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
            **settings,
            heartbeat_timeout_seconds=30,
            initialization_timeout=300,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: the other processes were not found ({error}); use SLURM or "
            "Kubernetes, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from None


def _whole_number(name: str, value: str) -> int:
    if not value.isdecimal():
        raise UserError(f"{name} = {value!r} is not a whole number; correct this variable.")
    return int(value)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends this process at once on a user error if the job has several processes.

    A normal exit waits for the other processes, which in turn wait for this one. They detect the
    end of this process within a minute.
    """
    try:
        yield
    except UserError as error:
        if jax.process_count() == 1:
            raise
        say(f"error: {' '.join(str(error).split())}")
        os._exit(2)


def all_processes_ok(ok: bool) -> bool:
    """Returns whether `ok` is true in all processes."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.array(ok)).all())


def lost_process(reason: str) -> UserError:
    """Returns the error for a failed operation between the processes of a job."""
    return UserError(
        f"another process of this job has ended or cannot be reached ({reason}); the last "
        "checkpoint is intact: start all processes again to continue from it."
    )
