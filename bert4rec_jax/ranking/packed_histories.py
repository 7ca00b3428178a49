# SPDX-License-Identifier: Apache-2.0
"""Histories packed into batches of one shape, and the pipeline that scores them on all devices."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.data import RankingBatches
from bert4rec_jax.devices import Layout
from bert4rec_jax.model import encoder_inputs, mask_token
from bert4rec_jax.progress import waiting
from bert4rec_jax.ranking.history_spans import HistorySpans
from bert4rec_jax.ranking.scores import Histories

# Maps numbers of histories, int64[c], to pairs: an index into them and an item number, two int[p].
PairFunction = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
LEAST_ROUNDED_PAIRS = 64


class PackedHistories:
    """Histories packed once into batches of one shape, to be scored any number of times.

    Attributes:
      batch_size: N, the largest number of histories in a batch of one device.
      slots_per_row: K, the largest number of histories in a row.
      removed: the pairs that are not candidates.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_items: int,
        spans: HistorySpans,
        rows: int,
        layout: Layout,
        removed: PairFunction | None = None,
        round_shapes: bool = False,
    ):
        """Packs the histories.

        Args:
          config: the model's configuration.
          num_items: size of the catalogue.
          spans: at least one history.
          rows: rows of a batch on one device.
          layout: the devices.
          removed: returns the pairs that are not candidates; None removes nothing.
          round_shapes: round sizes up, so that other histories of about the same number and length
            have the same shapes and reuse the compiled program.
        """
        self._config = config
        self._layout = layout
        self._count = len(spans)
        self._round_shapes = round_shapes
        mask = mask_token(num_items) if config.appends_mask else None
        self._batches = RankingBatches(
            spans.items, spans.starts, spans.stops, config.max_length, rows, mask
        )
        numbers = range(len(self._batches))
        self.slots_per_row = self._rounded(self._batches[0].slots.shape[1])
        self.batch_size = self._rounded(max(len(self.case_ids(n)) for n in numbers))
        self.removed = self.padded_pairs(removed)

    def _rounded(self, size: int) -> int:
        """Rounds up to three significant bits: at most a quarter more, and four sizes between
        powers of two.
        """
        if not self._round_shapes:
            return size
        step = 1 << max(0, size.bit_length() - 3)
        return -(-size // step) * step

    def case_ids(self, number: int) -> np.ndarray:
        """Returns the numbers of the histories in a batch, int64[<= N]; none after the last
        batch.
        """
        if number >= len(self._batches):
            return np.empty(0, np.int64)
        return self._batches.case_ids(number)

    def padded_pairs(self, pairs: PairFunction | None) -> "PaddedPairs":
        """Returns the pairs of each batch, padded to one length."""
        counts = np.zeros(self._count, np.int32)
        if pairs is None:
            return PaddedPairs(None, counts, 0, self.batch_size)
        longest = 0
        # The pairs of all batches may be as many as the log has events, so that they are not kept.
        for number in range(len(self._batches)):
            cases = self.case_ids(number)
            index, _ = pairs(cases)
            longest = max(longest, len(index))
            counts[cases] = np.bincount(index, minlength=len(cases))
        if self._round_shapes:
            longest = 1 << (max(longest, LEAST_ROUNDED_PAIRS) - 1).bit_length()
        return PaddedPairs(pairs, counts, longest, self.batch_size)

    def device_batch(self, number: int) -> Histories:
        """Returns the histories of one batch, for one device; only filler after the last batch."""
        batch = self._batches[min(number, len(self._batches) - 1)]
        extra_slots = self.slots_per_row - batch.slots.shape[1]
        slots = np.pad(batch.slots, ((0, 0), (0, extra_slots)))
        cases = np.pad(batch.cases, ((0, 0), (0, extra_slots)), constant_values=-1)
        slots_N = np.zeros(self.batch_size, np.int32)
        if number < len(self._batches):
            used = np.flatnonzero(cases.reshape(-1) >= 0)
            slots_N[: len(used)] = used
        inputs = encoder_inputs(self._config, batch.packed, batch.packed.tokens, slots)
        return Histories(inputs, slots_N, *self.removed.of(self.case_ids(number)))

    def run(
        self,
        compiled: Callable[[Any, Any], dict[str, jax.Array]],
        params: Any,
        extra: Callable[[np.ndarray], Any] = lambda case_ids: (),
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Scores all histories, a batch of all devices at a time.

        Args:
          compiled: a function of (params, (Histories, extra)) from `Layout.compile_per_row`.
          params: placed on the layout.
          extra: maps the numbers of one device's histories to further arrays, of one shape for all
            batches.

        Yields:
          Numbers of histories, and a dictionary of host arrays with one row for each of them.
        """
        layout = self._layout
        per_process = layout.num_devices // layout.processes
        in_flight = []  # the devices compute a batch while the host takes the one before
        for first in range(0, len(self._batches), layout.num_devices):
            first_here = first + layout.process * per_process
            parts = []
            for number in range(first_here, first_here + per_process):
                parts.append((self.device_batch(number), extra(self.case_ids(number))))
            batch = jax.tree.map(lambda *x: np.concatenate(x), *parts)
            with waiting("compiling the ranking", layout.process == 0 and not first):
                in_flight.append((first, compiled(params, layout.put_batch(batch))))
            if len(in_flight) > 1:
                yield self._to_host(*in_flight.pop(0))
        for first, output in in_flight:
            yield self._to_host(first, output)

    def _to_host(
        self, first: int, output: dict[str, jax.Array]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        devices = range(self._layout.num_devices)
        case_ids = [self.case_ids(first + device) for device in devices]
        rows = [device * self.batch_size + np.arange(len(case_ids[device])) for device in devices]
        used = np.concatenate(rows)
        arrays = self._layout.to_host(output)
        return np.concatenate(case_ids), {name: x[used] for name, x in arrays.items()}


class PaddedPairs:
    """(history, item) pairs of the batches of `PackedHistories`, padded to one length.

    Attributes:
      counts: int32[n], pairs of each history.
      length: P, the number of pairs of a batch on one device, with filler.
    """

    def __init__(
        self, pairs: PairFunction | None, counts: np.ndarray, length: int, batch_size: int
    ):
        """Takes the pairs of each history, as `PackedHistories.padded_pairs` found them."""
        self.counts = counts
        self.length = length
        self._pairs = pairs
        self._batch_size = batch_size

    def of(self, case_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the histories, int32[P], and the items, int32[P], of one device's pairs.

        Filler pairs have the history N, which does not exist.
        """
        history_P = np.full(self.length, self._batch_size, np.int32)
        item_P = np.zeros(self.length, np.int32)
        if self._pairs and len(case_ids):
            index, items = self._pairs(case_ids)
            history_P[: len(index)] = index
            item_P[: len(items)] = items
        return history_P, item_P


def store_rows(
    result: dict[str, np.ndarray],
    count: int,
    case_ids: np.ndarray,
    arrays: dict[str, np.ndarray],
) -> None:
    """Writes the arrays of one batch into the rows `case_ids` of arrays with `count` rows."""
    for name, values in arrays.items():
        if name not in result:
            result[name] = np.zeros((count, *values.shape[1:]), values.dtype)
        result[name][case_ids] = values
