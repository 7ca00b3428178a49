# SPDX-License-Identifier: Apache-2.0
r"""Recommends what to watch next, from a run directory alone.

  python -m bert4rec_jax.recommend --workdir runs/quickstart --history "Toy Story (1995)" --history "The Lion King"
  python -m bert4rec_jax.recommend --workdir runs/ml_25m --histories experiments/article_histories.json
  python -m bert4rec_jax.recommend --workdir runs/ml_1m --users all --k 100 --out recommendations.parquet
  python -m bert4rec_jax.recommend --workdir runs/ml_1m --histories new_log.csv --k 100 --out recommendations.csv

With --out, everybody's lists are written: of all users of the run's data (--users all), of some (--users FILE), or of
the users of a new log (--histories LOG, in a format that training reads). A killed command goes on when it is started
again; the file appears when it is whole.

An item is named by its title or by its id in the data; `id:187` and `title:187` say which is meant.
"""

import json
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from bert4rec_jax.command_line import run_command
from bert4rec_jax.config import Config
from bert4rec_jax.errors import UserError
from bert4rec_jax.terminal import coloured, fitted

if TYPE_CHECKING:
    from bert4rec_jax.serving import Recommendation, Recommender


class Answer(NamedTuple):
    """What one history came to.

    Attributes:
      history: item numbers, as understood.
      lacking: what the catalogue lacks, with the reason where it is ambiguous.
      recommended: best first.
      popular: whether these are just the most popular items, because nothing of the history is known.
    """

    history: list[int]
    lacking: list[str]
    recommended: "list[Recommendation]"
    popular: bool


def as_text(recommender: "Recommender", recommended: "list[Recommendation]") -> str:
    """Returns recommendations as a table."""
    import pandas as pd

    width = max((len(r.title) for r in recommended), default=0)
    lines = []
    for place, r in enumerate(recommended, 1):
        genres = recommender.catalogue.loc[r.number].get("genres")
        genres = "" if pd.isna(genres) else genres
        lines.append(f"{place:3d}  {r.title:{width}s}  {100 * r.probability:5.2f} %  {genres}")
    return "\n".join(fitted(line.rstrip()) for line in lines) or "     nothing is left to recommend"


