# SPDX-License-Identifier: Apache-2.0
"""Where a compiled function runs: the kind of device and the mesh axes of its collectives."""

from dataclasses import dataclass
from typing import TypeVar

import jax

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Placement:
    """Passed by `Layout` to every function that it compiles.

    Attributes:
      platform: "cpu", "gpu" or "tpu". Some operations have one implementation per platform; all of
        them return the same values up to rounding.
      data: mesh axis over which the rows of a batch are split; None if they are not split.
      items: mesh axis over which the item table is split as well; None if the table is whole.
    """

    platform: str
    data: str | None = None
    items: str | None = None

    def sum(self, tree: Tree, over_data: bool = True, over_items: bool = True) -> Tree:
        """Sums every leaf over the devices of the data axis and of the items axis."""
        wanted = (self.data if over_data else None, self.items if over_items else None)
        names = tuple(name for name in wanted if name)
        return jax.lax.psum(tree, names) if names else tree

    def index(self) -> jax.Array | int:
        """Returns the number of this device in the order in which rows are distributed."""
        names = tuple(name for name in (self.data, self.items) if name)
        return jax.lax.axis_index(names) if names else 0


def platform_of(device: jax.Device) -> str:
    """Returns "cpu", "gpu" or "tpu"; described GPUs call themselves "cuda" or "rocm"."""
    return "gpu" if device.platform in ("cuda", "rocm") else device.platform
