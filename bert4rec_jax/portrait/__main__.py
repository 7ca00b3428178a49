# SPDX-License-Identifier: Apache-2.0
r"""Looks into a trained run: what it has learned about items, whom it serves well, what it recommends.

  python -m bert4rec_jax.portrait --workdir runs/quickstart
  python -m bert4rec_jax.portrait --workdir runs/quickstart --title "Star Wars (1977)" --out portraits/quickstart

Writes portrait.html, one page that needs no network, and its figures as PNGs.
"""

import os

import numpy as np
from absl import flags

from bert4rec_jax.command_line import run_command
from bert4rec_jax.errors import UserError

_NEAREST, _NAMED, _CASES, _LISTED = 6, 60, 6, 500


def main(arguments: list[str]) -> int:
    """Writes the portrait and says where it is; returns the exit code."""
    f = flags.FLAGS
    if len(arguments) > 1:
        raise UserError(f"{arguments[1]!r} is not a flag; give every title with its own --title.")
    from bert4rec_jax.portrait.sheet import Sheet
    from bert4rec_jax.serving import Recommender

    recommender = Recommender(f.workdir)
    results = recommender.results
    if results is None:
        raise UserError(f"{f.workdir} is not finished: it has no results.json; train on.")
    titles = [recommender.titles.find(title) for title in f.title]
    folder = f.out or os.path.join(f.workdir, "portrait")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {folder} cannot be made ({error.strerror}); name a folder."
        ) from None
    data = results["dataset"]
    sheet = Sheet(
        f"{results['model']} on {data['name']}",
        f"Test NDCG@10 {results['test']['ndcg@10']:.4f}, HR@10 {results['test']['hr@10']:.4f}. "
        f"{results['protocol']}. Seed {results['seed']}, {results['parameters']:,} parameters.",
    )
    ranks = recommender.files.ranks()
    _items(sheet, folder, recommender, titles)
    _groups(sheet, folder, results, ranks)
    _people(sheet, folder, recommender, ranks)
    path = os.path.join(folder, "portrait.html")
    sheet.write(path)
    print(f"{path} ({os.path.getsize(path) / 1e6:.1f} MB), and its figures as PNG beside it")
    return 0


def _popularity(recommender) -> np.ndarray | None:
    """Returns int[num_items], training events of each item; None for runs from before they were kept."""
    table = recommender.catalogue
    return table["training_interactions"].to_numpy() if "training_interactions" in table else None


def _items(sheet, folder: str, recommender, titles: list[int]) -> None:
    from bert4rec_jax.portrait import figures, measures
    from bert4rec_jax.portrait.sheet import image, table

    embeddings, events = recommender.embeddings, _popularity(recommender)
    order = np.argsort(
        -events
        if events is not None
        else -np.asarray(recommender.params["items"]["bias"])[1 : recommender.num_items + 1],
        kind="stable",
    )
    genres = (
        recommender.catalogue["genres"].fillna("").astype(str)
        if "genres" in recommender.catalogue
        else None
    )
    groups = (
        [g.split("|")[0] for g in genres] if genres is not None else [""] * recommender.num_items
    )
    places, shares = measures.principal_axes(embeddings)
    path = os.path.join(folder, "item_map.png")
    labels = {int(i): recommender.titles.label(int(i) + 1) for i in order[:_NAMED]}
    figures.item_map(path, places, shares, groups, labels)
    sheet.section(
        "Item map",
        "The item embeddings on their two principal axes (PCA), coloured by the first genre "
        "where it is known. Two axes show only their share of what the model tells apart.",
        image(path, "item map"),
    )
    rows = []
    for number in titles or [int(i) + 1 for i in order[:_NEAREST]]:
        near = measures.neighbours(embeddings, number, 6)
        rows.append(
            [
                recommender.titles.label(number),
                "\n".join(f"{recommender.titles.label(n)}  {c:.2f}" for n, c in near),
            ]
        )
    sheet.section(
        "Nearest items",
        "By the cosine of embeddings, of the titles asked for or the most frequent ones: "
        "what the model treats alike.",
        table(["title", "nearest"], rows),
    )


