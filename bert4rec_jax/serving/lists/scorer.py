# SPDX-License-Identifier: Apache-2.0
"""The best items of many histories on all devices: batches of few shapes, so that little is compiled."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.data import Packed
from bert4rec_jax.devices import Layout, Placement
from bert4rec_jax.model import encoder_inputs, mask_token, shard_offset
from bert4rec_jax.ranking import Histories, item_scores, own_histories, top_items, without_removed

_SHORTEST = 16
_MOST_ROWS = 512
_SCORES = 2**25  # scores of a batch on a device: 128 MiB


class Lists(NamedTuple):
    """The lists of n users.

    Attributes:
      items: int32[n, k], item numbers, best first; 0 where there are no more candidates.
      scores: float32[n, k], logits.
      probabilities: float32[n, k], softmax over the whole catalogue.
    """

    items: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray


class ListScorer:
    """Scores histories with one model; memory does not depend on how many."""

    def __init__(
        self,
        config: Config,
        num_items: int,
        params: Any,
        layout: Layout,
        k: int,
        allowed: np.ndarray | None,
        own_candidates: bool,
    ):
        """Places the model on the devices.

        Args:
          config: the run's configuration.
          num_items: size of the catalogue.
          params: as in a checkpoint.
          layout: the devices.
          k: length of the lists.
          allowed: bool[num_items + 1], items that may be recommended at all; None: all of them.
          own_candidates: whether each user comes with candidates of their own.
        """
        self._config, self._num_items, self._layout = config, num_items, layout
        self._params = layout.put_state(params)
        rows = params["items"]["bias"].shape[0]
        if allowed is not None:
            allowed = np.pad(allowed, (0, rows - len(allowed)))
        step = functools.partial(
            _list_step, config, num_items, min(k, num_items), allowed, own_candidates
        )
        self._step = layout.map(step, self._params)
        self._spare = int(config.model.appends_mask)
        self._most_rows = max(1, min(_MOST_ROWS, _SCORES // rows))
        self._own_candidates = own_candidates

    def lists(
        self,
        items: np.ndarray,
        starts: np.ndarray,
        stops: np.ndarray,
        removed: Callable | None,
        candidates: Callable | None = None,
        done: Callable[[int], None] = lambda count: None,
    ) -> Lists:
        """Returns the lists of histories items[starts[n]:stops[n]].

        Args:
          items: int32, item numbers.
          starts: int64[n].
          stops: int64[n].
          removed: maps numbers of histories to (place among them, item) pairs that are not recommended, or None.
          candidates: the same for the only items that are, or None.
          done: told how many are finished.
        """
        longest = self._config.model.max_length
        lengths = np.minimum(stops - starts + self._spare, longest)
        # Rows of one history each, of about its length: shapes do not depend on which histories come together.
        widths = np.minimum(
            np.maximum(_SHORTEST, 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)),
            longest,
        )
        result: dict[str, np.ndarray] = {}
        under_way: list = []  # the devices work on a batch while the host looks at the one before it
        for width in np.unique(widths).tolist():
            of_width = np.flatnonzero(widths == width)
            rows = self._rows(width)
            for first in range(0, len(of_width), rows * self._layout.num_devices):
                cases = of_width[first : first + rows * self._layout.num_devices]
                batch = self._batch(cases, rows, width, items, starts, stops, removed, candidates)
                under_way.append((cases, self._step(self._params, batch, jax.random.key(0))))
                if len(under_way) > 1:
                    done(self._keep(result, len(starts), *under_way.pop(0)))
        for cases, output in under_way:
            done(self._keep(result, len(starts), cases, output))
        return Lists(result["items"], result["scores"], result["probabilities"])

    def _rows(self, width: int) -> int:
        budget = self._config.eval.batch_rows * self._config.model.max_length // width
        return 2 ** int(np.log2(max(1, min(self._most_rows, budget))))

    def _keep(self, result: dict, count: int, cases: np.ndarray, output: dict) -> int:
        for name, value in self._layout.to_host(output).items():
            result.setdefault(name, np.zeros((count, *value.shape[1:]), value.dtype))[cases] = (
                value[: len(cases)]
            )
        return len(cases)

    def _batch(self, cases, rows, width, items, starts, stops, removed, candidates):
        devices = self._layout.num_devices
        tokens = np.zeros((rows * devices, width), np.int32)
        inside = np.zeros_like(tokens)
        lengths = np.zeros(rows * devices, np.int32)
        for row, case in enumerate(cases):
            newest = items[max(starts[case], stops[case] - (width - self._spare)) : stops[case]]
            tokens[row, : len(newest)] = newest
            if self._spare:
                tokens[row, len(newest)] = mask_token(self._num_items)
            lengths[row] = len(newest) + self._spare
        inside[:] = np.arange(width)
        real = inside < lengths[:, None]
        packed = Packed(
            tokens,
            real.astype(np.int32),
            np.where(real, inside, 0),
            np.where(real, lengths[:, None] - 1 - inside, 0),
        )
        slots = np.maximum(lengths - 1, 0)[:, None].astype(np.int32)
        inputs = encoder_inputs(self._config.model, packed, tokens, slots)
        used = np.tile(np.arange(rows, dtype=np.int32), devices)
        removed_pairs = self._pairs(removed, cases, rows)
        histories = Histories(inputs, used, *removed_pairs)
        only = self._pairs(candidates if self._own_candidates else None, cases, rows)
        return self._layout.put_batch((histories, only))

    def _pairs(
        self, pairs: Callable | None, cases: np.ndarray, rows: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns each device's (history, item) pairs, as many as a power of two on each."""
        devices = self._layout.num_devices
        place, item = pairs(cases) if pairs else (np.empty(0, np.int64), np.empty(0, np.int32))
        order = np.argsort(place, kind="stable")
        place, item = place[order], item[order]
        bounds = np.searchsorted(place, np.arange(devices + 1) * rows)
        most = int(np.diff(bounds).max())
        size = 1 if pairs is None else max(64, 1 << max(0, most - 1).bit_length())
        case_P, item_P = (
            np.full((devices, size), rows, np.int32),
            np.zeros((devices, size), np.int32),
        )
        for device in range(devices):
            own = slice(bounds[device], bounds[device + 1])
            case_P[device, : own.stop - own.start] = place[own] - device * rows
            item_P[device, : own.stop - own.start] = item[own]
        return case_P.reshape(-1), item_P.reshape(-1)


