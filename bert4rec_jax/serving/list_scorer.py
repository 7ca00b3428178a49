# SPDX-License-Identifier: Apache-2.0
"""The best items of any number of histories, computed on all devices with few compilations."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.devices import Layout, Placement
from bert4rec_jax.model import Params, shard_offset
from bert4rec_jax.ranking import (
    Histories,
    HistorySpans,
    PackedHistories,
    PairFunction,
    item_scores,
    local_rows,
    mask_removed_items,
    store_rows,
)
from bert4rec_jax.ranking.score_results import keep_allowed, keep_pairs, log_probabilities, top_k
from bert4rec_jax.ranking.scores import gather_removed_pairs

_LEAST_COMPILED_K = 16
_MOST_SCORES = 2**25  # of a batch on one device: 128 MiB


class Lists(NamedTuple):
    """The lists of n histories.

    Attributes:
      items: int32[n, k], item numbers, best first; 0 after the last candidate.
      scores: float32[n, k], logits.
      probabilities: float32[n, k], softmax over the whole catalogue.
    """

    items: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray


class ListScorer:
    """Scores histories with one model. Device memory does not depend on the number of histories."""

    def __init__(
        self,
        config: Config,
        num_items: int,
        params: Params,
        layout: Layout,
        allowed: np.ndarray | None = None,
    ):
        """Places the model on the devices.

        Args:
          config: the run's configuration.
          num_items: size of the catalogue.
          params: without features.
          layout: the devices.
          allowed: bool[num_items + 1], items that may be in any list; None: all.
        """
        self._config = config
        self._num_items = num_items
        self._layout = layout
        self._params = layout.put_state(params)
        self._table_rows = len(params["items"]["bias"])
        if allowed is not None:
            allowed = np.pad(allowed, (0, self._table_rows - len(allowed)))
        self._allowed = allowed
        self._compiled: dict[Any, Callable] = {}

    def lists(
        self,
        spans: HistorySpans,
        k: int,
        removed: PairFunction | None = None,
        candidates: PairFunction | None = None,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> Lists:
        """Returns the best items of each history.

        Args:
          spans: the histories, of item numbers.
          k: length of the lists.
          removed: returns the items that are not recommended to each history; None removes nothing.
          candidates: returns the only items that may be recommended to each history; None: all.
          on_progress: called with the number of finished histories after every batch.
        """
        k = min(k, self._num_items)
        # Every k up to the next power of two shares one compiled program.
        compiled_k = max(_LEAST_COMPILED_K, 1 << (k - 1).bit_length())
        step = functools.partial(
            _list_step,
            self._config,
            self._num_items,
            min(compiled_k, self._num_items),
            self._allowed,
        )
        compiled = self._compile((compiled_k, candidates is not None), step)
        packed = self._pack(spans, removed)
        extra = packed.padded_pairs(candidates).of if candidates else _no_arrays
        result: dict[str, np.ndarray] = {}
        for case_ids, arrays in packed.run(compiled, self._params, extra):
            best = {name: values[:, :k] for name, values in arrays.items()}
            store_rows(result, len(spans), case_ids, best)
            on_progress(len(case_ids))
        return Lists(**result)

    def all_scores(self, spans: HistorySpans) -> np.ndarray:
        """Returns the scores of all rows of the item table after each history, float32[n, V]."""
        step = functools.partial(_score_step, self._config, self._num_items)
        compiled = self._compile("all scores", step)
        result: dict[str, np.ndarray] = {}
        for case_ids, arrays in self._pack(spans, None).run(compiled, self._params):
            store_rows(result, len(spans), case_ids, arrays)
        return result["scores"]

    def _compile(self, key: Any, step: Callable) -> Callable:
        if key not in self._compiled:
            self._compiled[key] = self._layout.compile_per_row(step, self._params)
        return self._compiled[key]

    def _pack(self, spans: HistorySpans, removed: PairFunction | None) -> PackedHistories:
        return PackedHistories(
            self._config.model,
            self._num_items,
            spans,
            self._rows_per_device(spans),
            self._layout,
            removed,
            round_shapes=True,
        )

    def _rows_per_device(self, spans: HistorySpans) -> int:
        """Returns the rows of a batch on one device, a power of two, from the expected number of
        histories per row.
        """
        model = self._config.model
        lengths = np.minimum(spans.stops - spans.starts + model.appends_mask, model.max_length)
        rows = -(-int(lengths.sum()) // model.max_length)
        histories_per_row = len(spans) / rows
        most = int(_MOST_SCORES / self._table_rows / histories_per_row)
        most = max(1, min(most, self._config.eval.batch_rows))
        needed = -(-rows // self._layout.num_devices)
        return min(1 << (most.bit_length() - 1), 1 << (needed - 1).bit_length())


def seen_or_excluded(
    spans: HistorySpans, include_seen: bool, excluded: PairFunction | None = None
) -> PairFunction | None:
    """Returns the function that finds the items which are not recommended to each history.

    Args:
      spans: the histories.
      include_seen: whether items of a history may be recommended again.
      excluded: returns further items that are not recommended; None excludes nothing.

    Returns:
      None if nothing is removed.
    """
    functions: Iterable[PairFunction] = [
        function for function in (None if include_seen else spans.seen_items, excluded) if function
    ]
    if not functions:
        return None

    def removed(cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [function(cases) for function in functions]
        index = np.concatenate([index for index, _ in found])
        items = np.concatenate([items for _, items in found])
        return index, items

    return removed


def _no_arrays(case_ids: np.ndarray) -> tuple[()]:
    return ()


def _score_step(
    config: Config,
    num_items: int,
    params: Params,
    batch: tuple[Histories, tuple[()]],
    placement: Placement,
) -> dict[str, jax.Array]:
    """Returns `scores` float32[N, V] of one device's histories; the item table is whole."""
    histories, _ = batch
    return {"scores": item_scores(config.model, num_items, params, histories, placement)}


def _list_step(
    config: Config,
    num_items: int,
    k: int,
    allowed: np.ndarray | None,
    params: Params,
    batch: tuple[Histories, tuple[jax.Array, jax.Array] | tuple[()]],
    placement: Placement,
) -> dict[str, jax.Array]:
    """Returns the fields of `Lists` for one device's histories."""
    histories, candidates = batch
    axis = placement.items
    scores_NV = item_scores(config.model, num_items, params, histories, placement)
    rows = scores_NV.shape[1]
    offset = shard_offset(rows, axis)
    left_NV = mask_removed_items(scores_NV, histories, axis)
    if allowed is not None:
        allowed_V = jax.lax.dynamic_slice_in_dim(jnp.asarray(allowed), offset, rows)
        left_NV = keep_allowed(left_NV, allowed_V)
    if candidates:
        history_P, item_P = candidates
        only = histories._replace(removed_history_P=history_P, removed_item_P=item_P)
        left_NV = keep_pairs(left_NV, *gather_removed_pairs(only, axis), offset)
    best = top_k(left_NV, k, axis)
    result = {
        "items": best.items,
        "scores": best.scores,
        "probabilities": jnp.exp(log_probabilities(best.scores, scores_NV, axis)),
    }
    count = len(histories.slots_N)
    return {name: local_rows(x, count, axis) for name, x in result.items()}
