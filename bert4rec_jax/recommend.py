# SPDX-License-Identifier: Apache-2.0
r"""Recommends what to watch next, from a run directory alone.

  python -m bert4rec_jax.recommend --workdir runs/quickstart --history "Toy Story (1995)" --history "The Lion King"
  python -m bert4rec_jax.recommend --workdir runs/ml_25m --histories experiments/article_histories.json
"""

import dataclasses
import functools
import json
import os

import jax
import numpy as np
import pandas as pd
from absl import flags

from bert4rec_jax import config as config_lib
from bert4rec_jax import experiment as train
from bert4rec_jax.command_line import run_command
from bert4rec_jax.config import Config, ParallelConfig
from bert4rec_jax.data import load_dataset, split_dataset
from bert4rec_jax.data.batching import ranking_batches
from bert4rec_jax.devices.layout import Layout
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import encoder as model
from bert4rec_jax.model.item_table import candidate_bias, lookup, mask_token
from bert4rec_jax.serving.titles import TitleIndex
from bert4rec_jax.training.checkpoint import Checkpoints


class Recommender:
    """The best model of a run with the titles it knows."""

    def __init__(self, workdir: str):
        """Loads the run.

        Raises:
          UserError: `workdir` holds no trained model.
        """
        try:
            with open(os.path.join(workdir, "config.json"), encoding="utf-8") as file:
                config = config_lib.resolve(json.load(file))
            self.catalogue = pd.read_parquet(os.path.join(workdir, "catalogue.parquet"))
        except (OSError, ValueError):
            raise UserError(f"{workdir} is no run directory; train one with python -m bert4rec_jax.main --config FILE "
                            f"--workdir {workdir}.") from None
        # One device serves, however many trained.
        self.config = dataclasses.replace(config, parallel=ParallelConfig(data=1))
        self.titles = TitleIndex(self.catalogue)
        self.num_items = len(self.catalogue)
        template = jax.eval_shape(functools.partial(train.init_state, self.config, self.num_items))
        layout = Layout(self.config.parallel)
        template = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                                template, layout.shardings(template))
        with Checkpoints(os.path.join(workdir, "checkpoints"), read_only=True) as checkpoints:
            restored = checkpoints.restore_latest(template)
            if restored is None:
                raise UserError(f"{workdir} holds no checkpoint yet; train first.")
            state, progress = restored
            self.params = state.params
            if progress["best_step"] is not None:
                _, self.params = checkpoints.restore_params(progress["best_step"], template)
        self._scores = jax.jit(functools.partial(_scores, self.config, self.num_items))

    def recommend(self, history: list[int], k: int) -> list[tuple[int, float]]:
        """Returns the k best items that are not in the history, with their probabilities.

        Args:
          history: item ids, oldest first; of a longer one than the model takes, the newest part counts.
          k: how many; fewer come back where the catalogue has no more.
        """
        mask = mask_token(self.num_items) if self.config.model.objective == "masked" else None
        items = np.array([*history, 0], np.int32)
        (batch,) = ranking_batches(
            items, np.array([0]), np.array([len(history)]), self.config.model.max_length, 1, mask)
        inputs = model.encoder_inputs(self.config.model, batch.packed, batch.packed.tokens, batch.slots)
        scores = np.array(self._scores(self.params, inputs))[1:self.num_items + 1]
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        scores[np.array(history) - 1] = -np.inf
        best = np.argsort(-scores, kind="stable")[:min(k, self.num_items - len(set(history)))]
        return [(int(item) + 1, float(probabilities[item])) for item in best]

    def as_text(self, recommended: list[tuple[int, float]]) -> str:
        """Returns recommendations as a table."""
        labels = [self.titles.label(item) for item, _ in recommended]
        width = max(map(len, labels), default=0)
        lines = []
        for number, ((item, probability), label) in enumerate(zip(recommended, labels), 1):
            genres = self.catalogue.loc[item].get("genres")
            genres = "" if pd.isna(genres) else genres
            lines.append(f"{number:3d}  {label:{width}s}  {100 * probability:5.2f} %  {genres}")
        return "\n".join(line.rstrip() for line in lines)


