# SPDX-License-Identifier: Apache-2.0
"""A folder of static files in which a visitor's browser runs the model."""

import json
import os
import shutil

import numpy as np
import pandas as pd

from bert4rec_jax.errors import UserError
from bert4rec_jax.export import browser_runtime, onnx_model
from bert4rec_jax.export.stablehlo import room_of
from bert4rec_jax.files import replacing
from bert4rec_jax.serving.recommender import Recommender

_STATIC = os.path.join(os.path.dirname(os.path.abspath(__file__)), "static")
_METRICS = {
    "ndcg@10": "NDCG@10",
    "hr@10": "HR@10",
    "mrr": "MRR",
    "ndcg@100": "NDCG@100",
    "hr@100": "HR@100",
    "coverage@10": "Coverage@10",
}
_LISTED = 50  # items of a list; page.js asks for as many


def write(
    folder: str,
    recommender: Recommender,
    histories: dict[str, list[str]],
    cache: str,
    package: str = "",
    table: str = "float32",
) -> None:
    """Builds the page.

    Args:
      folder: made if missing.
      recommender: the run.
      histories: named lists of titles, offered as starting points where the catalogue has two of them at least.
      cache: where onnxruntime-web is kept once fetched.
      package: an onnxruntime-web package that is already here; empty: fetch it.
      table: how the item table is stored, see `onnx_model.write`.

    Raises:
      UserError: the browser's runtime cannot be had.
    """
    os.makedirs(folder, exist_ok=True)
    browser_runtime.install(os.path.join(folder, "ort"), cache, package)
    for name in sorted(os.listdir(_STATIC)):
        shutil.copyfile(os.path.join(_STATIC, name), os.path.join(folder, name))
    model = os.path.join(folder, "model.onnx")
    # A browser loads one file; what does not fit into one does not fit into a page either.
    onnx_model.write(
        model,
        recommender.config.model,
        recommender.num_items,
        recommender.params,
        table,
        inline_bytes=2**31,
    )
    _simplify(model)
    points = with_lists(
        model, starting_points(recommender, histories), min(_LISTED, recommender.num_items)
    )
    values = {
        "catalogue.json": catalogue_columns(recommender),
        "run.json": run_facts(recommender)
        | {"starting_points": points, "model_bytes": os.path.getsize(model)},
    }
    for name, value in values.items():
        with replacing(os.path.join(folder, name)) as file:
            json.dump(value, file, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _simplify(path: str) -> None:
    """Lets onnxruntime simplify the graph once here, so that no visitor's browser has to."""
    import onnxruntime

    options = _quiet()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = path + ".simplified"
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    os.replace(path + ".simplified", path)


def _quiet():
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def catalogue_columns(recommender: Recommender) -> dict:
    """Returns the catalogue as lists by item number - 1: title, year (0: unknown), genres (numbers), weight."""
    catalogue = recommender.catalogue
    titles = catalogue["item"].astype(str)
    if "title" in catalogue:
        titles = catalogue["title"].where(catalogue["title"].notna(), titles).astype(str)
    years = (
        catalogue["year"].fillna(0).astype(int)
        if "year" in catalogue
        else pd.Series(0, catalogue.index)
    )
    genres = (
        catalogue["genres"].fillna("").astype(str).str.split("|")
        if "genres" in catalogue
        else pd.Series([[]] * len(catalogue), catalogue.index)
    )
    genres = genres.map(
        lambda names: [name for name in names if name and name != "(no genres listed)"]
    )
    names = sorted({name for some in genres for name in some})
    number = {name: n for n, name in enumerate(names)}
    return {
        "title": titles.tolist(),
        "year": years.tolist(),
        "genre_names": names,
        "genres": [[number[name] for name in some] for some in genres],
        "weight": [round(float(x), 2) for x in _popularity(recommender)],
    }


def _popularity(recommender: Recommender) -> np.ndarray:
    """Returns what orders equally good finds, float[num_items]: training events, else the bias that grows with them."""
    if "training_interactions" in recommender.catalogue:
        return recommender.catalogue["training_interactions"].to_numpy()
    return np.asarray(recommender.params["items"]["bias"], np.float32)[
        1 : recommender.num_items + 1
    ]


def run_facts(recommender: Recommender) -> dict:
    """Returns what the page says of the run."""
    results = recommender.results
    if results is None:
        metrics, facts, protocol, data = (
            [],
            [],
            "This run is not finished; it has not been measured.",
            "",
        )
    else:
        d, test = results["dataset"], results["test"]
        data = d["name"]
        metrics = [(label, f"{test[name]:.4f}") for name, label in _METRICS.items() if name in test]
        protocol = "Test users: " + results["protocol"] + "."
        facts = [
            (
                "Data",
                f"{d['users']:,} users, {d['items']:,} items, {d['interactions']:,} interactions",
            ),
            ("Parameters", f"{results['parameters']:,}"),
            ("Best step", f"{results['best_step']:,}"),
            ("Training", f"{results['train_seconds']:,.0f} s"),
            ("Seed", str(results["seed"])),
        ]
    room = room_of(recommender.config.model)
    facts.insert(0, ("Model", recommender.config.model_name))
    facts.append(("History", f"the newest {room:,} items are read"))
    return {
        "model": recommender.config.model_name,
        "data": data,
        "metrics": metrics,
        "facts": facts,
        "protocol": protocol,
        "max_history": room,
    }


def starting_points(recommender: Recommender, histories: dict[str, list[str]]) -> list[dict]:
    """Returns named histories: those given, as far as the catalogue has them, filled up to three with its own."""
    points = []
    for name, titles in histories.items():
        items = []
        for title in titles:
            try:
                items.append(recommender.titles.find(title))
            except UserError:
                continue
        items = list(dict.fromkeys(items))
        if len(items) >= 2:
            points.append({"name": name, "items": items, "lacking": len(titles) - len(items)})
    return points + _own_points(recommender, max(0, 3 - len(points)))


def with_lists(model: str, points: list[dict], k: int) -> list[dict]:
    """Returns the points with `best`, their k pairs (item, probability), shown while a browser loads the `model`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, _quiet(), providers=["CPUExecutionProvider"])
    whole = []
    for point in points:
        items, probabilities = session.run(
            ["items", "probabilities"],
            {"history": np.array([point["items"]], np.int32), "k": np.array([k])},
        )
        best = [(item, float(p)) for item, p in zip(items[0].tolist(), probabilities[0]) if item]
        whole.append(point | {"best": best})
    return whole


def _own_points(recommender: Recommender, count: int) -> list[dict]:
    """Returns histories made of a popular item and its three nearest neighbours that share a genre with it.

    No history of a user is taken: a page is for everybody.
    """
    table_VD = recommender.embeddings / np.maximum(
        np.linalg.norm(recommender.embeddings, axis=1, keepdims=True), 1e-9
    )
    points, used = [], set()
    genres = catalogue_columns(recommender)["genres"]
    for seed in np.argsort(-_popularity(recommender), kind="stable").tolist():
        if len(points) == count:
            break
        alike = np.array(
            [not genres[seed] or bool(set(genres[seed]) & set(some)) for some in genres]
        )
        nearness = np.where(alike, table_VD @ table_VD[seed], -2)
        near = [int(i) for i in np.argsort(-nearness, kind="stable")[:4]]
        if used & set(near) or len(near) < 2:
            continue
        used |= set(near)
        points.append(
            {
                "name": f"Like {recommender.titles.label(seed + 1)}",
                "items": [i + 1 for i in near[::-1]],
                "lacking": 0,
            }
        )
    return points
