# SPDX-License-Identifier: Apache-2.0
"""The sections of a portrait: items, groups of users, lists and single cases."""

import os

import numpy as np
from matplotlib.figure import Figure

from bert4rec_jax.data import load_dataset
from bert4rec_jax.errors import UserError
from bert4rec_jax.files import replacing
from bert4rec_jax.portrait import html_report, measures, plots
from bert4rec_jax.serving import Recommender

_ITEMS_WITH_NEIGHBOURS = 6
_NEIGHBOURS = 6
_LABELLED_ITEMS = 60
_CASES = 6
_SAMPLED_USERS = 500
_LIST_LENGTH = 10
_SHOWN_HISTORY = 4
_SHOWN_RECOMMENDATIONS = 3


def write(folder: str, recommender: Recommender, results: dict, titles: list[int]) -> str:
    """Writes portrait.html and its figures; returns the path of the page.

    Args:
      folder: an existing folder.
      recommender: the run.
      results: its results.json.
      titles: numbers of the items whose nearest items are shown; empty: the most popular ones.
    """
    test = results["test"]
    summary = (
        f"Test NDCG@10 {test['ndcg@10']:.4f}, HR@10 {test['hr@10']:.4f}. {results['protocol']}. "
        f"Seed {results['seed']}, {results['parameters']:,} parameters."
    )
    ranks = recommender.files.ranks()
    page = html_report.page(
        f"{results['model']} on {results['dataset']['name']}",
        [
            html_report.note(summary),
            *_item_sections(folder, recommender, titles),
            *_group_sections(folder, results["model"], ranks),
            *_user_sections(folder, recommender, results["dataset"]["fingerprint"], ranks),
        ],
    )
    path = os.path.join(folder, "portrait.html")
    with replacing(path) as file:
        file.write(page)
    return path


def _save(folder: str, name: str, figure: Figure, description: str) -> str:
    """Writes a figure as a PNG and returns it as part of the page."""
    figure.savefig(os.path.join(folder, f"{name}.png"))
    return html_report.image(figure, description)


def _item_sections(folder: str, recommender: Recommender, titles: list[int]) -> list[str]:
    embeddings = recommender.embeddings
    by_popularity = np.argsort(-recommender.popularity, kind="stable").tolist()
    groups = [""] * recommender.num_items
    if "genres" in recommender.items_table:
        genres = recommender.items_table["genres"].fillna("").astype(str)
        groups = [names.split("|")[0] for names in genres]
    label = recommender.titles.label
    labels = {row: label(row + 1) for row in by_popularity[:_LABELLED_ITEMS]}
    places, shares = measures.principal_axes(embeddings)
    figure = plots.item_map(places, shares, groups, labels)
    item_map = html_report.section(
        "Item map",
        html_report.note(
            "The item embeddings on their two principal axes (PCA), coloured by the first genre if "
            "it is known. Two axes show only part of the differences between items."
        ),
        _save(folder, "item_map", figure, "item map"),
    )
    rows = []
    for number in titles or [row + 1 for row in by_popularity[:_ITEMS_WITH_NEIGHBOURS]]:
        near = measures.nearest_items(embeddings, number, _NEIGHBOURS)
        lines = [f"{label(other)}  {cosine:.2f}" for other, cosine in near]
        rows.append(_cells([label(number)], lines))
    nearest = html_report.section(
        "Nearest items",
        html_report.note(
            "Items that the model treats alike, by the cosine of their embeddings, for the given "
            "titles or the most popular items."
        ),
        html_report.table(["title", "nearest"], rows),
    )
    return [item_map, nearest]


def _group_sections(folder: str, model: str, ranks: dict[str, np.ndarray]) -> list[str]:
    titles = {
        "history_length": "By length of the history",
        "item_popularity": "By popularity of the target",
    }
    compared = {model: "rank"}
    for name in ("popular", "popular_recent"):
        if f"{name}_rank" in ranks:
            compared[name] = f"{name}_rank"
    sections = []
    for column, label in measures.GROUPED_BY.items():
        bins = {
            name: measures.ndcg_in_bins(ranks[column], ranks[array])
            for name, array in compared.items()
        }
        figure = plots.ndcg_bars(bins, label)
        sections.append(
            html_report.section(
                titles[column],
                html_report.note("Test users in bins of about equal size."),
                _save(folder, f"by_{column}", figure, titles[column]),
            )
        )
    return sections


