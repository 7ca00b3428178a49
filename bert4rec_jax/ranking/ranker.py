# SPDX-License-Identifier: Apache-2.0
"""Exact ranking of every user's target against the catalogue, on the device."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.data import Dataset
from bert4rec_jax.devices import Layout, Placement
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import all_gather_rows, shard_offset
from bert4rec_jax.progress import ProgressBar
from bert4rec_jax.ranking.cases import Cases, Ranking, ranks_last
from bert4rec_jax.ranking.large import is_large, rank_in_chunks
from bert4rec_jax.ranking.negatives import NEGATIVES, protocol_negatives
from bert4rec_jax.ranking.scores import (
    Histories,
    PackedHistories,
    item_scores,
    own_histories,
    top_items,
    without_removed,
)

TOP = 10  # length of the lists behind coverage, novelty and popularity


def rank_step(
    config: Config,
    num_items: int,
    with_top: bool,
    params: dict,
    batch: tuple[Histories, tuple[jax.Array, jax.Array]],
    _key,
    placement: Placement,
) -> dict[str, jax.Array]:
    """Ranks one device's cases.

    Returns `greater`, `ties` and, with `with_top`, `top`, as in `Ranking`, and `finite`: 0 where a score is no number.

    Args:
      config: the run's configuration.
      num_items: size of the catalogue.
      with_top: whether to return the best items.
      params: `items` (this device's shard) and `encoder`.
      batch: the histories; int32[N] targets and int32[N, C] sampled candidates, C = 0 for full ranking.
      placement: where the function runs.
    """
    histories, (targets_N, sampled_NC) = batch
    axis, own = placement.items, histories.used_N.shape[0]
    items = params["items"]
    total = functools.partial(jax.lax.psum, axis_name=axis) if axis else lambda x: x
    scored = own * (jax.lax.axis_size(axis) if axis else 1)
    large = is_large(scored, items["bias"].shape[0], placement.platform)
    if large and not sampled_NC.shape[1]:
        with jax.default_matmul_precision(config.model.matmul_precision):
            target_N, greater_N, equal_N, top_NK = rank_in_chunks(
                config.model,
                num_items,
                params,
                histories,
                all_gather_rows(targets_N, axis),
                TOP,
                placement,
            )
        result = {"greater": greater_N, "ties": equal_N - 1} | ({"top": top_NK} if with_top else {})
        return _checked(result, target_N, items, total, own, axis)
    scores_NV = without_removed(
        item_scores(config.model, num_items, params, histories, placement), histories, axis
    )
    offset = shard_offset(scores_NV.shape[1], axis)
    targets_N = all_gather_rows(targets_N, axis) - offset
    local_N = jnp.arange(len(targets_N))
    target_N = total(
        scores_NV.at[local_N, targets_N].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    )
    if sampled_NC.shape[1]:
        compared = total(
            scores_NV.at[local_N[:, None], all_gather_rows(sampled_NC, axis) - offset].get(
                mode="fill", fill_value=0, wrap_negative_indices=False
            )
        )
        count = lambda condition: condition.sum(axis=1, dtype=jnp.int32)  # noqa: E731
        result = {
            "greater": count(compared > target_N[:, None]),
            "ties": count(compared == target_N[:, None]),
        }
    else:
        count = lambda condition: total(condition.sum(axis=1, dtype=jnp.int32))  # noqa: E731
        result = {
            "greater": count(scores_NV > target_N[:, None]),
            "ties": count(scores_NV == target_N[:, None]) - 1,
        }
    if with_top:
        result["top"] = top_items(scores_NV, TOP, axis)[0]
    return _checked(result, target_N, items, total, own, axis)


def _checked(
    result: dict, target_N: jax.Array, items: dict, total: Callable, own: int, axis: str | None
) -> dict:
    """Returns this device's part of the results, with `finite`: whether the scores behind them are numbers."""
    # Of scores that are no numbers none is greater than the target's, which would then rank first.
    table_sum = total(items["embedding"].sum() + items["bias"].sum())
    result["finite"] = (jnp.isfinite(target_N) & jnp.isfinite(table_sum)).astype(jnp.int32)
    return {name: own_histories(x, own, axis) for name, x in result.items()}


class Ranker:
    """Ranks a fixed set of cases with any parameters of one model; batches are laid out once, shapes never change.

    Attributes:
      histories: the cases' histories, packed.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        cases: Cases,
        layout: Layout,
        popularity: np.ndarray | None = None,
    ):
        """Packs the cases and lists what each user has seen.

        Args:
          config: the run's configuration.
          dataset: the data.
          cases: what is to be ranked.
          layout: the devices.
          popularity: int64[num_items + 1], training counts; needed by the protocol pop100.
        """
        self._config, self._layout, self._num_items = config, layout, dataset.num_items
        layout.check_rows(config.eval.batch_rows, "config.eval.batch_rows")
        self._cases, self._items = cases, dataset.items
        self._target_items = np.asarray(dataset.items[cases.targets], np.int32)
        self._last = ranks_last(config.eval, dataset, cases)
        filtered = config.eval.filter_seen
        self.histories = PackedHistories(
            config.model,
            dataset.num_items,
            dataset.items,
            cases.starts,
            cases.targets,
            config.eval.batch_rows // layout.num_devices,
            layout,
            self._seen_pairs if filtered else None,
        )
        self._sampled = np.empty((len(cases.users), 0), np.int32)
        self._candidates = np.full(len(cases.users), dataset.num_items, np.int32)
        if config.eval.protocol != "full":
            self._candidates[:] = 1 + NEGATIVES
            self._sampled = protocol_negatives(config.eval, dataset, cases.users, popularity)
        else:
            # The target is always ranked, be it last.
            self._candidates -= self.histories.removed_counts - self._last
        self._compiled = {}

    def _seen_pairs(self, cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (place among `cases`, item) of every event of the histories.

        The target's own item is not among them, unless it ranks last: then it is seen like the others, and in no list.
        """
        place, item = self._cases.events(self._items, cases)
        kept = (item != self._target_items[cases][place]) | self._last[cases][place]
        return place[kept], item[kept]

    def _targets(self, cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns targets and sampled candidates of a device's cases, filled up to the size of a batch."""
        targets = np.ones(self.histories.size, np.int32)
        sampled = np.ones((self.histories.size, self._sampled.shape[1]), np.int32)
        targets[: len(cases)], sampled[: len(cases)] = (
            self._target_items[cases],
            self._sampled[cases],
        )
        return targets, sampled

    def rank(
        self,
        params: Any,
        with_top: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
        title: str = "ranking",
    ) -> Ranking | None:
        """Ranks all cases with `params`.

        Args:
          params: placed on the layout.
          with_top: also return the best items of every case.
          should_stop: asked between batches; where it says so, ranking ends and None is returned.
          title: of the progress report.
        """
        if with_top not in self._compiled:
            step = functools.partial(rank_step, self._config, self._num_items, with_top)
            self._compiled[with_top] = self._layout.map(step, params)
        count, result = len(self._cases.users), {}
        with ProgressBar(title, count, "users", self._layout.process == 0) as phase:
            for cases, output in self.histories.run(
                self._compiled[with_top], params, self._targets
            ):
                for name, value in output.items():
                    result.setdefault(name, np.zeros((count, *value.shape[1:]), np.int32))[
                        cases
                    ] = value
                phase.advance(len(cases))
                if should_stop():
                    return None
        broken = int(count - result.pop("finite").sum())
        if broken:
            raise UserError(
                f"the scores of {broken} of {count} users are not finite: the parameters have diverged; "
                "lower config.optimizer.learning_rate or set config.optimizer.clip_norm, and start again "
                "in another --workdir."
            )
        return Ranking(**result, candidates=self._candidates, negatives=self._sampled).with_last(
            self._last
        )
