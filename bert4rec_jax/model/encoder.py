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
from bert4rec_jax.model.item_table import table_rows

# RoFormer has 10,000; histories are shorter than documents.
ROTARY_BASE = 1000.0


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
    encoder = Encoder(config, causal=False).init(
        encoder_key, jnp.zeros((1, 2, width)), Inputs(tokens, tokens, tokens, tokens), None)["params"]
    return {"items": {"embedding": embedding, "bias": jnp.zeros(rows)}, "encoder": encoder}


class Draws(NamedTuple):
    """What dropout draws from in training; None stands for evaluation.

    Every row of a batch draws for itself, so that what is dropped does not depend on how rows are dealt out to devices.

    Attributes:
      key: PRNG key of the step.
      rows_B: int32[B], numbers of the rows in the whole batch.
    """

    key: jax.Array
    rows_B: jax.Array


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
    return Encoder(config, causal).apply({"params": encoder_params}, x_BLD, inputs, draws)


class Encoder(nn.Module):
    """Embedding sum, blocks and prediction head; see `encode`."""

    config: ModelConfig
    causal: bool

    @nn.compact
    def __call__(self, x_BLD, inputs: Inputs, draws: Draws | None):
        """Maps looked-up embeddings [B, L, D] to hidden states [B, K, D] at the slots."""
        c = self.config
        draw = _draw_stream(draws)
        if c.positions != "rotary":
            table = self.param("position_embedding", _initializer(c), (c.max_length, c.width))
            x_BLD = x_BLD + cpu.rows(table, inputs.positions)
        x_BLD = x_BLD.astype(c.dtype)
        if c.norm == "post":
            x_BLD = _layer_norm(c, "embedding_norm")(x_BLD)
        x_BLD = dropout(x_BLD, c.dropout, next(draw))
        block = nn.remat(Block, static_argnums=()) if c.remat else Block
        for layer in range(c.layers):
            last = layer == c.layers - 1
            x_BLD = block(c, self.causal, name=f"block_{layer}")(
                x_BLD, inputs, inputs.slots if last else None, next(draw))
        if c.norm == "pre":
            x_BLD = _layer_norm(c, "final_norm")(x_BLD)
        if c.head == "transform":
            x_BLD = gelu(_dense(c, c.width, "head_dense")(x_BLD))
            x_BLD = _layer_norm(c, "head_norm")(x_BLD)
        return x_BLD