def example(workdir: str, config: Config) -> str:
    """Returns, as text, the newest items of a test user's history and what the run recommends after them."""
    import numpy as np

    from bert4rec_jax.data import load_dataset, split_dataset
    from bert4rec_jax.serving import Recommender

    recommender = Recommender(workdir)
    dataset = load_dataset(config.data, config.filter)
    split = split_dataset(dataset, config.split)
    lengths = split.test_targets - dataset.offsets[split.test_users]
    # The user with the median history: neither the first nor the best, just a usual one.
    chosen = np.argsort(lengths, kind="stable")[len(lengths) // 2]
    user, target = split.test_users[chosen], split.test_targets[chosen]
    history = np.asarray(dataset.items[dataset.offsets[user] : target]).tolist()
    shown = "\n".join(f"     {recommender.titles.label(item)}" for item in history[-5:])
    name = dataset.user_table().loc[user, "user"]
    return (
        f"\nuser {name} has a history of {len(history)} items; the newest are\n{shown}\n"
        f"{coloured('recommended next', 'bold')}\n"
        f"{as_text(recommender, recommender.recommend(history, 10))}\nin fact next: "
        f"{recommender.titles.label(int(dataset.items[target]))}"
    )


def answer_all(
    recommender: "Recommender", named: dict[str, list[str]], k: int, skip_unknown: bool
) -> dict[str, Answer]:
    """Answers all histories; what is unknown is left out and named, or refused."""
    from bert4rec_jax.serving import AmbiguousTitle

    known, lacking = {}, {}
    for name, items in named.items():
        known[name], lacking[name] = [], []
        for item in items:
            try:
                known[name].append(recommender.titles.find(item))
            except UserError as error:
                if not skip_unknown:
                    raise
                lacking[name].append(
                    f"{item} ({error})" if isinstance(error, AmbiguousTitle) else item
                )
    scored = [name for name in named if known[name]]
    lists = (
        dict(zip(scored, recommender.recommend([known[name] for name in scored], k)))
        if scored
        else {}
    )
    popular = recommender.popular(k)
    return {
        name: Answer(known[name], lacking[name], lists.get(name, popular), name not in lists)
        for name in named
    }


def _as_json(recommender: "Recommender", answer: Answer) -> dict:
    import pandas as pd

    def describe(number):
        row = recommender.catalogue.loc[number]
        known = {
            name: row[name]
            for name in ("item", "title", "year", "genres")
            if not pd.isna(row.get(name))
        }
        return {name: int(value) if name == "year" else str(value) for name, value in known.items()}

    return {
        "history": [describe(item) for item in answer.history],
        "lacking": answer.lacking,
        "by": "popularity" if answer.popular else "the model",
        "recommended": [
            {**describe(r.number), "probability": r.probability} for r in answer.recommended
        ],
    }


def _print(recommender: "Recommender", answer: Answer) -> None:
    understood = (
        f"{recommender.titles.label(n)} [id {recommender.catalogue.at[n, 'item']}]"
        for n in answer.history
    )
    print("history: " + (" | ".join(understood) or "nothing of it is known"))
    if answer.lacking:
        print("not in this catalogue: " + " | ".join(answer.lacking))
    if answer.popular:
        print("most popular in training, as the model has nothing to go by")
    print(as_text(recommender, answer.recommended))


def main(arguments: list[str]) -> int:
    """Answers on stdout; returns the exit code."""
    f = flags.FLAGS
    if len(arguments) > 1:
        raise UserError(f"{arguments[1]!r} is not a flag; give every title with its own --history.")
    if f.out:
        return _write_lists()
    for name in ("users", "candidates", "exclude", "include_seen", "catalogue"):
        if f[name].present:
            raise UserError(f"--{name} is about everybody's lists and needs --out FILE.")
    if bool(f.history) == bool(f.histories):
        raise UserError(
            "give --history TITLE (once for every item, oldest first) or --histories FILE."
        )
    if f.k < 1:
        raise UserError(f"--k={f.k} must be at least 1.")
    from bert4rec_jax.serving import Recommender, read_histories

    named = read_histories(f.histories) if f.histories else {"": f.history}
    recommender = Recommender(f.workdir)
    answers = answer_all(recommender, named, f.k, bool(f.histories))
    if f.json:
        values = {name: _as_json(recommender, answer) for name, answer in answers.items()}
        print(json.dumps(values if f.histories else values[""], indent=2, ensure_ascii=False))
        return 0
    for name, answer in answers.items():
        if name:
            print(f"\n{coloured(name, 'bold')}")
        _print(recommender, answer)
    return 0


def _write_lists() -> int:
    f = flags.FLAGS
    if f.history or f.json:
        raise UserError(
            f"--out writes everybody's lists; {'--history' if f.history else '--json'} has no use with it."
        )
    if not f.users and not f.histories:
        raise UserError("whose lists? Give --users all, --users FILE or --histories LOG.")
    if f.k < 1:
        raise UserError(f"--k={f.k} must be at least 1.")
    from bert4rec_jax.serving import Recommender
    from bert4rec_jax.serving.lists import write_lists

    done = write_lists(
        Recommender(f.workdir),
        f.out,
        f.k,
        f.users or "all",
        f.histories,
        f.candidates,
        f.exclude,
        f.include_seen,
        f.catalogue,
    )
    speed = f", {done['users_per_second']:,.0f} users a second" if done["users_per_second"] else ""
    print(f"the lists of {done['users']:,} users are in {f.out}{speed}")
    return 0


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Directory of a trained run.", required=True)
    flags.DEFINE_multi_string("history", [], "Title or item id; once for every item, oldest first.")
    flags.DEFINE_string(
        "histories",
        "",
        "JSON file of histories: {name: [title or id, ...]}, or a list of lists; "
        "unknown items are named and left out. With --out: a log whose users get lists.",
    )
    flags.DEFINE_integer("k", 10, "How many items to recommend.")
    flags.DEFINE_bool("json", False, "Print JSON.")
    flags.DEFINE_string("out", "", "Parquet or CSV file for everybody's lists.")
    flags.DEFINE_string("users", "", "Of --out: all, or a file with one user id a line.")
    flags.DEFINE_string(
        "candidates",
        "",
        "Of --out: file of the only items to recommend: one id a line for everybody, "
        "or the columns user and item.",
    )
    flags.DEFINE_string("exclude", "", "Of --out: file of items not to recommend, as --candidates.")
    flags.DEFINE_bool(
        "include_seen", False, "Of --out: recommend items of a user's own history too."
    )
    flags.DEFINE_integer(
        "catalogue", 1, "Of --out: devices that share the item table.", lower_bound=1
    )


if __name__ == "__main__":
    _define_flags()
    run_command(main)
