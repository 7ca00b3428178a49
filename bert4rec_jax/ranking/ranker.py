# SPDX-License-Identifier: Apache-2.0
"""Exact ranking of every user's target against the catalogue, on the device."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.data.batching import ranking_batches
from bert4rec_jax.data.dataset import Dataset
from bert4rec_jax.devices.layout import Axes, Layout
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import encoder as model
from bert4rec_jax.model.item_table import all_rows, candidate_bias, first_row, lookup, mask_token

TOP = 10  # length of the lists behind coverage, novelty and popularity
NEGATIVES = 100
_REMOVED = -2e9  # below the -1e9 of rows that are no items


class Cases(NamedTuple):
    """What is ranked: for each case a history items[start:target] and the item at `target`.

    Attributes:
      users: int32[n].
      starts: int64[n], first event of the history.
      targets: int64[n], event to predict.
    """

    users: np.ndarray
    starts: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """The outcome for each case.

    Attributes:
      greater: int32[n], candidates that score higher than the target.
      ties: int32[n], other candidates that score the same.
      candidates: int32[n], items that were ranked, the target included.
      top: int32[n, TOP] best items, or None.
    """

    greater: np.ndarray
    ties: np.ndarray
    candidates: np.ndarray
    top: np.ndarray | None = None

    def ranks(self, ties: str) -> np.ndarray:
        """Returns 1-based ranks: behind all ties (`pessimistic`), or in their middle (`expected`)."""
        if ties == "pessimistic":
            return 1 + self.greater + self.ties
        return 1 + self.greater + self.ties / 2


class _RankInputs(NamedTuple):
    """One device's part of a ranking batch; N cases, P (case, seen item) pairs, C sampled candidates."""

    inputs: model.Inputs
    used_N: Any  # int32, slot of each case in the flattened [B * K], 0 where there is no case
    targets_N: Any  # int32, item ids
    seen_case_P: Any  # int32, case of each pair; N where there is no pair
    seen_item_P: Any  # int32
    sampled_NC: Any  # int32, item ids; C = 0 for full ranking


def rank_step(config: Config, num_items: int, with_top: bool, params: dict, batch: _RankInputs, _key,
              axes: Axes) -> dict[str, jax.Array]:
    """Ranks one device's cases; see `Ranking` for what is returned."""
    items, axis = params["items"], axes.catalogue
    x_BLD = lookup(items["embedding"], batch.inputs.tokens, axis)
    h_BKD = model.encode(config.model, params["encoder"], x_BLD, batch.inputs, None,
                         causal=config.model.objective == "next")
    h_ND = h_BKD.reshape(-1, h_BKD.shape[-1])[batch.used_N]
    own = h_ND.shape[0]
    embedding_VD = items["embedding"].astype(h_ND.dtype)
    scores_NV = jnp.einsum("nd,vd->nv", all_rows(h_ND, axis), embedding_VD, preferred_element_type=jnp.float32)
    scores_NV += candidate_bias(items["bias"], num_items, axis)
    rows = scores_NV.shape[1]
    offset = first_row(rows, axis)
    case_P, item_P = batch.seen_case_P, batch.seen_item_P
    if axis is not None:
        place = jax.lax.axis_index(axis)
        case_P = jnp.where(case_P < own, case_P + place * own, scores_NV.shape[0])
    case_P, item_P = all_rows(case_P, axis), all_rows(item_P, axis) - offset
    targets_N = all_rows(batch.targets_N, axis) - offset
    scores_NV = scores_NV.at[case_P, item_P].set(_REMOVED, mode="drop", wrap_negative_indices=False)

    total = functools.partial(jax.lax.psum, axis_name=axis) if axis else lambda x: x
    local_N = jnp.arange(len(targets_N))
    target_N = total(scores_NV.at[local_N, targets_N].get(mode="fill", fill_value=0, wrap_negative_indices=False))
    if batch.sampled_NC.shape[1]:
        sampled_NC = all_rows(batch.sampled_NC, axis) - offset
        compared = total(scores_NV.at[local_N[:, None], sampled_NC].get(
            mode="fill", fill_value=0, wrap_negative_indices=False))
        count = lambda condition: condition.sum(axis=1, dtype=jnp.int32)  # noqa: E731
        result = {"greater": count(compared > target_N[:, None]), "ties": count(compared == target_N[:, None])}
    else:
        count = lambda condition: total(condition.sum(axis=1, dtype=jnp.int32))  # noqa: E731
        result = {"greater": count(scores_NV > target_N[:, None]),
                  "ties": count(scores_NV == target_N[:, None]) - 1}
    # Of scores that are no numbers none is greater than the target's, which would then rank first.
    table_sum = total(items["embedding"].sum() + items["bias"].sum())
    result["finite"] = (jnp.isfinite(target_N) & jnp.isfinite(table_sum)).astype(jnp.int32)
    if with_top:
        top_scores, top_items = jax.lax.top_k(scores_NV, min(TOP, rows))
        top_items += offset
        if axis is not None:
            top_scores = jax.lax.all_gather(top_scores, axis, axis=1, tiled=True)
            top_items = jax.lax.all_gather(top_items, axis, axis=1, tiled=True)
            _, best = jax.lax.top_k(top_scores, TOP)
            top_items = jnp.take_along_axis(top_items, best, axis=1)
        result["top"] = top_items
    if axis is not None:
        result = {k: jax.lax.dynamic_slice_in_dim(v, place * own, own) for k, v in result.items()}
    return result