class Block(nn.Module):
    """Attention and feed-forward sub-layers with residuals, normalised before (`pre`) or after (`post`)."""

    config: ModelConfig
    causal: bool

    @nn.compact
    def __call__(self, x_BLD, inputs: Inputs, slots_BK, draws: Draws | None):
        """Maps [B, L, D] to [B, L, D], or to [B, K, D] where only `slots_BK` are wanted."""
        c = self.config
        draw = _draw_stream(draws)
        pre = c.norm == "pre"
        normed_BLD = _layer_norm(c, "attention_norm")(x_BLD) if pre else x_BLD
        attended = Attention(c, self.causal, name="attention")(normed_BLD, inputs, slots_BK, next(draw))
        x = x_BLD if slots_BK is None else cpu.pick(x_BLD, slots_BK)
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
    causal: bool

    @nn.compact
    def __call__(self, x_BLD, inputs: Inputs, slots_BK, draws: Draws | None):
        """Maps [B, L, D] to [B, L, D], or to [B, K, D] where only `slots_BK` ask."""
        c = self.config
        B, L, D = x_BLD.shape
        heads = (c.heads, D // c.heads)
        columns_1L = jnp.arange(L)[None]
        query_BQD, segments_BQ, positions_BQ, columns_BQ = x_BLD, inputs.segments, inputs.positions, columns_1L
        if slots_BK is not None:
            query_BQD, columns_BQ = cpu.pick(x_BLD, slots_BK), slots_BK
            segments_BQ, positions_BQ = (
                jnp.take_along_axis(x_BL, slots_BK, axis=1) for x_BL in (segments_BQ, positions_BQ))
        q_BHQE = _dense(c, D, "query")(query_BQD).reshape(B, -1, *heads).transpose(0, 2, 1, 3)
        k_BHLE, v_BHLE = _dense(c, 2 * D, "key_value")(x_BLD).reshape(B, L, 2, *heads).transpose(2, 0, 3, 1, 4)
        if c.positions == "rotary":
            q_BHQE, k_BHLE = rotate(q_BHQE, positions_BQ), rotate(k_BHLE, inputs.positions)
        # Padding is a segment of its own, so no row of scores is ever empty.
        allowed_BQL = segments_BQ[:, :, None] == inputs.segments[:, None, :]
        if self.causal:
            allowed_BQL &= columns_BQ[:, :, None] >= columns_1L
        scores_BHQL = jnp.einsum("bhqe,bhle->bhql", q_BHQE * heads[1] ** -0.5, k_BHLE)
        scores_BHQL = jnp.where(allowed_BQL[:, None], scores_BHQL.astype(jnp.float32), -1e9)
        scores_BHQL -= jax.lax.stop_gradient(scores_BHQL.max(-1, keepdims=True))
        weights_BHQL = jnp.exp(scores_BHQL)
        # Normalising after the product spares one pass over [B, H, Q, L].
        total_BHQ1 = weights_BHQL.sum(-1, keepdims=True)
        weights_BHQL = dropout(weights_BHQL.astype(x_BLD.dtype), c.attention_dropout, draws)
        y_BHQE = jnp.einsum("bhql,bhle->bhqe", weights_BHQL, v_BHLE) / total_BHQ1.astype(x_BLD.dtype)
        return _dense(c, D, "out")(y_BHQE.transpose(0, 2, 1, 3).reshape(B, -1, D))


def rotate(x_BHLE: jax.Array, positions_BL: jax.Array) -> jax.Array:
    """Turns queries or keys by angles in proportion to their positions (RoFormer, Su et al. 2021, section 3.2).

    The product of a query and a key then depends on how far apart they are and not on where. Pairs are (e, e + E/2).
    Wavelengths run from 2 pi to nearly 2 pi * `ROTARY_BASE` positions.

    Args:
      x_BHLE: float[B, H, L, E], E even.
      positions_BL: int32[B, L].
    """
    half = x_BHLE.shape[-1] // 2
    frequencies = ROTARY_BASE ** (-np.arange(half) / half)
    angle_B1LE = positions_BL[:, None, :, None] * frequencies.astype(np.float32)
    cos, sin = jnp.cos(angle_B1LE), jnp.sin(angle_B1LE)
    first, second = x_BHLE[..., :half], x_BHLE[..., half:]
    # In float32 whatever the dtype of x: a rounded angle would depend on the place.
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x_BHLE.dtype)


def dropout(x: jax.Array, rate: float, draws: Draws | None) -> jax.Array:
    """Zeroes a share `rate` of `x` ([B, ...]) and scales up the rest; the identity in evaluation.

    Whether an element stays is a hash of two numbers that its row draws and of its place in the row, in the integer
    arithmetic of MurmurHash3's finaliser: a few instructions that are computed again in the backward pass, where
    random bits of Threefry take twenty rounds and are kept in memory.
    """
    if draws is None or rate == 0:
        return x
    bits_B2 = jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(draws.key, row), (2,), jnp.uint32))(draws.rows_B)
    first, second = (bits.reshape(-1, *(1,) * (x.ndim - 1)) for bits in bits_B2.T)
    place = jax.lax.iota(jnp.uint32, x[0].size).reshape(1, *x.shape[1:])
    h = place * jnp.uint32(0x9E3779B1) + first
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B) ^ second
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    kept = h ^ (h >> 16) >= jnp.uint32(rate * 2**32)
    return jnp.where(kept, x * (1 / (1 - rate)), 0).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """Returns x * Phi(x) (Hendrycks and Gimpel 2016), by erf; XLA's erfc takes several times as long."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


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
