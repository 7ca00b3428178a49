# SPDX-License-Identifier: Apache-2.0
r"""Recommends what to watch next, from a run directory alone.

  python -m bert4rec_jax.recommend --workdir runs/quickstart --history "Toy Story (1995)" --history "The Lion King"
  python -m bert4rec_jax.recommend --workdir runs/ml_25m --histories experiments/article_histories.json
"""

import json

import numpy as np
import pandas as pd
from absl import flags

from bert4rec_jax.command_line import run_command
from bert4rec_jax.errors import UserError


def as_text(recommender, recommended) -> str:
    """Returns `Recommendation`s as a table."""
    width = max((len(r.title) for r in recommended), default=0)
    lines = []
    for place, r in enumerate(recommended, 1):
        genres = recommender.catalogue.loc[r.number].get("genres")
        genres = "" if pd.isna(genres) else genres
        lines.append(f"{place:3d}  {r.title:{width}s}  {100 * r.probability:5.2f} %  {genres}")
    return "\n".join(line.rstrip() for line in lines)


def example(workdir: str, config) -> str:
    """Returns, as text, the newest items of a test user's history and what the run recommends after them."""
    from bert4rec_jax.data import load_dataset, split_dataset
    from bert4rec_jax.serving import Recommender

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
            f"{as_text(recommender, recommender.recommend(history, 10))}\nin fact next: "
            f"{recommender.titles.label(int(dataset.items[target]))}")


def _answer(recommender, titles: list[str], k: int, skip_unknown: bool) -> dict:
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


def _as_json(recommender, answer: dict) -> dict:
    def describe(item):
        row = recommender.catalogue.loc[item]
        known = {name: row[name] for name in ("item", "title", "year", "genres") if not pd.isna(row.get(name))}
        return {name: int(value) if name == "year" else str(value) for name, value in known.items()}

    return {"history": [describe(item) for item in answer["history"]], "lacking": answer["lacking"],
            "recommended": [{**describe(r.number), "probability": r.probability} for r in answer["recommended"]]}


def _print(recommender, answer: dict) -> None:
    print("history: " + " | ".join(recommender.titles.label(item) for item in answer["history"]))
    if answer["lacking"]:
        print("lacking in this catalogue: " + " | ".join(answer["lacking"]))
    print(as_text(recommender, answer["recommended"]))


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
    from bert4rec_jax.serving import Recommender

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
