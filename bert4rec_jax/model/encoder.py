# SPDX-License-Identifier: Apache-2.0
"""The bidirectional Transformer of BERT4Rec (Sun et al. 2019), and its causal twin SASRec.

Rows may hold several histories: `segments` keeps their attention apart and `positions` restart in each, so packing
changes speed and nothing else. What tells BERT4Rec from SASRec is `causal` alone. Only the slots that are asked for
leave the last layer, so its queries, its feed-forward network and everything after it are computed for those alone.

The item table is not part of the Flax module: it is input embedding and output layer at once and may be split over
devices, so it is a plain array (`item_table.py`) that the step looks up and the loss multiplies with.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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


def encoder_inputs(config: ModelConfig, packed: Packed, tokens: jax.Array, slots: jax.Array | None) -> Inputs:
    """Returns what the encoder reads of packed histories.

    Args:
      config: the model's configuration.
      packed: the rows.
      tokens: int32[B, L], what the model sees of them.
      slots: int32[B, K], columns whose hidden state is wanted; None for all of them.
    """
    positions = packed.from_right if config.positions == "right" else packed.from_left
    return Inputs(tokens, packed.segments, positions, slots)


def init_params(config: ModelConfig, num_items: int, key: jax.Array) -> dict:
    """Returns fresh parameters: `items` (embedding float32[V, D], bias float32[V]) and `encoder`."""
    table_key, encoder_key = jax.random.split(key)
    rows, width = table_rows(num_items), config.width
    embedding = _initializer(config)(table_key, (rows, width), jnp.float32)
    tokens = jnp.zeros((1, 2), jnp.int32)
    encoder = Encoder(config, (False,)).init(
        encoder_key, jnp.zeros((1, 2, width)), (Inputs(tokens, tokens, tokens, tokens),), None)["params"]
    return {"items": {"embedding": embedding, "bias": jnp.zeros(rows)}, "encoder": encoder}


def encode(config: ModelConfig, encoder_params: dict, x_BLD: jax.Array, inputs: Inputs,
           draws: Draws | None, causal: bool) -> jax.Array:
    """Runs the Transformer on looked-up embeddings.

    Args:
      config: the model's configuration.
      encoder_params: `params["encoder"]`.
      x_BLD: float32[B, L, D], item embeddings of `inputs.tokens`.
      inputs: see `Inputs`.
      draws: what dropout draws from in training, None in evaluation.
      causal: whether an item attends only to itself and to what came before it.

    Returns:
      float[B, K, D] hidden states at `inputs.slots`, ready for the product with the item table.
    """
    return encode_groups(config, encoder_params, x_BLD, (inputs,), draws, (causal,))


def encode_groups(config: ModelConfig, encoder_params: dict, x_BLD: jax.Array, groups: tuple[Inputs, ...],
                  draws: Draws | None, causal: tuple[bool, ...]) -> jax.Array:
    """Runs the Transformer on rows of several kinds at once, which computes what one `encode` for each would.

    Args:
      config: as in `encode`.
      encoder_params: as in `encode`.
      x_BLD: float32[B, L, D], embeddings of all rows, those of the first group first.
      groups: inputs of each group.
      draws: of all rows.
      causal: of each group.

    Returns:
      float[B, K, D] of one group, [M, D] of several: group after group, row after row, slot after slot.
    """
    return Encoder(config, causal).apply({"params": encoder_params}, x_BLD, groups, draws)


class Encoder(nn.Module):
    """Embedding sum, blocks and prediction head; see `encode_groups`."""

    config: ModelConfig
    causal: tuple[bool, ...]

    @nn.compact
    def __call__(self, x_BLD, groups: tuple[Inputs, ...], draws: Draws | None):
        """Maps looked-up embeddings [B, L, D] to hidden states at the slots."""
        c = self.config
        draw = _draw_stream(draws)
        if c.scale_embeddings:
            x_BLD = x_BLD * c.width**0.5
        if c.positions != "rotary":
            table = self.param("position_embedding", _initializer(c), (c.max_length, c.width))
            x_BLD = x_BLD + _rows(table, _all_rows(groups)[1])
        x_BLD = x_BLD.astype(c.dtype)
        if c.norm == "post":
            x_BLD = _layer_norm(c, "embedding_norm")(x_BLD)
        x_BLD = dropout(x_BLD, c.dropout, next(draw))
        block = nn.remat(Block, static_argnums=()) if c.remat else Block
        for layer in range(c.layers - 1):
            x_BLD = block(c, self.causal, name=f"block_{layer}")(x_BLD, groups, None, next(draw))
        slots = tuple(group.slots for group in groups)
        h = block(c, self.causal, name=f"block_{c.layers - 1}")(
            x_BLD, groups, None if slots == (None,) * len(slots) else slots, next(draw))
        if c.norm == "pre":
            h = _layer_norm(c, "final_norm")(h)
        if c.head == "transform":
            h = gelu(_dense(c, c.width, "head_dense")(h))
            h = _layer_norm(c, "head_norm")(h)
        return h if len(groups) == 1 or h.ndim == 2 else h.reshape(-1, c.width)


class Block(nn.Module):
    """Attention and feed-forward sub-layers with residuals, normalised before (`pre`) or after (`post`)."""

    config: ModelConfig
    causal: tuple[bool, ...]

    @nn.compact
    def __call__(self, x_BLD, groups, slots, draws: Draws | None):
        """Maps [B, L, D] to [B, L, D], or to what is wanted of it where `slots` of each group say so.

        That is [B, K, D] of one group and [M, D] of several. Slots of a group are None for all of its columns.
        """
        c = self.config
        draw = _draw_stream(draws)
        pre = c.norm == "pre"
        parts = ()
        if slots is not None and len(slots) > 1:
            parts = tuple((len(g.segments), (g.segments if s is None else s).shape[1]) for g, s in zip(groups, slots))
        normed_BLD = _layer_norm(c, "attention_norm")(x_BLD) if pre else x_BLD
        attended = Attention(c, self.causal, name="attention")(normed_BLD, groups, slots, next(draw))
        x = x_BLD if slots is None else _pick(x_BLD, groups, slots)
        x = x + dropout(attended, c.dropout, next(draw), parts)
        if not pre:
            x = _layer_norm(c, "attention_norm")(x)
        y = _layer_norm(c, "ffn_norm")(x) if pre else x
        y = gelu(_dense(c, c.ffn_width, "ffn_in")(y))
        y = dropout(_dense(c, c.width, "ffn_out")(y), c.dropout, next(draw), parts)
        return x + y if pre else _layer_norm(c, "ffn_norm")(x + y)


class Attention(nn.Module):
    """Multi-head attention inside each segment."""

    config: ModelConfig
    causal: tuple[bool, ...]

    @nn.compact
    def __call__(self, x_BLD, groups, slots, draws: Draws | None):
        """Maps [B, L, D] to [B, L, D], or to what `slots` ask for, as `Block` does."""
        c = self.config
        D = x_BLD.shape[-1]
        query = _dense(c, D, "query")(x_BLD if slots is None else _pick(x_BLD, groups, slots))
        key_value_BLD2 = _dense(c, 2 * D, "key_value")(x_BLD)
        if slots is None:
            keys = _all_rows(groups)
            causal = self.causal[0] if len(groups) == 1 else np.repeat(
                self.causal, [len(group.segments) for group in groups])
            read = attend(c, causal, query, key_value_BLD2, keys, keys, draws)
        else:
            read = self._read_at_slots(query, key_value_BLD2, groups, slots, draws)
        return _dense(c, D, "out")(read)

    def _read_at_slots(self, query, key_value_BLD2, groups, slots, draws):
        """Returns what queries read of their own group: [B, K, D] of one group, [M, D] of several."""
        read, row, place = [], 0, 0
        for group, slots_BK, causal in zip(groups, slots, self.causal):
            keys = queries = _all_rows((group,))
            if slots_BK is not None:
                queries = (*(jnp.take_along_axis(x_BL, slots_BK, axis=1) for x_BL in keys[:2]), slots_BK)
            (rows, columns), end = queries[0].shape, row + len(group.segments)
            query_BQD = query
            if len(groups) > 1:
                query_BQD = query[place:place + rows * columns].reshape(rows, columns, -1)
            own = None if draws is None else draws._replace(rows_B=draws.rows_B[row:end])
            read.append(attend(self.config, causal, query_BQD, key_value_BLD2[row:end], queries, keys, own))
            row, place = end, place + rows * columns
        return read[0] if len(read) == 1 else jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in read])


def gelu(x: jax.Array) -> jax.Array:
    """Returns x * Phi(x) (Hendrycks and Gimpel 2016), by erf; XLA's erfc takes several times as long."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


