# SPDX-License-Identifier: Apache-2.0
"""Losses of hidden states against the item table: the exact softmax, and two sampled losses.

All return the *sum* of weighted losses over this device's slots; the step divides by the global sum
of weights.
"""

import math

import jax
import jax.numpy as jnp

from bert4rec_jax.config import LossConfig
from bert4rec_jax.devices import Placement
from bert4rec_jax.model.item_table import NON_ITEM_BIAS, lookup, mask_non_items, shard_offset
from bert4rec_jax.model.params import ItemTable
from bert4rec_jax.model.softmax import Targets, choose_implementation, softmax_cross_entropy


def loss_sum(
    config: LossConfig,
    num_items: int,
    items: ItemTable,
    h_MD: jax.Array,
    targets: Targets,
    key: jax.Array,
    placement: Placement,
) -> jax.Array:
    """Returns the summed loss of the configured kind.

    Args:
      config: which loss.
      num_items: size of the catalogue.
      items: `params["items"]`, this device's shard.
      h_MD: hidden states of this device's slots.
      targets: labels and weights of the slots.
      key: PRNG key for negatives, the same on all devices.
      placement: where the function runs.
    """
    axis = placement.items
    offset = shard_offset(items["bias"].shape[0], axis)
    bias_V = mask_non_items(items["bias"], num_items, offset)
    masked: ItemTable = {"embedding": items["embedding"], "bias": bias_V}
    if config.name == "softmax":
        implementation = choose_implementation(placement.platform, config.chunk_items)
        return softmax_cross_entropy(
            h_MD, masked["embedding"], bias_V, targets, implementation, axis
        )
    negatives_J = jax.random.randint(key, (config.negatives,), 1, num_items + 1)
    target_M, negative_MJ = _sampled_logits(h_MD, masked, targets.labels_M, negatives_J, axis)
    if config.name == "sampled_softmax":
        losses_M = sampled_softmax(target_M, negative_MJ, num_items)
    else:
        losses_M = gbce(target_M, negative_MJ, num_items, config.gbce_t)
    return jnp.sum(targets.weights_M * losses_M)


def _sampled_logits(
    h_MD: jax.Array,
    items: ItemTable,
    labels_M: jax.Array,
    negatives_J: jax.Array,
    axis: str | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns float32 logits of the targets [M] and of the negatives [M, J].

    A negative that is the target of its slot gets the bias of non-items, which excludes it.
    """
    bias_V1 = items["bias"][:, None]
    # Rows are looked up before they are rounded: the table is large, and its gradient stays
    # float32.
    target_MD = lookup(items["embedding"], labels_M, axis).astype(h_MD.dtype)
    target_M = jnp.einsum("md,md->m", h_MD, target_MD, preferred_element_type=jnp.float32)
    target_M += lookup(bias_V1, labels_M, axis)[:, 0]
    negative_JD = lookup(items["embedding"], negatives_J, axis).astype(h_MD.dtype)
    negative_MJ = jnp.einsum("md,jd->mj", h_MD, negative_JD, preferred_element_type=jnp.float32)
    negative_MJ += lookup(bias_V1, negatives_J, axis)[:, 0]
    is_target_MJ = labels_M[:, None] == negatives_J
    return target_M, jnp.where(is_target_MJ, NON_ITEM_BIAS, negative_MJ)


def sampled_softmax(target_M: jax.Array, negative_MJ: jax.Array, num_items: int) -> jax.Array:
    """Softmax over target and shared uniform negatives, with log-Q correction (Jean et al. 2015).

    Negatives are drawn from all items, and a negative that is the slot's own target does not count.
    Each of the J negatives then represents num_items / J items, so log(num_items / J) is added to
    its logit. The estimate of the partition function is unbiased.

    Args:
      target_M: float32, logits of the targets.
      negative_MJ: float32, logits of the negatives.
      num_items: size of the catalogue.

    Returns:
      float32[M], loss of each slot.
    """
    negative_MJ += math.log(num_items / negative_MJ.shape[1])
    log_sum_M = jnp.logaddexp(target_M, jax.nn.logsumexp(negative_MJ, axis=1))
    return log_sum_M - target_M


def gbce(target_M: jax.Array, negative_MJ: jax.Array, num_items: int, t: float) -> jax.Array:
    """Generalised binary cross-entropy of gSASRec (Petrov and Macdonald 2023).

    Negatives are uniform and shared by all slots. With the sampling rate a = J / (num_items - 1),
    the probability of the positive item is raised to the power beta = a * (t * (1 - 1/a) + 1/a).
    With t = 0 this is plain sampled binary cross-entropy. With t = 1 the sigmoid of an item's score
    is its probability. The sum over target and negatives is divided by J + 1, as in the paper, so
    that its size does not grow with the number of negatives.

    Args:
      target_M: float32, logits of the targets.
      negative_MJ: float32, logits of the negatives.
      num_items: size of the catalogue.
      t: calibration, in [0, 1].

    Returns:
      float32[M], loss of each slot.
    """
    negatives = negative_MJ.shape[1]
    rate = min(negatives / (num_items - 1), 1.0)
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    positive_M = -beta * jax.nn.log_sigmoid(target_M)
    negative_M = -jax.nn.log_sigmoid(-negative_MJ).sum(axis=1)
    return (positive_M + negative_M) / (negatives + 1)
