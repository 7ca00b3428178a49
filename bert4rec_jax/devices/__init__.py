# SPDX-License-Identifier: Apache-2.0
"""Devices and processes of a run.

`layout` compiles a function of one device's arrays for all devices. `processes` joins several
processes, `signals` handles stop signals, `memory` checks that a state fits, and `errors`
translates XLA's errors. `cpu` contains workarounds for XLA's CPU backend, and `placement`
describes where a compiled function runs: the kind of device and its mesh axes.
"""

from bert4rec_jax.devices import cpu
from bert4rec_jax.devices.errors import translate_errors
from bert4rec_jax.devices.layout import Layout, in_parameter_layout
from bert4rec_jax.devices.memory import check_memory, step_memory
from bert4rec_jax.devices.placement import Placement
from bert4rec_jax.devices.processes import (
    all_processes_ok,
    exit_on_user_error,
    join_cluster,
    lost_process,
)
from bert4rec_jax.devices.signals import StopSignal

__all__ = [
    "Layout",
    "Placement",
    "StopSignal",
    "all_processes_ok",
    "check_memory",
    "cpu",
    "exit_on_user_error",
    "in_parameter_layout",
    "join_cluster",
    "lost_process",
    "step_memory",
    "translate_errors",
]
