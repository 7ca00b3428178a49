# SPDX-License-Identifier: Apache-2.0
"""The machines a run is laid over: meshes, processes, and what they throw at it.

`layout` maps a function of one device's arrays over all of them, `processes` joins several, `errors` says in words what
XLA and lost processes report, `signals` hears when a run is to stop, `cpu` holds what is there only because of one
backend.

`placement` is the kind of device and the mesh axes of a compiled function. `targets` describes accelerators that are not here,
`program` reads what a program compiled for them holds, reads and sends, `communication` what it would have to.
"""

from bert4rec_jax.devices import cpu
from bert4rec_jax.devices.errors import check_memory, explained, lost_process
from bert4rec_jax.devices.layout import Layout, in_parameter_layout
from bert4rec_jax.devices.placement import Placement
from bert4rec_jax.devices.processes import agreed, join_cluster, leaving_together
from bert4rec_jax.devices.signals import StopSignal

__all__ = [
    "Layout",
    "Placement",
    "StopSignal",
    "agreed",
    "check_memory",
    "cpu",
    "explained",
    "in_parameter_layout",
    "join_cluster",
    "leaving_together",
    "lost_process",
]
