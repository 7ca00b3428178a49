# SPDX-License-Identifier: Apache-2.0
"""The exact softmax loss over the whole catalogue, with its own gradient.

Two sums run over the catalogue: the log-sum-exp of the logits of a slot, and the gradients of scale
* log-sum-exp. They have three implementations: unrolled over chunks of the catalogue
(`softmax_unrolled`, for CPUs), scanned over chunks (`softmax_scanned`) and one kernel
(`kernels.softmax_tpu`). Everything else is shared and is in this module.
"""

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bert4rec_jax.model import softmax_scanned, softmax_unrolled
from bert4rec_jax.model.item_table import (
    add_rows,
    all_gather_rows,
    reduce_scatter_rows,
    shard_offset,
    take_rows,
)
from bert4rec_jax.model.softmax_scanned import SlotGradient


class Targets(NamedTuple):
    """The items to predict at M slots.

    Attributes:
      labels_M: int32, global item ids; any id if the weight is 0.
      weights_M: float32, 0 for unused slots.
    """

    labels_M: jax.Array
    weights_M: jax.Array


@dataclass(frozen=True)
class Implementation:
    """How the sums over the catalogue are computed.

    Attributes:
      name: see the module.
      chunk_items: rows of the table per chunk; 0 chooses a size. Unused by the kernel.
      interpret: whether the kernel is interpreted instead of compiled, which is slow and works on
        any platform.
    """

    name: Literal["unrolled", "scanned", "pallas_tpu"]
    chunk_items: int = 0
    interpret: bool = False

    def log_sum_exp(
        self, h_MD: jax.Array, embedding_VD: jax.Array, bias_V: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Returns float32[M], the log-sum-exp of the logits, and residuals for `gradients`."""
        if self.name == "pallas_tpu":
            lse_M = _tpu_kernels().log_sum_exp(h_MD, embedding_VD, bias_V, self.interpret)
            return lse_M, None
        module = softmax_unrolled if self.name == "unrolled" else softmax_scanned
        return module.log_sum_exp(self.chunk_items, h_MD, embedding_VD, bias_V)

    def gradients(
        self,
        h_MD: jax.Array,
        embedding_VD: jax.Array,
        bias_V: jax.Array,
        slots: SlotGradient,
        residuals: Any,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the gradients of sum(scale * log_sum_exp): float32 [M, D], [V, D] and [V].

        The first one is added to `slots.start_MD`.
        """
        if self.name == "pallas_tpu":
            d_h_MD, d_embedding_VD, d_bias_V = _tpu_kernels().gradients(
                h_MD, embedding_VD, bias_V, slots.lse_M, slots.scale_M, self.interpret
            )
            return slots.start_MD + d_h_MD, d_embedding_VD, d_bias_V
        module = softmax_unrolled if self.name == "unrolled" else softmax_scanned
        return module.gradients(self.chunk_items, h_MD, embedding_VD, bias_V, slots, residuals)


def choose_implementation(platform: str, chunk_items: int) -> Implementation:
    """Returns the fastest implementation for a platform.

    XLA's CPU backend runs the body of a loop on one core, so the CPU unrolls. The TPU has a kernel,
    which does not work in chunks of a given size.
    """
    if platform == "cpu":
        return Implementation("unrolled", chunk_items)
    if platform == "tpu" and not chunk_items:
        return Implementation("pallas_tpu")
    return Implementation("scanned", chunk_items)


def _tpu_kernels() -> ModuleType:
    # Importing Pallas takes half a second, which only TPUs need.
    from bert4rec_jax.model.kernels import softmax_tpu

    return softmax_tpu


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def softmax_cross_entropy(
    h_MD: jax.Array,
    embedding_VD: jax.Array,
    bias_V: jax.Array,
    targets: Targets,
    implementation: Implementation,
    axis: str | None = None,
) -> jax.Array:
    """Sum over slots of weight * -log softmax(h E^T + bias)[label], exact over the whole catalogue.

    If the table is split, every device computes the logits of the slots of all devices of `axis`
    against its own rows. Only hidden states, labels and numbers per slot are exchanged.

    Args:
      h_MD: hidden states. Products are computed in their dtype and summed in float32.
      embedding_VD: float32, this device's shard of the item table.
      bias_V: float32, output bias, see `mask_non_items`.
      targets: labels and weights of the slots.
      implementation: how the sums over the catalogue are computed.
      axis: mesh axis over which the table is split, or None.
    """
    return _forward(h_MD, embedding_VD, bias_V, targets, implementation, axis)[0]


def _forward(
    h_MD: jax.Array,
    embedding_VD: jax.Array,
    bias_V: jax.Array,
    targets: Targets,
    implementation: Implementation,
    axis: str | None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    local_slots = targets.labels_M.shape[0]
    hidden_MD = all_gather_rows(h_MD, axis)
    ids_M = all_gather_rows(targets.labels_M, axis) - shard_offset(embedding_VD.shape[0], axis)
    lse_M, saved = implementation.log_sum_exp(hidden_MD, embedding_VD, bias_V)
    target_MD = take_rows(embedding_VD, ids_M).astype(hidden_MD.dtype)
    target_M = jnp.einsum("md,md->m", hidden_MD, target_MD, preferred_element_type=jnp.float32)
    target_M += take_rows(bias_V, ids_M)
    if axis is not None:
        lse_M = jax.nn.logsumexp(jax.lax.all_gather(lse_M, axis), axis=0)
        target_M = jax.lax.psum(target_M, axis)
    losses_M = lse_M - target_M
    if axis is not None:
        first = jax.lax.axis_index(axis) * local_slots
        losses_M = jax.lax.dynamic_slice_in_dim(losses_M, first, local_slots)
    loss = jnp.sum(losses_M * targets.weights_M)
    return loss, (h_MD, embedding_VD, bias_V, targets, lse_M, saved)


def _backward(
    implementation: Implementation,
    axis: str | None,
    residuals: tuple[Any, ...],
    gradient: jax.Array,
) -> tuple[jax.Array | None, ...]:
    h_MD, embedding_VD, bias_V, targets, lse_M, saved = residuals
    hidden_MD = all_gather_rows(h_MD, axis)
    ids_M = all_gather_rows(targets.labels_M, axis) - shard_offset(embedding_VD.shape[0], axis)
    scale_M = all_gather_rows(targets.weights_M * gradient, axis)
    start_MD = -scale_M[:, None] * take_rows(embedding_VD, ids_M)
    d_hidden_MD, d_embedding_VD, d_bias_V = implementation.gradients(
        hidden_MD, embedding_VD, bias_V, SlotGradient(lse_M, scale_M, start_MD), saved
    )
    d_embedding_VD = add_rows(d_embedding_VD, ids_M, -scale_M[:, None] * hidden_MD)
    d_bias_V = add_rows(d_bias_V, ids_M, -scale_M)
    d_h_MD = reduce_scatter_rows(d_hidden_MD, axis).astype(h_MD.dtype)
    return d_h_MD, d_embedding_VD, d_bias_V, None


softmax_cross_entropy.defvjp(_forward, _backward)
