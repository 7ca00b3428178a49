# SPDX-License-Identifier: Apache-2.0
r"""Recommends the next items for a history, from a run directory alone.

  python -m bert4rec_jax.recommend --workdir runs/quickstart \
      --history "Toy Story (1995)" --history "The Lion King"
  python -m bert4rec_jax.recommend --workdir runs/ml_25m \
      --histories experiments/article_histories.json
  python -m bert4rec_jax.recommend --workdir runs/ml_1m --users all --k 100 \
      --out recommendations.parquet
  python -m bert4rec_jax.recommend --workdir runs/ml_1m --histories new_log.csv --k 100 \
      --out recommendations.csv

With --out, the command writes lists for all users of the run's data (--users all), for some of them
(--users FILE), or for the users of a new log (--histories LOG, in a format that training reads). If
the command is killed, run it again to continue; the file appears when it is complete.

An item is given by its title or by its id in the data; `id:187` is always an id and `title:187`
always a title.
"""

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from bert4rec_jax.command_line import run_command
from bert4rec_jax.errors import UserError
from bert4rec_jax.terminal import coloured, fitted

if TYPE_CHECKING:
    from bert4rec_jax.serving import Recommendation, Recommender

LIST_FLAGS = ("users", "candidates", "exclude", "include_seen", "item_shards")


class Answer(NamedTuple):
    """The recommendations for one history.

    Attributes:
      history: item numbers of the known items.
      unknown: items that are not in the catalogue; with the reason if they are ambiguous.
      recommended: best first.
      is_popular: whether these are the most popular items, because no item of the history is known.
    """

    history: list[int]
    unknown: list[str]
    recommended: "list[Recommendation]"
    is_popular: bool


def as_text(recommender: "Recommender", recommended: "list[Recommendation]") -> str:
    """Returns recommendations as a table."""
    if not recommended:
        return "     no items are left to recommend"
    width = max(len(entry.title) for entry in recommended)
    lines = []
    for rank, entry in enumerate(recommended, 1):
        genres = _known_fields(recommender, entry.number).get("genres", "")
        line = f"{rank:3d}  {entry.title:{width}s}  {100 * entry.probability:5.2f} %  {genres}"
        lines.append(fitted(line.rstrip()))
    return "\n".join(lines)


def answer_all(
    recommender: "Recommender", named: dict[str, list[str]], k: int, skip_unknown: bool
) -> dict[str, Answer]:
    """Returns the recommendations for all histories.

    Args:
      recommender: the run.
      named: histories by name.
      k: how many items to recommend.
      skip_unknown: whether unknown items are skipped. Otherwise they raise a UserError.
    """
    known: dict[str, list[int]] = {}
    unknown: dict[str, list[str]] = {}
    for name, history in named.items():
        known[name], unknown[name] = _find_items(recommender, history, skip_unknown)
    scored = [name for name in named if known[name]]
    lists = recommender.recommend_numbers([known[name] for name in scored], k)
    recommended = dict(zip(scored, lists, strict=True))
    popular = recommender.popular(k)
    answers = {}
    for name in named:
        best = recommended.get(name, popular)
        answers[name] = Answer(known[name], unknown[name], best, name not in recommended)
    return answers


def _find_items(
    recommender: "Recommender", history: list[str], skip_unknown: bool
) -> tuple[list[int], list[str]]:
    """Returns the item numbers of the known items, and descriptions of the unknown ones."""
    from bert4rec_jax.serving import AmbiguousTitle

    numbers = []
    unknown = []
    for item in history:
        try:
            numbers.append(recommender.titles.find(item))
        except UserError as error:
            if not skip_unknown:
                raise
            unknown.append(f"{item} ({error})" if isinstance(error, AmbiguousTitle) else item)
    return numbers, unknown


def _known_fields(recommender: "Recommender", number: int) -> dict[str, Any]:
    """Returns the id, title, year and genres of an item as far as known."""
    import pandas as pd

    row = recommender.items_table.loc[number]
    fields: dict[str, Any] = {}
    for name in ("item", "title", "year", "genres"):
        value = row.get(name)
        if not pd.isna(value):
            fields[name] = int(value) if name == "year" else str(value)
    return fields


