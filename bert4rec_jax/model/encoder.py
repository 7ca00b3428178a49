# SPDX-License-Identifier: Apache-2.0
"""The bidirectional Transformer of BERT4Rec (Sun et al. 2019), and its causal twin SASRec.

Rows may hold several histories: `segments` keeps their attention apart and `positions` restart in each, so packing
changes speed and nothing else. What tells BERT4Rec from SASRec is `causal` alone, a matter of each row. Only the slots
that are asked for leave the last layer, so its queries, its feed-forward network and everything after it are computed
for those alone.

The item table is not part of the Flax module: it is input embedding and output layer at once and may be split over
devices, so it is a plain array (`item_table.py`) that the step looks up and the loss multiplies with.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.data import Packed
from bert4rec_jax.devices import cpu
from bert4rec_jax.devices.platform import platform
from bert4rec_jax.model.attention import attend
from bert4rec_jax.model.dropout import Draws, dropout
from bert4rec_jax.model.item_table import table_rows


class Inputs(NamedTuple):
    """What the encoder reads.

    Attributes:
      tokens: int32[B, L], item ids, `PADDING` or [MASK].
      segments: int32[B, L], 1.. for the histories in a row, 0 on padding.
      positions: int32[B, L], position of a token in its history, in [0, L).
      slots: int32[B, K], columns whose hidden state is wanted; None for all of them.
    """

    tokens: jax.Array
    segments: jax.Array
    positions: jax.Array
    slots: jax.Array | None


def encoder_inputs(
    config: ModelConfig, packed: Packed, tokens: jax.Array, slots: jax.Array | None
) -> Inputs:
    """Returns what the encoder reads of packed histories.

    Args:
      config: the model's configuration.
      packed: the rows.
      tokens: int32[B, L], what the model sees of them.
      slots: int32[B, K], columns whose hidden state is wanted; None for all of them.
    """
    positions = packed.from_right if config.positions == "right" else packed.from_left
    return Inputs(tokens, packed.segments, positions, slots)


def init_params(config: ModelConfig, num_items: int, key: jax.Array, num_features: int = 0) -> dict:
    """Returns fresh parameters: `items` (embedding float32[V, D], bias float32[V]) and `encoder`.

    With `num_features`, also `features`, float32[F, D].
    """
    table_key, encoder_key = jax.random.split(key)
    rows, width = table_rows(num_items), config.width
    embedding = _initializer(config)(table_key, (rows, width), jnp.float32)
    tokens = jnp.zeros((1, 2), jnp.int32)
    encoder = Encoder(config, causal=False).init(
        encoder_key, jnp.zeros((1, 2, width)), Inputs(tokens, tokens, tokens, tokens), None
    )["params"]
    params = {"items": {"embedding": embedding, "bias": jnp.zeros(rows)}, "encoder": encoder}
    if num_features:
        feature_key = jax.random.fold_in(table_key, 1)
        params["features"] = _initializer(config)(feature_key, (num_features, width), jnp.float32)
    return params


def encode(
    config: ModelConfig,
    encoder_params: dict,
    x_BLD: jax.Array,
    inputs: Inputs,
    draws: Draws | None,
    causal: bool | tuple[bool, ...],
) -> jax.Array:
    """Runs the Transformer on looked-up embeddings.

    Args:
      config: the model's configuration.
      encoder_params: `params["encoder"]`.
      x_BLD: float32[B, L, D], item embeddings of `inputs.tokens`.
      inputs: see `Inputs`.
      draws: what dropout draws from in training, None in evaluation.
      causal: whether an item attends only to itself and to what came before it; one for each row where rows differ.

    Returns:
      float[B, K, D] hidden states at `inputs.slots`, ready for the product with the item table.
    """
    return Encoder(config, causal).apply({"params": encoder_params}, x_BLD, inputs, draws)


class Encoder(nn.Module):
    """Embedding sum, blocks and prediction head; see `encode`."""

    config: ModelConfig
    causal: bool | tuple[bool, ...]

    @nn.compact
    def __call__(self, x_BLD, inputs: Inputs, draws: Draws | None):
        """Maps looked-up embeddings [B, L, D] to hidden states [B, K, D] at the slots."""
        c = self.config
        draw = _draw_stream(draws)
        if c.scale_embeddings:
            x_BLD = x_BLD * c.width**0.5
        if c.positions != "rotary":
            table = self.param("position_embedding", _initializer(c), (c.max_length, c.width))
            x_BLD = x_BLD + _rows(table, inputs.positions)
        x_BLD = x_BLD.astype(c.dtype)
        if c.norm == "post":
            x_BLD = _layer_norm(c, "embedding_norm")(x_BLD)
        x_BLD = dropout(x_BLD, c.dropout, next(draw))
        # The last layer is another one where only slots are wanted of it.
        alike = c.layers - (inputs.slots is not None)
        looped = alike if alike > 2 and platform() == "tpu" and not self.is_initializing() else 0
        if looped:
            x_BLD = self._loop(x_BLD, inputs, [next(draw) for _ in range(looped)])
        block = nn.remat(Block, static_argnums=()) if c.remat else Block
        for layer in range(looped, c.layers):
            slots_BK = inputs.slots if layer == c.layers - 1 else None
            x_BLD = block(c, self.causal, name=f"block_{layer}")(
                x_BLD, inputs, slots_BK, next(draw)
            )
        h_BKD = x_BLD
        if c.norm == "pre":
            h_BKD = _layer_norm(c, "final_norm")(h_BKD)
        if c.head == "transform":
            h_BKD = gelu(_dense(c, c.width, "head_dense")(h_BKD))
            h_BKD = _layer_norm(c, "head_norm")(h_BKD)
        return h_BKD

    def _loop(self, x_BLD, inputs: Inputs, draws: list[Draws | None]):
        """Runs as many blocks, from the first on, as there are `draws`.

        Written out, blocks take a TPU's compiler time and code for every one; in a loop one is compiled for all. The
        backward pass keeps their products and what attention read, and computes what lies between again: kept as well,
        it would have to be written to memory for every turn.
        """
        from bert4rec_jax.model.kernels.attention_tpu import KEPT

        c = self.config
        layers = [self.variables["params"][f"block_{layer}"] for layer in range(len(draws))]

        def layer(x_BLD, turn):
            params, draws = turn
            return Block(c, self.causal, parent=None).apply(
                {"params": params}, x_BLD, inputs, None, draws
            ), None

        policies = jax.checkpoint_policies
        kept = (
            policies.nothing_saveable
            if c.remat
            else policies.save_from_both_policies(
                policies.dots_saveable, policies.save_only_these_names(KEPT)
            )
        )
        turns = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(layers, draws))
        return jax.lax.scan(jax.checkpoint(layer, policy=kept, prevent_cse=False), x_BLD, turns)[0]


class Block(nn.Module):
    """Attention and feed-forward sub-layers with residuals, normalised before (`pre`) or after (`post`)."""

    config: ModelConfig
    causal: bool | tuple[bool, ...]

    @nn.compact
    def __call__(self, x_BLD, inputs: Inputs, slots_BK, draws: Draws | None):
        """Maps [B, L, D] to [B, L, D], or to [B, K, D] where only `slots_BK` are wanted."""
        c = self.config
        draw = _draw_stream(draws)
        pre = c.norm == "pre"
        normed_BLD = _layer_norm(c, "attention_norm")(x_BLD) if pre else x_BLD
        attended = Attention(c, self.causal, name="attention")(
            normed_BLD, inputs, slots_BK, next(draw)
        )
        x = x_BLD if slots_BK is None else at_slots(x_BLD, slots_BK)
        x = x + dropout(attended, c.dropout, next(draw))
        if not pre:
            x = _layer_norm(c, "attention_norm")(x)
        y = _layer_norm(c, "ffn_norm")(x) if pre else x
        y = gelu(_dense(c, c.ffn_width, "ffn_in")(y))
        y = dropout(_dense(c, c.width, "ffn_out")(y), c.dropout, next(draw))
        return x + y if pre else _layer_norm(c, "ffn_norm")(x + y)


class Attention(nn.Module):
    """Multi-head attention inside each segment."""

    config: ModelConfig
    causal: bool | tuple[bool, ...]

    @nn.compact
    def __call__(self, x_BLD, inputs: Inputs, slots_BK, draws: Draws | None):
        """Maps [B, L, D] to [B, L, D], or to [B, K, D] where only `slots_BK` ask."""
        c = self.config
        _, L, D = x_BLD.shape
        columns_1L = jnp.arange(L)[None]
        keys = (inputs.segments, inputs.positions, columns_1L)
        query_BQD, queries = x_BLD, keys
        if slots_BK is not None:
            query_BQD = at_slots(x_BLD, slots_BK)
            queries = (
                *(jnp.take_along_axis(x_BL, slots_BK, axis=1) for x_BL in keys[:2]),
                slots_BK,
            )
        query_BQD, key_value_BLD2 = (
            _dense(c, D, "query")(query_BQD),
            _dense(c, 2 * D, "key_value")(x_BLD),
        )
        return _dense(c, D, "out")(
            attend(c, self.causal, query_BQD, key_value_BLD2, queries, keys, draws)
        )


def gelu(x: jax.Array) -> jax.Array:
    """Returns x * Phi(x) (Hendrycks and Gimpel 2016), by erf; XLA's erfc takes several times as long."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


def at_slots(x_BLD: jax.Array, slots_BK: jax.Array) -> jax.Array:
    """Returns x_BLD[b, slots_BK[b]]: [B, K, D]."""
    if platform() == "cpu":
        return cpu.gather_by_one_hot(x_BLD, slots_BK)
    return jnp.take_along_axis(x_BLD, slots_BK[:, :, None], axis=1, mode="clip")


def _rows(table_PD, ids):
    """Returns table_PD[ids]."""
    return cpu.lookup_with_one_hot_gradient(table_PD, ids) if platform() == "cpu" else table_PD[ids]


def _draw_stream(draws: Draws | None):
    """Yields draws with independent keys, or None for ever in evaluation."""
    number = 0
    while True:
        yield None if draws is None else draws._replace(key=jax.random.fold_in(draws.key, number))
        number += 1


def _initializer(config):
    return nn.initializers.truncated_normal(config.init_scale)


def _dense(config, features, name):
    return nn.Dense(features, dtype=config.dtype, kernel_init=_initializer(config), name=name)


def _layer_norm(config, name):
    return functools.partial(
        nn.LayerNorm, epsilon=1e-12 if config.dtype == "float32" else 1e-6, dtype=config.dtype
    )(name=name)
