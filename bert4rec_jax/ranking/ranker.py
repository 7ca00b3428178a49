# SPDX-License-Identifier: Apache-2.0
"""Exact ranks of the target of every user among the whole catalogue, computed on the devices."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.data import Dataset
from bert4rec_jax.devices import Layout, Placement
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import ItemTable, Params, all_gather_rows, shard_offset
from bert4rec_jax.progress import ProgressBar
from bert4rec_jax.ranking.cases import Cases, Ranking, ranks_last
from bert4rec_jax.ranking.large import is_large, rank_in_chunks
from bert4rec_jax.ranking.negatives import NEGATIVES, protocol_negatives
from bert4rec_jax.ranking.packed_histories import PackedHistories, store_rows
from bert4rec_jax.ranking.score_results import (
    count_above_and_tied,
    merge_shard_scores,
    scores_of_items,
    sum_over_shards,
    top_k,
)
from bert4rec_jax.ranking.scores import Histories, item_scores, local_rows, mask_removed_items

LIST_LENGTH = 10  # of the lists behind coverage, novelty and popularity


def rank_step(
    config: Config,
    num_items: int,
    with_top: bool,
    params: Params,
    batch: tuple[Histories, tuple[jax.Array, jax.Array]],
    placement: Placement,
) -> dict[str, jax.Array]:
    """Ranks one device's cases.

    Args:
      config: the run's configuration.
      num_items: size of the catalogue.
      with_top: whether to return the best items.
      params: without features; `items` is this device's shard.
      batch: the histories; their targets, int32[N], and sampled candidates, int32[N, S]. S = 0
        ranks all items.
      placement: where the function runs.

    Returns:
      `greater`, `ties` and, with `with_top`, `top`, as in `Ranking`; and `finite`, 0 if a score is
      NaN or infinite.
    """
    histories, (targets_N, sampled_NS) = batch
    axis = placement.items
    items = params["items"]
    targets_N = all_gather_rows(targets_N, axis)
    is_sampled = sampled_NS.shape[1] > 0
    if not is_sampled and is_large(len(targets_N), len(items["bias"]), placement.platform):
        target_N, result = rank_in_chunks(
            config.model, num_items, params, histories, targets_N, LIST_LENGTH, placement
        )
    else:
        scores_NV = item_scores(config.model, num_items, params, histories, placement)
        scores_NV = mask_removed_items(scores_NV, histories, axis)
        target_N, result = _rank_scores(scores_NV, targets_N, sampled_NS, axis)
    if not with_top:
        del result["top"]
    result["finite"] = _is_finite(target_N, items, axis).astype(jnp.int32)
    return {name: local_rows(x, len(histories.slots_N), axis) for name, x in result.items()}


def _rank_scores(
    scores_NV: jax.Array, targets_N: jax.Array, sampled_NS: jax.Array, axis: str | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the score of each target, float32[N'], and its `greater`, `ties` and `top`, as in
    `Ranking`.
    """
    offset = shard_offset(scores_NV.shape[1], axis)
    target_N = merge_shard_scores(scores_of_items(scores_NV, targets_N, offset), axis)
    if sampled_NS.shape[1]:
        sampled_NS = all_gather_rows(sampled_NS, axis)
        compared_NS = merge_shard_scores(scores_of_items(scores_NV, sampled_NS, offset), axis)
        greater_N, ties_N = count_above_and_tied(compared_NS, target_N)
    else:
        counts = count_above_and_tied(scores_NV, target_N)
        greater_N, ties_N = (sum_over_shards(count_N, axis) for count_N in counts)
        ties_N -= 1  # the target itself
    top_NK = top_k(scores_NV, LIST_LENGTH, axis).items
    return target_N, {"greater": greater_N, "ties": ties_N, "top": top_NK}


