# SPDX-License-Identifier: Apache-2.0
"""What a training step must hold and send, as formulas: docs/scaling.md has them in words.

Bytes are what one device sends in a ring: 2 (n - 1) / n of the array for an all-reduce over n devices, (n - 1) / n of
the whole array for an all-gather or a reduce-scatter.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A model on a grid of devices; everything a step sends or holds follows from these numbers.

    Attributes:
      rows_in_table: V, of the item table.
      width: D.
      encoder: parameters beside the item table.
      rows: of a batch on each device.
      length: L.
      slots: K, masked slots of a row.
      data: devices that share a batch beside the catalogue axis.
      catalogue: devices that share the item table.
      dtype_bytes: of activations.
    """

    rows_in_table: int
    width: int
    encoder: int
    rows: int
    length: int
    slots: int
    data: int
    catalogue: int
    dtype_bytes: int = 4

    @property
    def devices(self) -> int:
        """Returns the number of devices."""
        return self.data * self.catalogue

    def table_gradient(self) -> float:
        """Returns bytes sent to sum the gradient of a device's part of the item table over the data axis."""
        return all_reduce(4 * self.rows_in_table * (self.width + 1) / self.catalogue, self.data)

    def encoder_gradient(self) -> float:
        """Returns bytes sent to sum the encoder's gradient over all devices."""
        return all_reduce(4 * self.encoder, self.devices)

    def activations(self) -> float:
        """Returns bytes of activations and statistics that a split table makes travel with the exact softmax.

        Tokens: ids and embeddings of N = rows * length tokens a device, and the gradient of those embeddings. Slots:
        hidden states of M = rows * slots a device and their gradient; label, log-sum-exp, target logit and weight.
        """
        group, tokens, slots = self.catalogue, self.rows * self.length, self.rows * self.slots
        if group == 1:
            return 0.0
        lookup = gathered(group * tokens * (4 + 2 * 4 * self.width), group)
        hidden = gathered(group * slots * (self.dtype_bytes + 4) * self.width, group)
        statistics = gathered(group * slots * 4 * (2 + group), group) + all_reduce(
            group * slots * 4, group
        )
        return lookup + hidden + statistics

    def least(self) -> float:
        """Returns the least bytes a device sends in a step: one reduction of each gradient, and activations."""
        return self.table_gradient() + self.encoder_gradient() + self.activations()

    def state_bytes(self) -> float:
        """Returns bytes of parameters, two moments and the gradient on each device, in float32."""
        return 16 * (self.rows_in_table * (self.width + 1) / self.catalogue + self.encoder)

    def activation_bytes(self, layers: int, ffn_width: int) -> float:
        """Returns bytes that an accelerator keeps for the backward pass, and of what a split table makes travel."""
        group, tokens, slots = self.catalogue, self.rows * self.length, self.rows * self.slots
        kept = self.dtype_bytes * tokens * (10 * self.width + 2 * ffn_width) * layers
        embeddings = 0 if group == 1 else 4 * group * tokens * self.width
        return kept + embeddings + 4 * group * slots * self.width

    def logits_bytes(self) -> float:
        """Returns bytes of all logits of a device: its part of the catalogue for the slots of its group."""
        return 4 * self.rows * self.slots * self.catalogue * self.rows_in_table / self.catalogue

    def table_flops(self) -> float:
        """Returns operations of the exact softmax on each device, forward and backward."""
        return 6 * self.rows * self.slots * self.rows_in_table * self.width


def all_reduce(size: float, devices: int) -> float:
    """Returns bytes sent by each of `devices` to sum arrays of `size` bytes."""
    return 2 * size * (devices - 1) / devices


def gathered(size: float, devices: int) -> float:
    """Returns bytes sent by each device to gather or reduce-scatter a whole array of `size` bytes."""
    return size * (devices - 1) / devices