def _user_sections(
    folder: str, recommender: Recommender, fingerprint: str, ranks: dict[str, np.ndarray]
) -> list[str]:
    """Describes lists and single cases, for which the training data are required."""
    try:
        dataset = load_dataset(recommender.config.data, recommender.config.filter)
        # Ranks belong to user numbers, which are other users in other data.
        if dataset.fingerprint != fingerprint:
            raise UserError(
                f"the data found have the fingerprint {dataset.fingerprint}, not {fingerprint}; "
                "restore the original data."
            )
    except UserError as error:
        reason = f"No user is shown, because the data of the run are not available: {error}"
        return [html_report.section("Users", html_report.note(reason))]
    histories = {
        int(user): dataset.items[dataset.offsets[user] :][:length].tolist()
        for user, length in zip(ranks["user"], ranks["history_length"])
    }
    return [
        _list_section(folder, recommender, histories),
        *_case_sections(recommender, histories, ranks),
    ]


def _list_section(folder: str, recommender: Recommender, histories: dict[int, list[int]]) -> str:
    generator = np.random.Generator(np.random.Philox(key=[0, 0]))
    users = generator.permutation(sorted(histories))[:_SAMPLED_USERS].tolist()
    lists = np.zeros((len(users), _LIST_LENGTH), int)
    recommended = recommender.recommend_numbers([histories[user] for user in users], _LIST_LENGTH)
    for row, entries in zip(lists, recommended):
        row[: len(entries)] = [entry.number for entry in entries]
    events = recommender.popularity
    counts = np.bincount(lists[lists > 0] - 1, minlength=len(events))
    share = measures.concentration(lists, events)
    return html_report.section(
        "Recommended items",
        html_report.note(
            f"The ten best items for {len(users):,} test users. At least one list contains "
            f"{100 * share.coverage:.0f} % of the catalogue. The most popular tenth of the items "
            f"has {100 * share.popular_events:.0f} % of the training events and takes "
            f"{100 * share.popular_places:.0f} % of the places in lists."
        ),
        _save(folder, "popularity", plots.popularity(counts, events), "popularity of the lists"),
    )


def _case_sections(
    recommender: Recommender, histories: dict[int, list[int]], ranks: dict[str, np.ndarray]
) -> list[str]:
    """Shows the cases with the best and the worst ranks."""
    label = recommender.titles.label
    # Among equally good cases, rare targets are the more interesting ones.
    best_first = np.lexsort((ranks["item_popularity"], ranks["rank"]))
    worst_first = np.argsort(-ranks["rank"], kind="stable")
    explanation = (
        "The newest items of a history, the actual next item, its rank, and the model's list."
    )
    notes = {
        "Best cases": f"{explanation} Among equal ranks, the rarest targets come first.",
        "Worst cases": explanation,
    }
    sections = []
    for title, cases in (("Best cases", best_first), ("Worst cases", worst_first)):
        shown = cases[:_CASES].tolist()
        users = [int(ranks["user"][case]) for case in shown]
        lists = recommender.recommend_numbers(
            [histories[user] for user in users], _SHOWN_RECOMMENDATIONS
        )
        rows = []
        for case, user, entries in zip(shown, users, lists):
            newest = [label(item) for item in histories[user][-_SHOWN_HISTORY:]]
            target = [label(int(ranks["item"][case]))]
            rank = [f"{ranks['rank'][case]:g}"]
            rows.append(_cells(newest, target, rank, [entry.title for entry in entries]))
        table = html_report.table(["history", "actual next item", "rank", "recommended"], rows)
        sections.append(html_report.section(title, html_report.note(notes[title]), table))
    return sections


def _cells(*cells: list[str]) -> list[str]:
    """Returns a row of a table from the lines of each cell."""
    return [html_report.text("\n".join(lines)) for lines in cells]
