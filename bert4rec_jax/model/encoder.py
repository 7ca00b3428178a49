# SPDX-License-Identifier: Apache-2.0
"""The Transformer of BERT4Rec (Sun et al. 2019) and SASRec (Kang and McAuley 2018).

A row may contain several histories. `segments` keeps their attention apart and `positions` restart
in each, so packing changes the speed only. BERT4Rec and SASRec differ only in `causal`, which is
set per row. The last layer computes queries, its feed-forward network and everything after it for
the requested slots only.

The item table is not part of the Flax module. It is input embedding and output layer at once and
may be split over devices, so it is a plain array (`item_table.py`): the step looks tokens up and
the loss multiplies with it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.data import Packed
from bert4rec_jax.data.batching import BatchArray
from bert4rec_jax.devices import cpu
from bert4rec_jax.model.attention import Places, attend
from bert4rec_jax.model.dropout import DropoutKeys, dropout
from bert4rec_jax.model.item_table import table_rows
from bert4rec_jax.model.params import Params

# BERT's epsilon. It vanishes next to 1 in bfloat16 arithmetic, which gets a larger one.
LAYER_NORM_EPSILON = {"float32": 1e-12, "bfloat16": 1e-6}
# Fewest layers of the same shape that a TPU runs in a loop.
LEAST_LOOPED = 3


class Inputs(NamedTuple):
    """Inputs of the encoder.

    Attributes:
      tokens: int32[B, L], item ids, padding or [MASK].
      segments: int32[B, L], 1.. for the histories in a row, 0 on padding.
      positions: int32[B, L], position of a token in its history, in [0, L).
      slots: int32[B, K], columns whose hidden states are returned; None for all columns.
    """

    tokens: BatchArray
    segments: BatchArray
    positions: BatchArray
    slots: BatchArray | None


def encoder_inputs(
    config: ModelConfig, packed: Packed, tokens: BatchArray, slots: BatchArray | None
) -> Inputs:
    """Returns the encoder's inputs for packed histories.

    Args:
      config: the model's configuration.
      packed: the rows.
      tokens: int32[B, L], the tokens as the model sees them, with [MASK] in place of masked items.
      slots: int32[B, K], columns whose hidden states are returned; None for all columns.
    """
    positions = packed.from_right if config.positions == "right" else packed.from_left
    return Inputs(tokens, packed.segments, positions, slots)


def init_params(
    config: ModelConfig, num_items: int, key: jax.Array, num_features: int = 0
) -> Params:
    """Returns initial parameters; with `num_features`, also the embeddings of item features."""
    table_key, encoder_key = jax.random.split(key)
    rows = table_rows(num_items)
    width = config.width
    init = _initializer(config)
    embedding = init(table_key, (rows, width), jnp.float32)
    tokens = jnp.zeros((1, 2), jnp.int32)
    encoder = Encoder(config, causal=False, platform="cpu").init(
        encoder_key, jnp.zeros((1, 2, width)), Inputs(tokens, tokens, tokens, tokens), None
    )["params"]
    params: Params = {
        "items": {"embedding": embedding, "bias": jnp.zeros(rows)},
        "encoder": encoder,
    }
    if num_features:
        feature_key = jax.random.fold_in(table_key, 1)
        params["features"] = init(feature_key, (num_features, width), jnp.float32)
    return params


def encode(
    config: ModelConfig,
    encoder_params: dict[str, Any],
    x_BLD: jax.Array,
    inputs: Inputs,
    dropout_keys: DropoutKeys | None,
    causal: bool | tuple[bool, ...],
    platform: str,
) -> jax.Array:
    """Runs the Transformer on looked-up embeddings.

    Args:
      config: the model's configuration.
      encoder_params: `params["encoder"]`.
      x_BLD: float32[B, L, D], item embeddings of `inputs.tokens`.
      inputs: see `Inputs`.
      dropout_keys: randomness of dropout in training; None in evaluation.
      causal: whether an item attends only to itself and earlier items; one value per row if rows
        differ.
      platform: see `Placement`.

    Returns:
      float[B, K, D], hidden states at `inputs.slots`, ready for the product with the item table.
    """
    encoder = Encoder(config, causal, platform)
    # Without mutable collections, Flax returns only the output.
    h_BKD: Any = encoder.apply({"params": encoder_params}, x_BLD, inputs, dropout_keys)
    return h_BKD


class Encoder(nn.Module):
    """Embedding sum, blocks and prediction head; see `encode`."""

    config: ModelConfig
    causal: bool | tuple[bool, ...]
    platform: str

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, inputs: Inputs, dropout_keys: DropoutKeys | None
    ) -> jax.Array:
        """Maps looked-up embeddings [B, L, D] to hidden states [B, K, D] at the slots."""
        c = self.config
        keys = _independent_keys(dropout_keys)
        x_BLD = self._embed(x_BLD, inputs, next(keys))
        # The last layer has another shape if it is computed at the slots only.
        alike = c.layers - (inputs.slots is not None)
        looped = 0
        if alike >= LEAST_LOOPED and self.platform == "tpu" and not self.is_initializing():
            looped = alike
            x_BLD = self._loop(x_BLD, inputs, [next(keys) for _ in range(looped)])
        block = nn.remat(Block, static_argnums=()) if c.remat else Block
        for layer in range(looped, c.layers):
            slots_BK = inputs.slots if layer == c.layers - 1 else None
            one = block(c, self.causal, self.platform, name=f"block_{layer}")
            x_BLD = one(x_BLD, inputs, slots_BK, next(keys))
        h_BKD = x_BLD
        if c.norm == "pre":
            h_BKD = _layer_norm(c, "final_norm")(h_BKD)
        if c.head == "transform":
            h_BKD = gelu(_linear(c, c.width, "head_dense")(h_BKD))
            h_BKD = _layer_norm(c, "head_norm")(h_BKD)
        return h_BKD

    def _embed(
        self, x_BLD: jax.Array, inputs: Inputs, dropout_keys: DropoutKeys | None
    ) -> jax.Array:
        """Scales item embeddings, adds position embeddings, normalises and drops elements."""
        c = self.config
        if c.scale_embeddings:
            x_BLD = x_BLD * c.width**0.5
        if c.positions != "rotary":
            table_LD = self.param("position_embedding", _initializer(c), (c.max_length, c.width))
            if self.platform == "cpu":
                x_BLD = x_BLD + cpu.lookup_with_one_hot_gradient(table_LD, inputs.positions)
            else:
                x_BLD = x_BLD + table_LD[inputs.positions]
        x_BLD = x_BLD.astype(c.dtype)
        if c.norm == "post":
            x_BLD = _layer_norm(c, "embedding_norm")(x_BLD)
        return dropout(x_BLD, c.dropout, dropout_keys)

    def _loop(
        self, x_BLD: jax.Array, inputs: Inputs, dropout_keys: list[DropoutKeys | None]
    ) -> jax.Array:
        """Runs the first blocks, one for each of `dropout_keys`, in a loop.

        Unrolled, every block takes the TPU's compiler time and code; in a loop, one block is
        compiled for all. The backward pass keeps the products of a block and the result of
        attention and recomputes the rest, which would otherwise be written to memory for every
        iteration.
        """
        from bert4rec_jax.model.kernels.attention_tpu import KEPT

        c = self.config
        block = Block(c, self.causal, self.platform, parent=None)
        layers = [self.variables["params"][f"block_{n}"] for n in range(len(dropout_keys))]

        def run(x_BLD: jax.Array, layer: tuple[Any, DropoutKeys | None]) -> tuple[Any, None]:
            params, keys = layer
            return block.apply({"params": params}, x_BLD, inputs, None, keys), None

        policies = jax.checkpoint_policies
        saved = policies.nothing_saveable
        if not c.remat:
            saved = policies.save_from_both_policies(
                policies.dots_saveable, policies.save_only_these_names(KEPT)
            )
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(layers, dropout_keys))
        run = jax.checkpoint(run, policy=saved, prevent_cse=False)
        return jax.lax.scan(run, x_BLD, stacked)[0]


class Block(nn.Module):
    """Attention and feed-forward sub-layers with residuals and LayerNorm."""

    config: ModelConfig
    causal: bool | tuple[bool, ...]
    platform: str

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        inputs: Inputs,
        slots_BK: jax.Array | None,
        dropout_keys: DropoutKeys | None,
    ) -> jax.Array:
        """Maps [B, L, D] to [B, L, D], or to [B, K, D] at `slots_BK`."""
        c = self.config
        keys = _independent_keys(dropout_keys)
        pre = c.norm == "pre"
        normed_BLD = _layer_norm(c, "attention_norm")(x_BLD) if pre else x_BLD
        attention = Attention(c, self.causal, self.platform, name="attention")
        attended = attention(normed_BLD, inputs, slots_BK, next(keys))
        x = x_BLD if slots_BK is None else at_slots(x_BLD, slots_BK, self.platform)
        x = x + dropout(attended, c.dropout, next(keys))
        if not pre:
            x = _layer_norm(c, "attention_norm")(x)
        y = _layer_norm(c, "ffn_norm")(x) if pre else x
        y = gelu(_linear(c, c.ffn_width, "ffn_in")(y))
        y = dropout(_linear(c, c.width, "ffn_out")(y), c.dropout, next(keys))
        return x + y if pre else _layer_norm(c, "ffn_norm")(x + y)


class Attention(nn.Module):
    """Multi-head attention inside each segment."""

    config: ModelConfig
    causal: bool | tuple[bool, ...]
    platform: str

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        inputs: Inputs,
        slots_BK: jax.Array | None,
        dropout_keys: DropoutKeys | None,
    ) -> jax.Array:
        """Maps [B, L, D] to [B, L, D], or to [B, K, D] with queries at `slots_BK` only."""
        c = self.config
        _, L, D = x_BLD.shape
        keys = Places(inputs.segments, inputs.positions, jnp.arange(L)[None])
        queries = keys
        query_BQD = x_BLD
        if slots_BK is not None:
            query_BQD = at_slots(x_BLD, slots_BK, self.platform)
            queries = Places(
                jnp.take_along_axis(inputs.segments, slots_BK, axis=1),
                jnp.take_along_axis(inputs.positions, slots_BK, axis=1),
                slots_BK,
            )
        query_BQD = _linear(c, D, "query")(query_BQD)
        key_value_BLD2 = _linear(c, 2 * D, "key_value")(x_BLD)
        places = (queries, keys)
        attended = attend(
            c, self.platform, self.causal, query_BQD, key_value_BLD2, places, dropout_keys
        )
        return _linear(c, D, "out")(attended)


def gelu(x: jax.Array) -> jax.Array:
    """Returns x * Phi(x) (Hendrycks and Gimpel 2016), by erf; XLA's erfc takes much longer."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


def at_slots(x_BLD: jax.Array, slots_BK: jax.Array, platform: str) -> jax.Array:
    """Returns x_BLD[b, slots_BK[b]]: [B, K, D]."""
    if platform == "cpu":
        return cpu.gather_by_one_hot(x_BLD, slots_BK)
    return jnp.take_along_axis(x_BLD, slots_BK[:, :, None], axis=1, mode="clip")


def _independent_keys(keys: DropoutKeys | None) -> Iterator[DropoutKeys | None]:
    """Yields dropout keys that are independent of each other, or None forever in evaluation."""
    number = 0
    while True:
        yield None if keys is None else keys._replace(key=jax.random.fold_in(keys.key, number))
        number += 1


def _initializer(config: ModelConfig) -> nn.initializers.Initializer:
    return nn.initializers.truncated_normal(config.init_scale)


def _linear(config: ModelConfig, features: int, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=config.dtype, kernel_init=_initializer(config), name=name)


def _layer_norm(config: ModelConfig, name: str) -> nn.LayerNorm:
    epsilon = LAYER_NORM_EPSILON[config.dtype]
    return nn.LayerNorm(epsilon=epsilon, dtype=config.dtype, name=name)
