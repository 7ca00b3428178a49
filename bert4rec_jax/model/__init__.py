# SPDX-License-Identifier: Apache-2.0
"""Pure functions of arrays: from packed rows to hidden states to a loss.

`tasks` says what a batch asks, `encoder` is the Transformer, `item_table` its input embedding and output layer, whole
or split over devices, `losses` compares hidden states with the table. `attention`, `dropout` and `softmax`
have several formulations that compute the same; `kernels` are those of accelerators.
"""

from bert4rec_jax.model.encoder import Draws, Inputs, at_slots, encode, encoder_inputs, init_params
from bert4rec_jax.model.item_table import (
    all_rows,
    candidate_bias,
    first_row,
    fold_features,
    lookup,
    mask_token,
    rows_bias,
    table_rows,
)
from bert4rec_jax.model.losses import loss_sum
from bert4rec_jax.model.tasks import learns_next_item, mask_items, masks_per_history, next_items

__all__ = [
    "Draws",
    "Inputs",
    "all_rows",
    "at_slots",
    "candidate_bias",
    "encode",
    "encoder_inputs",
    "first_row",
    "fold_features",
    "init_params",
    "learns_next_item",
    "lookup",
    "loss_sum",
    "mask_items",
    "mask_token",
    "masks_per_history",
    "next_items",
    "rows_bias",
    "table_rows",
]
