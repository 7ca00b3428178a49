# SPDX-License-Identifier: Apache-2.0
"""A trained run as a Python object: histories in, recommendations, scores and embeddings out."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bert4rec_jax import config as config_lib
from bert4rec_jax.config import Config, ParallelConfig
from bert4rec_jax.data import ItemFeatures, feature_count
from bert4rec_jax.devices import Layout, Placement
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import fold_features
from bert4rec_jax.ranking import (
    Histories,
    PackedHistories,
    item_scores,
    own_histories,
    top_items,
    without_removed,
)
from bert4rec_jax.run_files import RunFiles
from bert4rec_jax.serving.titles import TitleIndex
from bert4rec_jax.training import Checkpoints, state_template

History = Sequence[str | int]


class Recommendation(NamedTuple):
    """One place of a ranked list.

    Attributes:
      number: item number, 1..num_items.
      item: original id.
      title: `Title (year)` as far as it is known, else the original id.
      score: logit; differences between scores of one history are differences of log-probabilities.
      probability: softmax over the whole catalogue, items of the history included.
    """

    number: int
    item: str
    title: str
    score: float
    probability: float


class Recommender:
    """The best model of a run with the titles it knows.

    Items of a history are given as titles or original ids (str, see `TitleIndex.find`) or as item numbers (int,
    1..num_items), oldest first. Of a longer history than the model takes, the newest part counts.

    Attributes:
      config: the run's configuration; one device serves, however many trained.
      catalogue: one row per item, index 1..num_items, with the original id, title, year, genres and
        training_interactions; the model has learnt nothing of an item that has none, unless by its features, a list
        of names where the run has such.
      titles: finds items by what people type.
      num_items: size of the catalogue.
      params: the parameters of the best checkpoint, with the features of items in the item table.
      step: its step.
    """

    def __init__(self, workdir: str):
        """Loads the run.

        Raises:
          UserError: `workdir` holds no trained model.
        """
        files = RunFiles(workdir)
        values = files.config()
        if values is None:
            raise UserError(
                f"{workdir} is not a run directory; train one with python -m bert4rec_jax.main "
                f"--config FILE --workdir {workdir}."
            )
        config = config_lib.resolve(values)
        self.files = files
        self.catalogue = files.items()
        self.config: Config = dataclasses.replace(config, parallel=ParallelConfig(data=1))
        self.titles = TitleIndex(self.catalogue)
        self.num_items = len(self.catalogue)
        self._layout = Layout(self.config.parallel)
        bags = (
            ItemFeatures.from_lists(self.catalogue["features"])
            if "features" in self.catalogue.columns
            else None
        )
        template = state_template(
            self.config, self.num_items, self._layout, feature_count(bags)
        ).params
        with Checkpoints(files.checkpoints_path, read_only=True) as checkpoints:
            progress = checkpoints.latest_progress()
            if progress is None:
                if trained := files.trained_from():
                    raise UserError(
                        f"{workdir} contains no model; it evaluated the model of {trained}. Use that run."
                    )
                raise UserError(f"{workdir} holds no checkpoint yet; train first.")
            best = progress["best_step"]
            self.step, params = checkpoints.restore_params(
                max(checkpoints.steps()) if best is None else best, template
            )
        self.params = (
            jax.jit(functools.partial(fold_features, features=bags))(params) if bags else params
        )
        self._map = functools.cache(
            lambda k: self._layout.map(
                functools.partial(_score_step, self.config, self.num_items, k), self.params
            )
        )

    @property
    def results(self) -> dict | None:
        """The content of results.json; None if the run has not finished."""
        return self.files.results()

    @property
    def embeddings(self) -> np.ndarray:
        """float32[num_items, D]; row i belongs to item number i + 1."""
        return np.asarray(self.params["items"]["embedding"])[1 : self.num_items + 1]

    def numbers(self, history: History) -> list[int]:
        """Returns the item numbers of a history.

        Raises:
          UserError: it is empty, a title is unknown or ambiguous, or a number is out of range; says which.
        """
        if isinstance(history, str) or not len(history):
            raise UserError(
                "a history is a list of at least one title, original id or item number; this one is "
                + ("a single text." if isinstance(history, str) else "empty.")
            )
        return [self._number(item) for item in history]

    def _number(self, item: str | int) -> int:
        if isinstance(item, str):
            return self.titles.find(item)
        if isinstance(item, bool) or not isinstance(item, int | np.integer):
            raise UserError(
                f"{item!r} is neither a title or original id (str) nor an item number (int)."
            )
        if not 1 <= item <= self.num_items:
            raise UserError(
                f"item number {item} is out of range: there are items 1 to {self.num_items}."
            )
        return int(item)

    def recommend(
        self,
        history: History | Sequence[History],
        k: int = 10,
        include_seen: bool | None = None,
    ) -> list[Recommendation] | list[list[Recommendation]]:
        """Returns the k best items that are not in the history, best first.

        Args:
          history: one history, or a sequence of histories, which are scored together.
          k: how many; fewer come back where the catalogue has no more.
          include_seen: whether items of the history may be recommended again; None: as the run was evaluated
            (`eval.filter_seen`).

        Returns:
          A list of `Recommendation`s; for several histories a list of such lists.

        Raises:
          UserError: as `numbers`, or k is below 1.
        """
        if k < 1:
            raise UserError(f"k = {k} must be at least 1.")
        several = (
            len(history) > 0
            and isinstance(history[0], Sequence | np.ndarray)
            and not isinstance(history[0], str)
        )
        histories = [self.numbers(h) for h in (history if several else [history])]
        out = self._run(
            histories,
            min(k, self.num_items),
            self.config.eval.filter_seen if include_seen is None else not include_seen,
        )
        lists = [
            [
                self._recommendation(int(item), float(score), float(total))
                for item, score in zip(items, scores)
                if item
            ]
            for items, scores, total in zip(out["items"], out["scores"], out["log_total"])
        ]
        return lists if several else lists[0]

    def _recommendation(self, number: int, score: float, log_total: float) -> Recommendation:
        return Recommendation(
            number,
            str(self.catalogue.at[number, "item"]),
            self.titles.label(number),
            score,
            float(np.exp(score - log_total)),
        )

    def popular(self, k: int = 10) -> list[Recommendation]:
        """Returns the k items with the most training interactions; the score is their number.

        For histories of which the model knows nothing.
        """
        counts = self.catalogue["training_interactions"]
        best = counts.sort_values(ascending=False, kind="stable").index[:k]
        return [
            Recommendation(
                int(n),
                str(self.catalogue.at[n, "item"]),
                self.titles.label(n),
                float(counts[n]),
                float(counts[n] / counts.sum()),
            )
            for n in best
        ]

    def score(
        self, histories: Sequence[History], items: Sequence[str | int] | None = None
    ) -> np.ndarray:
        """Returns the scores of items after each history: float32[n, len(items)].

        They are those that the ranker compares, whatever the model's dtype; the same histories packed together give
        the same bits. Items of a history are scored like all others.

        Args:
          histories: n histories.
          items: titles, original ids or item numbers; None: all items, in the order of their numbers.

        Raises:
          UserError: as `numbers`.
        """
        columns = (
            np.arange(1, self.num_items + 1)
            if items is None
            else np.array([self._number(x) for x in items])
        )
        if not len(histories):
            return np.empty((0, len(columns)), np.float32)
        return self._run([self.numbers(h) for h in histories], 0, False)["all"][:, columns]

    def _run(self, histories: list[list[int]], k: int, remove_seen: bool) -> dict[str, np.ndarray]:
        """Scores histories in batches; with k = 0 returns `all` scores, else the best `items` and their `scores`."""
        lengths = np.array([len(h) for h in histories], np.int64)
        stops = np.cumsum(lengths)
        starts = stops - lengths
        items = np.array([*(item for h in histories for item in h), 0], np.int32)

        def seen(cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            place = np.repeat(np.arange(len(cases)), lengths[cases])
            return place, np.concatenate([items[starts[case] : stops[case]] for case in cases])

        # A single history is not padded to a batch of the evaluation.
        rows = min(self.config.eval.batch_rows, 1 << (len(histories) - 1).bit_length())
        packed = PackedHistories(
            self.config.model,
            self.num_items,
            items,
            starts,
            stops,
            rows,
            self._layout,
            seen if remove_seen else None,
        )
        result: dict[str, Any] = {}
        for cases, output in packed.run(self._map(k), self.params):
            for name, value in output.items():
                result.setdefault(name, np.zeros((len(histories), *value.shape[1:]), value.dtype))[
                    cases
                ] = value
        return result


def _score_step(
    config: Config,
    num_items: int,
    k: int,
    params: Any,
    batch: tuple[Histories, tuple],
    _key,
    placement: Placement,
) -> dict[str, jax.Array]:
    """Returns `all` scores float32[N, V] when k is 0, else `items` and `scores` [N, k] and `log_total` float32[N]."""
    histories, _ = batch
    axis, own = placement.items, histories.used_N.shape[0]
    scores_NV = item_scores(config.model, num_items, params, histories, placement)
    if k == 0:
        result = {"all": scores_NV}
    else:
        items_NK, scores_NK = top_items(without_removed(scores_NV, histories, axis), k, axis)
        result = {
            "items": items_NK,
            "scores": scores_NK,
            "log_total": jax.nn.logsumexp(scores_NV, axis=1),
        }
    return {name: own_histories(x, own, axis) for name, x in result.items()}
