# SPDX-License-Identifier: Apache-2.0
"""The processes of one job: how they find each other, agree, and leave together."""

import contextlib
import os
from collections.abc import Iterator

import jax
import numpy as np

from bert4rec_jax.errors import UserError
from bert4rec_jax.terminal import say


def join_cluster() -> None:
    """Connects this process with the others of its job; call it before anything touches a device.

    SLURM, Open MPI, Kubernetes and TPU pods are recognised; elsewhere the environment variables
    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID say how.

    Raises:
      UserError: the others were not found.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    explicit = {
        name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")
    }
    try:
        jax.distributed.initialize(
            coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
            **{name: int(value) for name, value in explicit.items() if value is not None},
            heartbeat_timeout_seconds=30,
            initialization_timeout=300,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: the other processes were not found ({error}); start it under SLURM, Kubernetes or with "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set."
        ) from None


@contextlib.contextmanager
def leaving_together() -> Iterator[None]:
    """Makes a user error end this process at once when it is one of several.

    The usual way out waits for the others, which wait for this one; they notice its end within a minute.
    """
    try:
        yield
    except UserError as error:
        if jax.process_count() == 1:
            raise
        say(f"error: {' '.join(str(error).split())}")
        os._exit(2)


def agreed(ok: bool) -> bool:
    """Returns whether all processes say `ok`."""
    if jax.process_count() == 1:
        return ok
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(ok)).all())
