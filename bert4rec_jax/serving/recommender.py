# SPDX-License-Identifier: Apache-2.0
"""A trained run as a Python object that maps histories to recommendations, scores and
embeddings.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import jax
import numpy as np

from bert4rec_jax import config as config_lib
from bert4rec_jax.config import Config, ParallelConfig
from bert4rec_jax.data import ItemFeatures, feature_count
from bert4rec_jax.devices import Layout
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import fold_features
from bert4rec_jax.ranking import HistorySpans
from bert4rec_jax.run_files import RunFiles
from bert4rec_jax.serving.list_scorer import ListScorer, seen_or_excluded
from bert4rec_jax.serving.titles import TitleIndex
from bert4rec_jax.training import Checkpoints, state_template

History = Sequence[str | int]


class Recommendation(NamedTuple):
    """One entry of a ranked list.

    Attributes:
      number: item number, 1..num_items.
      item: original id.
      title: `Title (year)` as far as known, else the original id.
      score: logit. Differences between scores of one history are differences of log-probabilities.
      probability: softmax over the whole catalogue, items of the history included.
    """

    number: int
    item: str
    title: str
    score: float
    probability: float


class Recommender:
    """The best model of a run, with the titles of its items.

    A history is a list of titles or original ids, oldest first, see `TitleIndex.find`; an integer
    is an original id too. If a history is longer than the model reads, its newest part is used.

    Item numbers, 1..num_items in the order of `items_table`, are used inside of the package. Only
    the methods whose names contain `numbers` take or return them.

    JAX does not survive a fork: load the run in the process that uses it.

    Attributes:
      files: the run directory.
      config: the run's configuration, for one device.
      items_table: one row per item, with the item number as index and the columns item (original
        id), title, year, genres and training_interactions; and features, a list of names, if the
        run has any. The model has learned nothing about an item without interactions and features.
      titles: finds items by title or id.
      num_items: size of the catalogue.
      params: the parameters of the best checkpoint, with item features folded into the item table.
      step: the step of that checkpoint.
    """

    def __init__(self, workdir: str):
        """Loads the run.

        Raises:
          UserError: `workdir` contains no trained model.
        """
        self.files = RunFiles(workdir)
        values = self.files.config()
        if values is None:
            raise UserError(
                f"{workdir} is not a run directory; train a run with python -m bert4rec_jax.main "
                f"--config FILE --workdir {workdir}."
            )
        config = config_lib.resolve(values)
        self.items_table = self.files.items()
        self._process = os.getpid()
        self.config: Config = dataclasses.replace(config, parallel=ParallelConfig(data=1))
        self.titles = TitleIndex(self.items_table)
        self.num_items = len(self.items_table)
        layout = Layout(self.config.parallel)
        features = None
        if "features" in self.items_table.columns:
            features = ItemFeatures.from_lists(self.items_table["features"])
        template = state_template(self.config, self.num_items, layout, feature_count(features))
        with Checkpoints(self.files.checkpoints_path, read_only=True) as checkpoints:
            progress = checkpoints.latest_progress()
            if progress is None:
                raise _no_model(self.files)
            best = progress.best_step
            if best is None:
                best = max(checkpoints.steps())
            self.step, params = checkpoints.restore_params(best, template.params)
        if features is not None:
            params = jax.jit(functools.partial(fold_features, features=features))(params)
        self.params = params
        self._scorer = ListScorer(self.config, self.num_items, params, layout)

    @property
    def results(self) -> dict | None:
        """The contents of results.json, or None if the run is not finished."""
        return self.files.results()

    @property
    def embeddings(self) -> np.ndarray:
        """float32[num_items, D]; row i belongs to item number i + 1."""
        return np.asarray(self.params["items"]["embedding"])[1 : self.num_items + 1]

    @property
    def popularity(self) -> np.ndarray:
        """int64[num_items], training interactions; element i belongs to item number i + 1."""
        return self.items_table["training_interactions"].to_numpy(np.int64)

    def item_numbers(self, history: History) -> list[int]:
        """Returns the item numbers of a history.

        Raises:
          UserError: the history is empty or not a list, or an item is unknown or ambiguous.
        """
        is_list = isinstance(history, Iterable) and not isinstance(
            history, str | bytes | Mapping | Set
        )
        if not is_list:
            raise UserError(
                "a history is a list of titles or original ids; this one is "
                + ("a single text." if isinstance(history, str) else f"{type(history).__name__}.")
            )
        numbers = [self._item_number(item) for item in history]
        if not numbers:
            raise UserError(
                "a history is a list of at least one title or original id; this one is empty."
            )
        return numbers

    def _item_number(self, item: str | int) -> int:
        if isinstance(item, str):
            return self.titles.find(item)
        if isinstance(item, int | np.integer) and not isinstance(item, bool):
            return self.titles.find_id(str(item))
        raise UserError(f"{item!r} is neither a title (str) nor an original id (str or int).")

    def recommend(
        self, history: History, k: int = 10, include_seen: bool | None = None
    ) -> list[Recommendation]:
        """Returns the k best items that are not in the history, best first.

        Args:
          history: titles or original ids, oldest first.
          k: how many items; the list is shorter if the catalogue has fewer.
          include_seen: whether items of the history may be recommended again. None: as the run was
            evaluated (`eval.filter_seen`).

        Raises:
          UserError: as `item_numbers`, or k is less than 1.
        """
        return self.recommend_many([history], k, include_seen)[0]

    def recommend_many(
        self, histories: Iterable[History], k: int = 10, include_seen: bool | None = None
    ) -> list[list[Recommendation]]:
        """Returns the lists of several histories, which are scored together; see `recommend`."""
        numbers = [self.item_numbers(history) for history in histories]
        return self.recommend_numbers(numbers, k, include_seen)

    def recommend_numbers(
        self, histories: Sequence[Sequence[int]], k: int = 10, include_seen: bool | None = None
    ) -> list[list[Recommendation]]:
        """Returns the lists of several histories of item numbers; see `recommend`."""
        self._check_process()
        if k < 1:
            raise UserError(f"k = {k} must be at least 1.")
        if not len(histories):
            return []
        if include_seen is None:
            include_seen = not self.config.eval.filter_seen
        spans = _spans(histories)
        lists = self._scorer.lists(spans, k, seen_or_excluded(spans, include_seen))
        return [
            [
                self._recommendation(int(item), float(score), float(probability))
                for item, score, probability in zip(*row, strict=True)
                if item
            ]
            for row in zip(*lists, strict=True)
        ]

    def _recommendation(self, number: int, score: float, probability: float) -> Recommendation:
        item = str(self.items_table.at[number, "item"])
        return Recommendation(number, item, self.titles.label(number), score, probability)

    def popular(self, k: int = 10) -> list[Recommendation]:
        """Returns the k items with the most training interactions; their number is the score.

        For histories without any known item.
        """
        counts = self.popularity
        best = np.argsort(-counts, kind="stable")[:k]
        return [
            self._recommendation(int(i) + 1, float(counts[i]), float(counts[i] / counts.sum()))
            for i in best
        ]

    def score(
        self, histories: Iterable[History], items: Sequence[str | int] | None = None
    ) -> np.ndarray:
        """Returns the scores of items after each history, float32[n, len(items)].

        They are the scores that the ranker compares, for any dtype of the model. Items of a history
        are scored like all others.

        Args:
          histories: n histories.
          items: titles or original ids; None: all items, in the order of `items_table`.

        Raises:
          UserError: as `item_numbers`.
        """
        scores = self.score_numbers([self.item_numbers(history) for history in histories])
        if items is None:
            return scores
        numbers = np.array([self._item_number(item) for item in items], np.int64)
        return scores[:, numbers - 1]

    def score_numbers(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns the scores of all items after histories of item numbers, float32[n, num_items];
        see `score`.
        """
        self._check_process()
        if not len(histories):
            return np.empty((0, self.num_items), np.float32)
        return self._scorer.all_scores(_spans(histories))[:, 1 : self.num_items + 1]

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise UserError(
                "this run was loaded before a fork, and JAX hangs in a forked process; load the "
                "run in the "
                "new process, or start it with multiprocessing.get_context('spawn')."
            )


def _spans(histories: Sequence[Sequence[int]]) -> HistorySpans:
    lengths = np.array([len(history) for history in histories], np.int64)
    stops = np.cumsum(lengths)
    items = np.concatenate([np.asarray(history, np.int32) for history in histories])
    return HistorySpans(items, stops - lengths, stops)


def _no_model(files: RunFiles) -> UserError:
    if trained := files.trained_from():
        return UserError(
            f"{files.folder} contains no model; it evaluated the model of {trained}. Use that run."
        )
    return UserError(f"{files.folder} contains no checkpoint yet; train first.")