class Ranker:
    """Ranks a fixed set of cases with any parameters of one model; batches are laid out once, shapes never change."""

    def __init__(self, config: Config, dataset: Dataset, cases: Cases, layout: Layout,
                 popularity: np.ndarray | None = None):
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
        masked = config.model.objective == "masked"
        self._batches = ranking_batches(
            dataset.items, cases.starts, cases.targets, config.model.max_length,
            config.eval.batch_rows // layout.num_devices, mask_token(dataset.num_items) if masked else None)
        self._cases, self._items = cases, dataset.items
        self._target_items = np.asarray(dataset.items[cases.targets], np.int32)
        seen = [self._seen_pairs(b.cases[b.cases >= 0]) for b in self._batches] if config.eval.filter_seen else []
        self._seen = seen or [(np.empty(0, np.int64),) * 2] * len(self._batches)
        self._most_cases = max((int((b.cases >= 0).sum()) for b in self._batches), default=1)
        self._most_pairs = max((len(case) for case, _ in self._seen), default=0)
        self._sampled = np.empty((len(cases.users), 0), np.int32)
        self._candidates = np.full(len(cases.users), dataset.num_items, np.int32)
        if config.eval.protocol == "full":
            for batch, (case, item) in zip(self._batches, self._seen):
                distinct = np.unique(case * np.int64(dataset.num_items + 1) + item) // (dataset.num_items + 1)
                numbers = batch.cases[batch.cases >= 0]
                self._candidates[numbers] -= np.bincount(distinct, minlength=len(numbers)).astype(np.int32)
        else:
            self._candidates[:] = 1 + NEGATIVES
            weights = np.ones(dataset.num_items + 1) if config.eval.protocol == "uni100" else popularity
            self._sampled = sample_negatives(dataset, cases.users, weights, NEGATIVES, config.seed)
        self._compiled = {}

    def _seen_pairs(self, cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (place among `cases`, item) of every event of the histories, but for the target's own item."""
        starts, targets = self._cases.starts[cases], self._cases.targets[cases]
        counts = targets - starts
        place = np.repeat(np.arange(len(cases)), counts)
        flat = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
        item = self._items[flat]
        kept = item != self._target_items[cases][place]
        return place[kept], item[kept]

    def _device_batch(self, number: int) -> _RankInputs:
        """Returns one device's batch; beyond the last one, an empty one."""
        template = self._batches[min(number, len(self._batches) - 1)]
        packed, slots, numbers = template
        used = np.zeros(self._most_cases, np.int32)
        targets = np.ones(self._most_cases, np.int32)
        seen_case = np.full(self._most_pairs, self._most_cases, np.int32)
        seen_item = np.zeros(self._most_pairs, np.int32)
        sampled = np.ones((self._most_cases, self._sampled.shape[1]), np.int32)
        if number < len(self._batches):
            places = np.flatnonzero(numbers.reshape(-1) >= 0)
            cases = numbers.reshape(-1)[places]
            used[:len(places)], targets[:len(places)] = places, self._target_items[cases]
            sampled[:len(places)] = self._sampled[cases]
            case, item = self._seen[number]
            seen_case[:len(case)], seen_item[:len(case)] = case, item
        inputs = model.encoder_inputs(self._config.model, packed, packed.tokens, slots)
        return _RankInputs(inputs, used, targets, seen_case, seen_item, sampled)

    def rank(self, params: dict, with_top: bool = False, should_stop=lambda: False) -> Ranking | None:
        """Ranks all cases with `params`.

        Args:
          params: placed on the layout.
          with_top: also return the best items of every case.
          should_stop: asked between batches; where it says so, ranking ends and None is returned.
        """
        layout = self._layout
        if with_top not in self._compiled:
            step = functools.partial(rank_step, self._config, self._num_items, with_top)
            self._compiled[with_top] = layout.map(step, params)
        per_process = layout.num_devices // layout.processes
        outputs = []
        for first in range(0, len(self._batches), layout.num_devices):
            if should_stop():
                return None
            mine = range(first + layout.process * per_process, first + (layout.process + 1) * per_process)
            batch = jax.tree.map(lambda *x: np.concatenate(x), *[self._device_batch(n) for n in mine])
            outputs.append(self._compiled[with_top](params, layout.put_batch(batch), jax.random.key(0)))
        return self._collect(outputs)

    def _collect(self, outputs: list[dict]) -> Ranking:
        n = len(self._cases.users)
        result = {}
        for number, output in enumerate(outputs):
            for name, value in self._layout.to_host(output).items():
                into = result.setdefault(name, np.zeros((n, *value.shape[1:]), np.int32))
                for device, part in enumerate(np.split(value, self._layout.num_devices)):
                    batch = number * self._layout.num_devices + device
                    if batch < len(self._batches):
                        numbers = self._batches[batch].cases.reshape(-1)
                        cases = numbers[numbers >= 0]
                        into[cases] = part[:len(cases)]
        broken = int(n - result.pop("finite").sum())
        if broken:
            raise UserError(f"the scores of {broken} of {n} users are not finite: the parameters have diverged; lower "
                            "config.optimizer.learning_rate or set config.optimizer.clip_norm, and start again in "
                            "another --workdir.")
        return Ranking(**result, candidates=self._candidates)


def sample_negatives(dataset: Dataset, users: np.ndarray, weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws items that a user never met, in proportion to `weights`, without repetition.

    Args:
      dataset: the data; all of a user's events count as met, the targets included.
      users: int32[n].
      weights: [num_items + 1], of ids 0..num_items.
      count: how many for each user; at most what the user has not met.
      seed: of the draw; the same seed gives the same negatives.

    Returns:
      int32[n, count].
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0x6E6567]))
    cumulative = np.cumsum(np.asarray(weights[1:], np.float64) + 1e-9)
    result = np.empty((len(users), count), np.int32)
    for row, user in enumerate(users):
        met = np.unique(dataset.items[dataset.offsets[user]:dataset.offsets[user + 1]])
        if len(weights) - 1 - len(met) < count:
            raise UserError(f"user number {user} has met {len(met)} of {len(weights) - 1} items, which leaves fewer "
                            f"than the {count} negatives of this protocol; set config.eval.protocol = 'full'.")
        chosen = np.empty(0, np.int32)
        while len(chosen) < count:
            draws = 1 + np.searchsorted(cumulative, generator.random(3 * count) * cumulative[-1], side="right")
            draws = np.r_[chosen, draws[~np.isin(draws, met)]]
            _, first = np.unique(draws, return_index=True)
            chosen = draws[np.sort(first)]
        result[row] = chosen[:count]
    return result