def _rows(table_PD, ids):
    """Returns table_PD[ids]."""
    return cpu.rows(table_PD, ids) if platform() == "cpu" else table_PD[ids]


def _all_rows(groups):
    """Returns segments and positions of all rows, [B, L], and columns [1, L]."""
    segments, positions = (groups[0][n] if len(groups) == 1 else jnp.concatenate([group[n] for group in groups])
                           for n in (1, 2))
    return segments, positions, jnp.arange(segments.shape[1])[None]


def _pick(x_BLD, groups, slots):
    """Returns x_BLD at the slots: [B, K, D] of one group, [M, D] of several, see `encode_groups`."""
    picked, row = [], 0
    for group, slots_BK in zip(groups, slots):
        end = row + len(group.segments)
        x = x_BLD[row:end] if len(groups) > 1 else x_BLD
        if slots_BK is not None:
            x = cpu.pick(x, slots_BK) if platform() == "cpu" else jnp.take_along_axis(
                x, slots_BK[:, :, None], axis=1, mode="clip")
        picked.append(x)
        row = end
    return picked[0] if len(picked) == 1 else jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in picked])


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
    return functools.partial(nn.LayerNorm, epsilon=1e-12 if config.dtype == "float32" else 1e-6,
                             dtype=config.dtype)(name=name)