def _list_step(
    config: Config,
    num_items: int,
    k: int,
    allowed: np.ndarray | None,
    own_candidates: bool,
    params: Any,
    batch: tuple[Histories, tuple],
    _key,
    placement: Placement,
) -> dict[str, jax.Array]:
    """Returns `items` int32[N, k], `scores` and `probabilities` float32[N, k] of one device's histories."""
    histories, (only_case_P, only_item_P) = batch
    axis, own = placement.items, histories.used_N.shape[0]
    scores_NV = item_scores(config.model, num_items, params, histories, placement)
    highest_N1 = scores_NV.max(axis=1, keepdims=True)
    if axis is not None:
        highest_N1 = jax.lax.pmax(highest_N1, axis)
    total_N1 = jnp.exp(scores_NV - highest_N1).sum(axis=1, keepdims=True)
    if axis is not None:
        total_N1 = jax.lax.psum(total_N1, axis)
    log_total_N1 = highest_N1 + jnp.log(total_N1)
    left_NV = without_removed(scores_NV, histories, axis)
    lowest = jnp.float32(-2e9)
    if allowed is not None:
        rows = scores_NV.shape[1]
        own_V = jax.lax.dynamic_slice_in_dim(jnp.asarray(allowed), shard_offset(rows, axis), rows)
        left_NV = jnp.where(own_V, left_NV, lowest)
    if own_candidates:
        only = histories._replace(removed_case_P=only_case_P, removed_item_P=only_item_P)
        left_NV = jnp.where(
            without_removed(jnp.zeros_like(scores_NV), only, axis) < -1e8, left_NV, lowest
        )
    items_NK, scores_NK = top_items(left_NV, k, axis)
    result = {
        "items": items_NK,
        "scores": scores_NK,
        "probabilities": jnp.exp(scores_NK - log_total_N1),
    }
    return {name: own_histories(x, own, axis) for name, x in result.items()}
