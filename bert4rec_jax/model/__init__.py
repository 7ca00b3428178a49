# SPDX-License-Identifier: Apache-2.0
"""Pure functions of arrays: from packed rows to hidden states to a loss.

`tasks` masks the tokens of a batch and chooses its targets, `encoder` is the Transformer with
`dropout`, `item_table` its input embedding and output layer, and `losses` compares hidden states
with the table. `params` is the tree of parameters.

Some functions have several implementations with the same results. `attention` is dense,
`blockwise_attention` or a kernel; the exact `softmax` is `softmax_unrolled`, `softmax_scanned` or a
kernel. `kernels` are for TPUs.
"""

from bert4rec_jax.model.dropout import DropoutKeys
from bert4rec_jax.model.encoder import Inputs, at_slots, encode, encoder_inputs, init_params
from bert4rec_jax.model.item_table import (
    NON_ITEM_BIAS,
    all_gather_rows,
    fold_features,
    lookup,
    mask_non_items,
    mask_token,
    shard_offset,
    table_rows,
)
from bert4rec_jax.model.losses import loss_sum
from bert4rec_jax.model.params import ItemTable, Params
from bert4rec_jax.model.softmax import Targets
from bert4rec_jax.model.tasks import learns_next_item, mask_items, masks_per_history, next_items

__all__ = [
    "NON_ITEM_BIAS",
    "DropoutKeys",
    "Inputs",
    "ItemTable",
    "Params",
    "Targets",
    "all_gather_rows",
    "at_slots",
    "encode",
    "encoder_inputs",
    "fold_features",
    "init_params",
    "learns_next_item",
    "lookup",
    "loss_sum",
    "mask_items",
    "mask_non_items",
    "mask_token",
    "masks_per_history",
    "next_items",
    "shard_offset",
    "table_rows",
]