def _as_json(recommender: "Recommender", answer: Answer) -> dict[str, Any]:
    recommended = []
    for entry in answer.recommended:
        fields = _known_fields(recommender, entry.number)
        recommended.append({**fields, "probability": entry.probability})
    return {
        "history": [_known_fields(recommender, number) for number in answer.history],
        "unknown": answer.unknown,
        "by": "popularity" if answer.is_popular else "the model",
        "recommended": recommended,
    }


def _print(recommender: "Recommender", answer: Answer) -> None:
    found = []
    for number in answer.history:
        item = recommender.items_table.at[number, "item"]
        found.append(f"{recommender.titles.label(number)} [id {item}]")
    if found:
        print("history: " + " | ".join(found))
    if answer.unknown:
        print("not in this catalogue: " + " | ".join(answer.unknown))
    if answer.is_popular:
        print("none of these items is known; showing the most popular items")
    print(as_text(recommender, answer.recommended))


def main(arguments: list[str]) -> int:
    """Prints or writes recommendations; returns the exit code."""
    f = flags.FLAGS
    if len(arguments) > 1:
        raise UserError(f"{arguments[1]!r} is not a flag; give every title with its own --history.")
    if f.k < 1:
        raise UserError(f"--k={f.k} must be at least 1.")
    return _write_lists() if f.out else _print_recommendations()


def _print_recommendations() -> int:
    f = flags.FLAGS
    for name in LIST_FLAGS:
        if f[name].present:
            raise UserError(f"--{name} requires --out FILE.")
    if bool(f.history) == bool(f.histories):
        raise UserError("give --history TITLE (once per item, oldest first) or --histories FILE.")
    from bert4rec_jax.serving import Recommender, read_histories

    named = read_histories(f.histories) if f.histories else {"": f.history}
    recommender = Recommender(f.workdir)
    answers = answer_all(recommender, named, f.k, skip_unknown=bool(f.histories))
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
    if f.history:
        raise UserError("--out writes the lists of many users and cannot be used with --history.")
    if f.json:
        raise UserError("--out writes the lists of many users and cannot be used with --json.")
    if not f.users and not f.histories:
        raise UserError("no users selected: pass --users all, --users FILE or --histories LOG.")
    from bert4rec_jax.serving import Recommender
    from bert4rec_jax.serving.lists import ListOptions, write_lists

    options = ListOptions(
        k=f.k,
        users=f.users or "all",
        histories=f.histories,
        candidates=f.candidates,
        exclude=f.exclude,
        include_seen=f.include_seen,
        item_shards=f.item_shards,
    )
    written = write_lists(Recommender(f.workdir), f.out, options)
    rate = written["users_per_second"]
    speed = f", {rate:,.0f} users per second" if rate else ""
    print(f"the lists of {written['users']:,} users are in {f.out}{speed}")
    return 0


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Directory of a trained run.", required=True)
    flags.DEFINE_multi_string("history", [], "Title or item id; once per item, oldest first.")
    flags.DEFINE_string(
        "histories",
        "",
        "JSON file of histories: {name: [title or id, ...]}, or a list of lists; unknown items are "
        "reported and skipped. With --out: a log whose users get lists.",
    )
    flags.DEFINE_integer("k", 10, "How many items to recommend.")
    flags.DEFINE_bool("json", False, "Print JSON.")
    flags.DEFINE_string("out", "", "Parquet or CSV file for the lists of many users.")
    flags.DEFINE_string("users", "", "all, or a file with one user id per line.")
    flags.DEFINE_string(
        "candidates",
        "",
        "File of the only items to recommend: one id per line for all users, or the columns user "
        "and item.",
    )
    flags.DEFINE_string("exclude", "", "File of items not to recommend, in the same formats.")
    flags.DEFINE_bool("include_seen", False, "Recommend items of a user's own history too.")
    flags.DEFINE_integer(
        "item_shards", 1, "Devices over which the item table is split.", lower_bound=1
    )


if __name__ == "__main__":
    _define_flags()
    run_command(main, sections={"Only with --out": LIST_FLAGS})