def _groups(sheet, folder: str, results: dict, ranks: dict[str, np.ndarray]) -> None:
    from bert4rec_jax.portrait import figures, measures
    from bert4rec_jax.portrait.sheet import image

    titles = {
        "history_length": "By length of the history",
        "item_popularity": "By popularity of the target",
    }
    for column, label in measures.GROUPED_BY.items():
        if column not in ranks:
            continue
        bins = {results["model"]: measures.binned(ranks[column], ranks["rank"])}
        for name in ("popular", "popular_recent"):
            if f"{name}_rank" in ranks:
                bins[name] = measures.binned(ranks[column], ranks[f"{name}_rank"])
        path = os.path.join(folder, f"by_{column}.png")
        figures.bars(path, bins, label)
        sheet.section(
            titles[column], "Test users in bins of about equal size.", image(path, titles[column])
        )


def _people(sheet, folder: str, recommender, ranks: dict[str, np.ndarray]) -> None:
    """What is recommended, and the best and the worst cases; needs the data that the run was trained on."""
    from bert4rec_jax.data import load_dataset
    from bert4rec_jax.portrait import figures, measures
    from bert4rec_jax.portrait.sheet import image, table

    try:
        dataset = load_dataset(recommender.config.data, recommender.config.filter)
        # Ranks are of users by their number, which in other data is somebody else.
        if dataset.fingerprint != (trained := recommender.results["dataset"]["fingerprint"]):
            raise UserError(
                f"those found have the fingerprint {dataset.fingerprint}, not {trained}; restore the data."
            )
    except UserError as error:
        sheet.section("Users", f"The data of the run are not here, so no user is shown: {error}")
        return
    by_user = np.argsort(ranks["user"], kind="stable")
    known, lengths = ranks["user"][by_user], ranks["history_length"][by_user]  # one target a user
    users = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(known)[:_LISTED].tolist()

    def history(user: int) -> list[int]:
        begin = dataset.offsets[user]
        return np.asarray(
            dataset.items[begin : begin + lengths[np.searchsorted(known, user)]]
        ).tolist()

    lists = recommender.recommend([history(u) for u in users], 10)
    items = np.array([[r.number for r in one] + [0] * (10 - len(one)) for one in lists])
    events = _popularity(recommender)
    if events is not None:
        told = measures.concentration(items, events)
        path = os.path.join(folder, "popularity.png")
        figures.popularity(path, np.bincount(items[items > 0] - 1, minlength=len(events)), events)
        sheet.section(
            "What is recommended",
            f"The ten best for {len(users):,} test users: {100 * told['coverage']:.0f} % of the catalogue is in some "
            f"list, and {100 * told['head']:.0f} % of the places go to the most popular tenth of items, which has "
            f"{100 * told['head_events']:.0f} % of the training events.",
            image(path, "popularity of what is recommended"),
        )
    order = np.argsort(ranks["rank"], kind="stable")
    # Among equally good cases those of rarer items say more.
    best = sorted(
        order[: max(_CASES, int((ranks["rank"] == 1).sum()))].tolist(),
        key=lambda n: ranks["item_popularity"][n],
    )[:_CASES]
    for title, chosen in (("Best cases", best), ("Worst cases", order[::-1][:_CASES].tolist())):
        shown = [
            (int(ranks["user"][n]), int(ranks["item"][n]), float(ranks["rank"][n])) for n in chosen
        ]
        answers = recommender.recommend([history(u) for u, _, _ in shown], 3)
        label = recommender.titles.label
        rows = [
            [
                "\n".join(label(i) for i in history(u)[-4:]),
                label(item),
                f"{rank:g}",
                "\n".join(r.title for r in answer),
            ]
            for (u, item, rank), answer in zip(shown, answers)
        ]
        sheet.section(
            title,
            "The newest items of a history, what came next in fact, its rank, and what the model put "
            "first." + (" Of all targets at rank 1, the rarest." if title == "Best cases" else ""),
            table(["history", "in fact next", "rank", "recommended"], rows),
        )


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Directory of a finished run.", required=True)
    flags.DEFINE_string(
        "out", "", "Folder for the page and its figures; empty: portrait/ in the workdir."
    )
    flags.DEFINE_multi_string(
        "title", [], "Title whose nearest items are shown; may be given several times."
    )


if __name__ == "__main__":
    _define_flags()
    run_command(main)
