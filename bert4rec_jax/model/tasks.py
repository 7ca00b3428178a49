# SPDX-License-Identifier: Apache-2.0
"""Training tasks: the Cloze task of BERT4Rec and the next-item task of SASRec."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.config import MaskingConfig
from bert4rec_jax.data import Packed
from bert4rec_jax.model.item_table import mask_token


class Task(NamedTuple):
    """Inputs with slots to predict.

    Attributes:
      tokens: int32[B, L], the tokens that the model sees.
      slots: int32[B, K], columns to predict at; None for all columns.
      labels: int32[B, K], item ids to predict there.
      weights: float32[B, K], 1, or 0 for an unused slot.
    """

    tokens: jax.Array
    slots: jax.Array | None
    labels: jax.Array
    weights: jax.Array


def masks_per_history(config: MaskingConfig, max_length: int) -> np.ndarray:
    """Returns int32[max_length + 1]: how many items of a history of each length are masked.

    As in the original code: the rounded share, at least one, at most `max_masks`.
    """
    counts = np.maximum(np.floor(config.probability * np.arange(max_length + 1) + 0.5), 1)
    return np.minimum(counts, config.max_masks or max_length).astype(np.int32)


def learns_next_item(share: float, rows: int) -> np.ndarray:
    """Returns bool[rows], whether a row learns the next item instead of masked items.

    These rows are spread evenly. If `share` of the rows of a device is a whole number, they do not
    depend on how a batch is distributed over devices.
    """
    whole = np.floor(np.arange(rows + 1) * share + 1e-3)
    return whole[1:] > whole[:-1]


def mask_items(
    config: MaskingConfig,
    packed: Packed,
    num_slots: int,
    num_items: int,
    key: jax.Array,
    row_numbers: jax.Array | np.ndarray,
) -> Task:
    """Masks a random subset of every history (Sun et al. 2019, section 3.5).

    Every history loses `masks_per_history` items, or only its last one with probability
    `last_item_only`.

    Args:
      config: the task's configuration.
      packed: the batch.
      num_slots: K, at least the number of masked items in any row.
      num_items: size of the catalogue.
      key: PRNG key of the step.
      row_numbers: int32[B], numbers of the rows in the whole batch. Every row has its own key, so
        that masks do not depend on how a batch is distributed over devices.
    """
    packed = Packed(*[jnp.asarray(x) for x in packed])
    draws = _Draws(key, jnp.asarray(row_numbers))
    B, L = packed.tokens.shape
    slots_BK = _choose_slots(config, packed, num_slots, draws)
    weights_BK = (slots_BK < L).astype(jnp.float32)
    slots_BK = jnp.minimum(slots_BK, L - 1)
    labels_BK = jnp.take_along_axis(packed.tokens, slots_BK, axis=1)
    shown_BK = _shown_tokens(config, labels_BK, num_items, draws)
    # Unused slots write to a column outside the row, so their writes are dropped.
    columns_BK = jnp.where(weights_BK > 0, slots_BK, L)
    seen_BL = packed.tokens.at[jnp.arange(B)[:, None], columns_BK].set(shown_BK, mode="drop")
    return Task(seen_BL, slots_BK, labels_BK, weights_BK)


class _Draws(NamedTuple):
    """Uniform random numbers, independent for each kind and each row of the whole batch."""

    key: jax.Array
    row_numbers: jax.Array

    def uniform(self, kind: int, count: int) -> jax.Array:
        """Returns float32[B, count] in [0, 1)."""
        kind_key = jax.random.fold_in(self.key, kind)

        def draw_row(row: jax.Array) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(kind_key, row), (count,))

        return jax.vmap(draw_row)(self.row_numbers)


def _choose_slots(
    config: MaskingConfig, packed: Packed, num_slots: int, draws: _Draws
) -> jax.Array:
    """Returns the columns of the masked items in order, int32[B, K]; L for unused slots."""
    _, segments_BL, from_left_BL, from_right_BL = packed
    L = segments_BL.shape[1]
    real_BL = segments_BL > 0
    count_BL = jnp.asarray(masks_per_history(config, L))[from_left_BL + from_right_BL + 1]
    draw_BL = draws.uniform(0, L)
    if config.last_item_only > 0:
        # The draw in the first column of a history decides for all of its columns.
        start_BL = jnp.arange(L) - from_left_BL
        is_chosen_BL = draws.uniform(1, L) < config.last_item_only
        last_only_BL = jnp.take_along_axis(is_chosen_BL, start_BL, axis=1)
        draw_BL = jnp.where(last_only_BL & (from_right_BL == 0), -0.5, draw_BL)
        count_BL = jnp.where(last_only_BL, 1, count_BL)
    # Sorting by (history, draw) permutes every history within its own columns, so `from_left` of a
    # sorted column is the rank of its draw. The items with the lowest ranks are masked.
    history_BL = jnp.where(real_BL, segments_BL, L + 1)
    order_BL = jnp.argsort(2.0 * history_BL + draw_BL, axis=1)
    masked_BL = (from_left_BL < count_BL) & real_BL
    return jnp.sort(jnp.where(masked_BL, order_BL, L), axis=1)[:, :num_slots]


def _shown_tokens(
    config: MaskingConfig, labels_BK: jax.Array, num_items: int, draws: _Draws
) -> jax.Array:
    """Returns the tokens in place of the masked items, int32[B, K].

    Each is [MASK], a random item or the item itself.
    """
    shown_BK = jnp.full_like(labels_BK, mask_token(num_items))
    if config.random_token + config.keep_token > 0:
        K = labels_BK.shape[1]
        draw_BK = draws.uniform(2, K)
        random_BK = 1 + (draws.uniform(3, K) * num_items).astype(jnp.int32)
        shown_BK = jnp.where(draw_BK < config.random_token + config.keep_token, labels_BK, shown_BK)
        shown_BK = jnp.where(draw_BK < config.random_token, random_BK, shown_BK)
    return shown_BK


def next_items(packed: Packed) -> Task:
    """Predicts the next item at all columns of a history but the last (Kang and McAuley 2018)."""
    tokens_BL, segments_BL, _, from_right_BL = map(jnp.asarray, packed)
    weights_BL = ((from_right_BL > 0) & (segments_BL > 0)).astype(jnp.float32)
    return Task(tokens_BL, None, jnp.roll(tokens_BL, -1, axis=1), weights_BL)
