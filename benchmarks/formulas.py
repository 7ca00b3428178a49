# SPDX-License-Identifier: Apache-2.0
"""Formulas for the memory and the communication of a training step; docs/scaling.md explains them.

Bytes sent are counted for one device in a ring: 2 (n - 1) / n of the array for an all-reduce over n
devices, and (n - 1) / n of the whole array for an all-gather or a reduce-scatter.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A model on a grid of devices.

    Attributes:
      table_rows: V, rows of the item table.
      width: D.
      encoder: number of parameters outside the item table.
      rows: of a batch, on each device.
      length: L.
      slots: K, masked slots per row.
      data: devices along the data axis.
      item_shards: devices that share the item table.
      dtype_bytes: size of an activation.
    """

    table_rows: int
    width: int
    encoder: int
    rows: int
    length: int
    slots: float
    data: int
    item_shards: int
    dtype_bytes: int = 4

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.data * self.item_shards

    def table_gradient(self) -> float:
        """Returns bytes sent to sum the gradient of a device's shard of the item table over the data axis."""
        size = 4 * self.table_rows * (self.width + 1) / self.item_shards
        return all_reduce(size, self.data)

    def encoder_gradient(self) -> float:
        """Returns bytes sent to sum the encoder's gradient over all devices."""
        return all_reduce(4 * self.encoder, self.devices)

    def activations(self) -> float:
        """Returns bytes of activations and statistics sent for the exact softmax over a sharded item table.

        Per token: its id, its embedding and the gradient of the embedding. Per masked slot: the
        hidden state and its gradient, label, log-sum-exp, target logit and weight.
        """
        group = self.item_shards
        if group == 1:
            return 0.0
        tokens = group * self.rows * self.length
        slots = group * self.rows * self.slots
        lookup = gather(tokens * (4 + 2 * 4 * self.width), group)
        hidden = gather(slots * (self.dtype_bytes + 4) * self.width, group)
        statistics = gather(slots * 4 * (2 + group), group)
        log_sums = all_reduce(slots * 4, group)
        return lookup + hidden + statistics + log_sums

    def least(self) -> float:
        """Returns the least bytes a device sends per step: one sum of each gradient, and the activations."""
        return self.table_gradient() + self.encoder_gradient() + self.activations()

    def state_bytes(self) -> float:
        """Returns bytes of parameters, both moments and the gradient on each device, in float32."""
        return 16 * (self.table_rows * (self.width + 1) / self.item_shards + self.encoder)

    def activation_bytes(self, layers: int, ffn_width: int) -> float:
        """Returns bytes that an accelerator keeps for the backward pass, including gathered activations."""
        group = self.item_shards
        tokens = self.rows * self.length
        slots = self.rows * self.slots
        kept = self.dtype_bytes * tokens * (10 * self.width + 2 * ffn_width) * layers
        embeddings = 0 if group == 1 else 4 * group * tokens * self.width
        return kept + embeddings + 4 * group * slots * self.width

    def logits_bytes(self) -> float:
        """Returns bytes of all logits of a device: its shard of the items, for the slots of its group."""
        return 4 * self.rows * self.slots * self.table_rows

    def table_flops(self) -> float:
        """Returns operations of the exact softmax on each device, forward and backward."""
        return 6 * self.rows * self.slots * self.table_rows * self.width


def all_reduce(size: float, devices: int) -> float:
    """Returns bytes sent by each device to sum arrays of `size` bytes."""
    return 2 * size * (devices - 1) / devices


def gather(size: float, devices: int) -> float:
    """Returns bytes sent by each device to gather or reduce-scatter a whole array of `size` bytes."""
    return size * (devices - 1) / devices