def _is_finite(target_N: jax.Array, items: ItemTable, axis: str | None) -> jax.Array:
    """Returns bool[N], whether the scores of each history are finite."""
    # NaN never compares greater, so a NaN score would put the target first.
    table_sum = sum_over_shards(items["embedding"].sum() + items["bias"].sum(), axis)
    return jnp.isfinite(target_N) & jnp.isfinite(table_sum)


class Ranker:
    """Ranks a fixed set of cases with any parameters of one model. Shapes never change.

    Attributes:
      histories: the packed histories of the cases.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        cases: Cases,
        layout: Layout,
        popularity: np.ndarray | None = None,
    ):
        """Packs the cases and finds the items that each user has seen.

        Args:
          config: the run's configuration.
          dataset: the data.
          cases: what to rank.
          layout: the devices.
          popularity: int64[num_items + 1], training counts; required by the protocol pop100.
        """
        layout.check_rows(config.eval.batch_rows, "config.eval.batch_rows")
        self._config = config
        self._layout = layout
        self._num_items = dataset.num_items
        self._spans = cases.spans(dataset)
        self._targets = cases.target_items(dataset)
        self._ranks_last = ranks_last(config.eval, dataset, cases)
        self.histories = PackedHistories(
            config.model,
            dataset.num_items,
            self._spans,
            config.eval.batch_rows // layout.num_devices,
            layout,
            self._removed_items if config.eval.filter_seen else None,
        )
        count = len(cases.users)
        if config.eval.protocol == "full":
            self._sampled = np.empty((count, 0), np.int32)
            # A target that ranks last is removed and still counts as a candidate.
            removed = self.histories.removed.counts - self._ranks_last
            self._candidates = np.full(count, dataset.num_items, np.int32) - removed
        else:
            self._sampled = protocol_negatives(config.eval, dataset, cases.users, popularity)
            self._candidates = np.full(count, 1 + NEGATIVES, np.int32)
        self._compiled: dict[bool, Callable] = {}

    def _removed_items(self, cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index into `cases` and the item of every seen item that is not a candidate.

        The target is a candidate although it was seen, unless it ranks last.
        """
        index, items = self._spans.seen_items(cases)
        removed = (items != self._targets[cases][index]) | self._ranks_last[cases][index]
        return index[removed], items[removed]

    def _batch_targets(self, cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the targets and sampled candidates of one device's cases, padded to the batch
        size.
        """
        size = self.histories.batch_size
        targets_N = np.ones(size, np.int32)
        targets_N[: len(cases)] = self._targets[cases]
        sampled_NS = np.ones((size, self._sampled.shape[1]), np.int32)
        sampled_NS[: len(cases)] = self._sampled[cases]
        return targets_N, sampled_NS

    def rank(
        self,
        params: Params,
        with_top: bool = False,
        check_stop: Callable[[], None] = lambda: None,
        title: str = "ranking",
    ) -> Ranking:
        """Ranks all cases with `params`.

        Args:
          params: placed on the layout.
          with_top: whether to return the best items of every case.
          check_stop: called between batches; raises `Stopped` if a stop signal came.
          title: title of the progress report.
        """
        if with_top not in self._compiled:
            step = functools.partial(rank_step, self._config, self._num_items, with_top)
            self._compiled[with_top] = self._layout.compile_per_row(step, params)
        count = len(self._targets)
        result: dict[str, np.ndarray] = {}
        with ProgressBar(title, count, "users", self._layout.process == 0) as progress:
            batches = self.histories.run(self._compiled[with_top], params, self._batch_targets)
            for cases, output in batches:
                store_rows(result, count, cases, output)
                progress.advance(len(cases))
                check_stop()
        broken = int(count - result.pop("finite").sum())
        if broken:
            raise UserError(
                f"the scores of {broken} of {count} users are not finite: the parameters have "
                "diverged; "
                "lower config.optimizer.learning_rate or set config.optimizer.clip_norm, and start "
                "again "
                "in another --workdir."
            )
        ranking = Ranking(**result, candidates=self._candidates, negatives=self._sampled)
        return ranking.force_last(self._ranks_last)