def _scores(config: Config, num_items: int, params: dict, inputs: model.Inputs) -> jax.Array:
    """Returns float32[V], the scores of every row of the item table after one history."""
    x_BLD = lookup(params["items"]["embedding"], inputs.tokens)
    h_BKD = model.encode(config.model, params["encoder"], x_BLD, inputs, None,
                         causal=config.model.objective == "next")
    embedding_VD = params["items"]["embedding"].astype(h_BKD.dtype)
    return (embedding_VD @ h_BKD[0, 0]).astype(np.float32) + candidate_bias(params["items"]["bias"], num_items, None)


def example(workdir: str, config: Config) -> str:
    """Returns, as text, the newest items of a test user's history and what the run recommends after them."""
    recommender = Recommender(workdir)
    dataset = load_dataset(config.data)
    split = split_dataset(dataset, config.data)
    lengths = split.test_targets - dataset.offsets[split.test_users]
    # The user with the median history: neither the first nor the best, just a usual one.
    chosen = np.argsort(lengths, kind="stable")[len(lengths) // 2]
    user, target = split.test_users[chosen], split.test_targets[chosen]
    history = np.asarray(dataset.items[dataset.offsets[user]:target]).tolist()
    shown = "\n".join(f"     {recommender.titles.label(item)}" for item in history[-5:])
    name = dataset.user_table().loc[user, "user"]
    return (f"\nuser {name} has a history of {len(history)} items; the newest are\n{shown}\nrecommended next\n"
            f"{recommender.as_text(recommender.recommend(history, 10))}\nin fact next: "
            f"{recommender.titles.label(int(dataset.items[target]))}")


def _answer(recommender: Recommender, titles: list[str], k: int, skip_unknown: bool) -> dict:
    """Returns the history as understood, what the catalogue lacks, and the recommendations."""
    history, lacking = [], []
    for title in titles:
        try:
            history.append(recommender.titles.find(title))
        except UserError:
            if not skip_unknown:
                raise
            lacking.append(title)
    if not history:
        raise UserError(f"the catalogue has none of {titles}; this model was trained on other items.")
    return {"history": history, "lacking": lacking, "recommended": recommender.recommend(history, k)}


def _as_json(recommender: Recommender, answer: dict) -> dict:
    def describe(item):
        row = recommender.catalogue.loc[item]
        known = {name: row[name] for name in ("item", "title", "year", "genres") if not pd.isna(row.get(name))}
        return {name: int(value) if name == "year" else str(value) for name, value in known.items()}

    return {"history": [describe(item) for item in answer["history"]], "lacking": answer["lacking"],
            "recommended": [{**describe(item), "probability": p} for item, p in answer["recommended"]]}


def _print(recommender: Recommender, answer: dict) -> None:
    print("history: " + " | ".join(recommender.titles.label(item) for item in answer["history"]))
    if answer["lacking"]:
        print("lacking in this catalogue: " + " | ".join(answer["lacking"]))
    print(recommender.as_text(answer["recommended"]))


def main(arguments: list[str]) -> int:
    """Answers on stdout; returns the exit code."""
    f = flags.FLAGS
    if len(arguments) > 1:
        raise UserError(f"{arguments[1]!r} is not a flag; give every title with its own --history.")
    if bool(f.history) == bool(f.histories):
        raise UserError("give --history TITLE (once for every item, oldest first) or --histories FILE.")
    if f.k < 1:
        raise UserError(f"--k={f.k} must be at least 1.")
    named = {"": f.history}
    if f.histories:
        try:
            with open(f.histories, encoding="utf-8") as file:
                named = json.load(file)
        except (OSError, ValueError) as error:
            raise UserError(f"--histories {f.histories} cannot be read: {error}.") from None
    recommender = Recommender(f.workdir)
    answers = {name: _answer(recommender, titles, f.k, bool(f.histories)) for name, titles in named.items()}
    if f.json:
        values = {name: _as_json(recommender, answer) for name, answer in answers.items()}
        print(json.dumps(values if f.histories else values[""], indent=2, ensure_ascii=False))
        return 0
    for name, answer in answers.items():
        if name:
            print(f"\n{name}")
        _print(recommender, answer)
    return 0


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Directory of a trained run.", required=True)
    flags.DEFINE_multi_string("history", [], "Title or item id; once for every item, oldest first.")
    flags.DEFINE_string("histories", "", "JSON file of named histories: {name: [title, ...]}; unknown titles are named "
                        "and left out.")
    flags.DEFINE_integer("k", 10, "How many items to recommend.")
    flags.DEFINE_bool("json", False, "Print JSON.")


if __name__ == "__main__":
    _define_flags()
    run_command(main)
