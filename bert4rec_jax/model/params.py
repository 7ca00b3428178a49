# SPDX-License-Identifier: Apache-2.0
"""The tree of parameters."""

from typing import Any, NotRequired, TypedDict

import jax


class ItemTable(TypedDict):
    """Input embedding and output layer of the catalogue; see `item_table`.

    Attributes:
      embedding: float32[V, D].
      bias: float32[V], output bias.
    """

    embedding: jax.Array
    bias: jax.Array


class Params(TypedDict):
    """All parameters of a model.

    Attributes:
      items: the item table, or this device's shard of it.
      encoder: parameters of the Flax module `Encoder`.
      features: float32[F, D], embeddings of item features. Missing if the items lack features, and
        after `fold_features`.
    """

    items: ItemTable
    encoder: dict[str, Any]
    features: NotRequired[jax.Array]
