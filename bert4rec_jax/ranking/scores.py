# SPDX-License-Identifier: Apache-2.0
"""The scores of histories over the catalogue: the one place that scores, for ranks, lists and the API alike."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.data import RankingBatches
from bert4rec_jax.devices import Layout, Placement
from bert4rec_jax.model import (
    Inputs,
    all_gather_rows,
    encode,
    encoder_inputs,
    lookup,
    mask_non_items,
    mask_token,
    shard_offset,
)
from bert4rec_jax.progress import waiting

_REMOVED = -2e9  # below the -1e9 of rows that are no items


class Histories(NamedTuple):
    """One device's batch of N histories, with P (history, item) pairs that are no candidates.

    Attributes:
      inputs: the packed rows.
      used_N: int32, slot of each history in the flattened [B * K], 0 where there is no history.
      removed_case_P: int32, history of each pair; N where there is no pair.
      removed_item_P: int32, its item.
    """

    inputs: Inputs
    used_N: Any
    removed_case_P: Any
    removed_item_P: Any


def item_scores(
    config: ModelConfig, num_items: int, params: Any, histories: Histories, placement: Placement
) -> jax.Array:
    """Scores the catalogue after each history.

    Args:
      config: the model's configuration.
      num_items: size of the catalogue.
      params: `items` and `encoder`; `items` is this device's shard of the table.
      histories: this device's batch.
      placement: where the function runs.

    Returns:
      float32[N', V]: all histories of the devices of `axis` against this device's rows of the table, whatever the
      model's dtype; rows that are no items are below -1e8.
    """
    items = params["items"]
    offset = shard_offset(items["bias"].shape[0], placement.items)
    with jax.default_matmul_precision(config.matmul_precision):
        states_ND = history_states(config, params, histories, placement)
        return scored(states_ND, items, num_items, offset)


def history_states(
    config: ModelConfig, params: Any, histories: Histories, placement: Placement
) -> jax.Array:
    """Returns float[N', D], the hidden state after each history of the devices of `axis`; see `config.predict_from`."""
    if "features" in params:
        raise ValueError(
            "these parameters have item features: pass them through fold_features first"
        )
    inputs = histories.inputs
    axis = placement.items
    platform = placement.platform
    x_BLD = lookup(params["items"]["embedding"], inputs.tokens, axis)
    causal = config.predict_from == "last_item"
    h_BKD = encode(config, params["encoder"], x_BLD, inputs, None, causal, platform)
    if config.predict_from == "both":
        # Under causal attention nothing sees the [MASK], so the same rows serve. Scores are linear in hidden states:
        # the mean of these is the mean of both models' scores.
        last_BK = _columns_before(inputs)
        last = inputs._replace(slots=jnp.maximum(last_BK, 0))
        if config.positions == "right":  # in training no [MASK] came after the last item
            last = last._replace(positions=jnp.maximum(inputs.positions - 1, 0))
        last_BKD = encode(config, params["encoder"], x_BLD, last, None, True, platform)
        h_BKD = jnp.where((last_BK >= 0)[:, :, None], (h_BKD + last_BKD) / 2, h_BKD)
    return all_gather_rows(h_BKD.reshape(-1, h_BKD.shape[-1])[histories.used_N], axis)


def _columns_before(inputs: Inputs) -> jax.Array:
    """Returns int32[B, K], the column of the item before each slot, -1 where its history has none."""
    columns_L = jnp.arange(inputs.tokens.shape[1])
    segments_BK1 = jnp.take_along_axis(inputs.segments, inputs.slots, axis=1)[:, :, None]
    before_BKL = (columns_L < inputs.slots[:, :, None]) & (inputs.segments[:, None] == segments_BK1)
    return jnp.where(before_BKL, columns_L, -1).max(axis=2)


def scored(h_ND: jax.Array, items: dict, num_items: int, first: jax.Array | int) -> jax.Array:
    """Returns float32[N, C], hidden states against rows of the table, of which the first has the id `first`."""
    embedding_CD = items["embedding"].astype(h_ND.dtype)
    scores_NC = jnp.einsum("nd,vd->nv", h_ND, embedding_CD, preferred_element_type=jnp.float32)
    return scores_NC + mask_non_items(items["bias"], num_items, first)


def without_removed(scores_NV: jax.Array, histories: Histories, axis: str | None) -> jax.Array:
    """Returns what `item_scores` gave with the removed items below -1e8."""
    case_P, item_P = removed_pairs(histories, scores_NV.shape[0], axis)
    return scores_NV.at[case_P, item_P - shard_offset(scores_NV.shape[1], axis)].set(
        _REMOVED, mode="drop", wrap_negative_indices=False
    )


def removed_pairs(
    histories: Histories, count: int, axis: str | None
) -> tuple[jax.Array, jax.Array]:
    """Returns int32[P'] histories among all `count` of the devices of `axis`, and the items removed from each."""
    case_P, own = histories.removed_case_P, histories.used_N.shape[0]
    if axis is not None:
        case_P = jnp.where(case_P < own, case_P + jax.lax.axis_index(axis) * own, count)
    return all_gather_rows(case_P, axis), all_gather_rows(histories.removed_item_P, axis)


def top_items(scores_NV: jax.Array, k: int, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """Returns the best k items of every history over all shards: int32[N', k] ids, 0 where there are fewer candidates.

    Also returns their scores, float32[N', k].
    """
    rows = scores_NV.shape[1]
    scores_NK, items_NK = jax.lax.top_k(scores_NV, min(k, rows))
    return merged_top(scores_NK, items_NK + shard_offset(rows, axis), k, axis)


def merged_top(
    scores_NK: jax.Array, items_NK: jax.Array, k: int, axis: str | None
) -> tuple[jax.Array, jax.Array]:
    """Returns the best k of what each shard holds for the best, as `top_items` does."""
    if axis is not None:
        scores_NK = jax.lax.all_gather(scores_NK, axis, axis=1, tiled=True)
        items_NK = jax.lax.all_gather(items_NK, axis, axis=1, tiled=True)
        scores_NK, best = jax.lax.top_k(scores_NK, min(k, scores_NK.shape[1]))
        items_NK = jnp.take_along_axis(items_NK, best, axis=1)
    return jnp.where(scores_NK > -1e8, items_NK, 0), scores_NK


def own_histories(x: jax.Array, own: int, axis: str | None) -> jax.Array:
    """Returns this device's part of an array over all histories of the devices of `axis`."""
    return (
        x if axis is None else jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * own, own)
    )


class PackedHistories:
    """Histories laid out once in batches of one shape, to be scored any number of times.

    Attributes:
      count: how many there are, n.
      size: N, the most that a batch of one device holds.
      slots_in_a_row: K, the most that a row holds.
      pairs: P, the most (history, item) pairs that a batch of one device removes.
      removed_counts: int32[n], distinct items that are no candidates of each.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_items: int,
        items: np.ndarray,
        starts: np.ndarray,
        stops: np.ndarray,
        rows: int,
        layout: Layout,
        removed: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None,
    ):
        """Packs histories items[starts[n]:stops[n]].

        Args:
          config: the model's configuration.
          num_items: size of the catalogue.
          items: int32, the log; it must be longer than the largest of `stops`.
          starts: int64[n].
          stops: int64[n].
          rows: of a batch on one device.
          layout: the devices.
          removed: maps numbers of histories to (place among them, item) pairs that are no candidates; None: none are.
        """
        self._config, self._layout, self.count = config, layout, len(starts)
        self._batches = RankingBatches(
            items,
            starts,
            stops,
            config.max_length,
            rows,
            mask_token(num_items) if config.appends_mask else None,
        )
        self._removed = removed
        self.slots_in_a_row = self._batches[0].slots.shape[1] if self._batches else 1
        self.size = max((len(self.numbers(n)) for n in range(len(self._batches))), default=1)
        self.pairs, self.removed_counts = 0, np.zeros(self.count, np.int32)
        # The pairs of all batches may be as many as the log has events: each batch looks its own up again.
        for number in range(len(self._batches) if removed else 0):
            cases = self.numbers(number)
            case, item = removed(cases)
            self.pairs = max(self.pairs, len(case))
            distinct = np.unique(case * np.int64(num_items + 1) + item) // (num_items + 1)
            self.removed_counts[cases] = np.bincount(distinct, minlength=len(cases))

    def numbers(self, batch: int) -> np.ndarray:
        """Returns int[<= size]: which histories a batch holds; none beyond the last batch."""
        if batch >= len(self._batches):
            return np.empty(0, np.int64)
        return self._batches.case_ids(batch)

    def _device_batch(self, number: int) -> Histories:
        """Returns one device's batch; beyond the last one, one without histories."""
        packed, slots, numbers = self._batches[min(number, len(self._batches) - 1)]
        used = np.zeros(self.size, np.int32)
        removed_case = np.full(self.pairs, self.size, np.int32)
        removed_item = np.zeros(self.pairs, np.int32)
        if number < len(self._batches):
            places = np.flatnonzero(numbers.reshape(-1) >= 0)
            used[: len(places)] = places
            if self._removed:
                case, item = self._removed(self.numbers(number))
                removed_case[: len(case)], removed_item[: len(case)] = case, item
        inputs = encoder_inputs(self._config, packed, packed.tokens, slots)
        return Histories(inputs, used, removed_case, removed_item)

    def run(
        self,
        compiled: Callable,
        params: Any,
        beside: Callable[[np.ndarray], Any] = lambda numbers: (),
    ) -> Iterator[tuple[np.ndarray, dict]]:
        """Yields (numbers of histories, dict of host arrays with a row for each of them) a batch of all devices.

        Args:
          compiled: a function mapped by the layout, of (params, (Histories, what `beside` returns), key).
          params: placed on the layout.
          beside: maps the numbers of a device's histories to arrays of `size` rows that go with them.
        """
        layout, devices = self._layout, self._layout.num_devices
        per_process = devices // layout.processes
        under_way = []  # the device works on a batch while the host looks at the one before it
        for first in range(0, len(self._batches), devices):
            mine = range(
                first + layout.process * per_process, first + (layout.process + 1) * per_process
            )
            parts = [(self._device_batch(n), beside(self.numbers(n))) for n in mine]
            batch = jax.tree.map(lambda *x: np.concatenate(x), *parts)
            with waiting("compiling the ranking", layout.process == 0 and not first):
                under_way.append(
                    (first, compiled(params, layout.put_batch(batch), jax.random.key(0)))
                )
            if len(under_way) > 1:
                yield self._to_host(*under_way.pop(0))
        yield from (self._to_host(*x) for x in under_way)

    def _to_host(self, first: int, output: dict) -> tuple[np.ndarray, dict]:
        numbers = [self.numbers(first + device) for device in range(self._layout.num_devices)]
        kept = np.concatenate(
            [device * self.size + np.arange(len(n)) for device, n in enumerate(numbers)]
        )
        return np.concatenate(numbers), {
            name: x[kept] for name, x in self._layout.to_host(output).items()
        }
