# SPDX-License-Identifier: Apache-2.0
"""Pure functions of arrays: from packed rows to hidden states to a loss.

`tasks` says what a batch asks, `encoder` is the Transformer, `item_table` its input embedding and output layer,
`losses` compares hidden states with the table.
"""
