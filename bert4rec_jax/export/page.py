# SPDX-License-Identifier: Apache-2.0
"""A web page, as a folder of static files, that runs the model in the visitor's browser."""

import json
import os
import shutil
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd

from bert4rec_jax.errors import UserError
from bert4rec_jax.export import browser_runtime, onnx_model
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
_LIST_LENGTH = 50  # page.js requests as many
_STARTING_POINTS = 3
_OWN_POINT_ITEMS = 4
_TEXT_LENGTH = 300


def write(
    folder: str,
    recommender: Recommender,
    histories: dict[str, list[str]],
    cache: str,
    package: str = "",
    table_dtype: str = "float32",
) -> None:
    """Builds the page.

    Args:
      folder: created if missing.
      recommender: the run.
      histories: named lists of titles, offered as starting points if the catalogue has at least two
        of them.
      cache: folder that keeps the fetched onnxruntime-web.
      package: path of an onnxruntime-web package; empty: fetch it.
      table_dtype: storage of the item table, as for `onnx_model.write`.

    Raises:
      UserError: the browser's runtime cannot be fetched.
    """
    os.makedirs(folder, exist_ok=True)
    browser_runtime.install(os.path.join(folder, "ort"), cache, package)
    for name in sorted(os.listdir(_STATIC)):
        shutil.copyfile(os.path.join(_STATIC, name), os.path.join(folder, name))
    model_path = os.path.join(folder, "model.onnx")
    onnx_model.write(
        model_path,
        recommender.config.model,
        recommender.num_items,
        recommender.params,
        table_dtype,
        inline_bytes=2**31,  # a page loads one file
    )
    _simplify(model_path)
    points = with_recommendations(model_path, starting_points(recommender, histories))
    run = run_description(recommender)
    run["starting_points"] = points
    run["model_bytes"] = os.path.getsize(model_path)
    _write_json(os.path.join(folder, "catalogue.json"), catalogue_columns(recommender))
    _write_json(os.path.join(folder, "run.json"), run)


def _write_json(path: str, value: dict) -> None:
    with replacing(path) as file:
        json.dump(value, file, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _simplify(path: str) -> None:
    """Simplifies the graph once, so that browsers do not have to."""
    options = _quiet_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = path + ".simplified"
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    os.replace(path + ".simplified", path)


def _quiet_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def catalogue_columns(recommender: Recommender) -> dict[str, list]:
    """Returns the catalogue as one list per column; entry i belongs to item number i + 1.

    The columns are title, year (0: unknown), genres (indices of `genre_names`) and weight
    (popularity, for sorting).
    """
    catalogue = recommender.items_table
    titles = catalogue["item"].astype(str)
    if "title" in catalogue:
        titles = catalogue["title"].fillna(titles).astype(str)
    titles = titles.map(_short_text)
    years = pd.Series(0, catalogue.index)
    if "year" in catalogue:
        years = catalogue["year"].fillna(0).astype(int)
    item_genres = _genres(catalogue)
    names = sorted({name for genres in item_genres for name in genres})
    index = {name: position for position, name in enumerate(names)}
    return {
        "title": titles.tolist(),
        "year": years.tolist(),
        "genre_names": names,
        "genres": [[index[name] for name in genres] for genres in item_genres],
        "weight": recommender.popularity.tolist(),
    }


def _short_text(text: str) -> str:
    """Returns a text without repeated spaces, cut to a length that browsers handle quickly."""
    text = " ".join(text.split())
    return text if len(text) <= _TEXT_LENGTH else text[: _TEXT_LENGTH - 1] + "…"


def _genres(catalogue: pd.DataFrame) -> list[list[str]]:
    if "genres" not in catalogue:
        return [[] for _ in range(len(catalogue))]
    ignored = ("", "(no genres listed)")
    texts = catalogue["genres"].fillna("").astype(str)
    split = [[_short_text(name) for name in text.split("|")] for text in texts]
    return [[name for name in names if name not in ignored] for names in split]


def run_description(recommender: Recommender) -> dict:
    """Returns the texts about the run that the page shows."""
    model = recommender.config.model_name
    max_history = recommender.config.model.max_history
    results = recommender.results
    description: dict[str, Any] = {
        "model": model,
        "data": "",
        "metrics": [],
        "facts": [("Model", model)],
        "protocol": "This run is not finished, so its test results are missing.",
        "max_history": max_history,
    }
    if results is not None:
        test = results["test"]
        data = results["dataset"]
        description["data"] = data["name"]
        description["protocol"] = f"Test users: {results['protocol']}."
        description["metrics"] = [
            (label, f"{test[name]:.4f}") for name, label in _METRICS.items() if name in test
        ]
        counts = [f"{data[name]:,} {name}" for name in ("users", "items", "interactions")]
        description["facts"] += [
            ("Data", ", ".join(counts)),
            ("Parameters", f"{results['parameters']:,}"),
            ("Best step", f"{results['best_step']:,}"),
            ("Training", f"{results['train_seconds']:,.0f} s"),
            ("Seed", str(results["seed"])),
        ]
    description["facts"].append(("History", f"the model reads the newest {max_history:,} items"))
    return description


def starting_points(recommender: Recommender, histories: dict[str, list[str]]) -> list[dict]:
    """Returns at least three named histories: the given ones, then some of popular items.

    Titles that the catalogue does not contain are counted as `missing`.
    """
    points = []
    for name, titles in histories.items():
        found = [_find(recommender, title) for title in titles]
        items = [item for item in dict.fromkeys(found) if item is not None]
        if len(items) >= 2:
            points.append(
                {"name": _short_text(name), "items": items, "missing": len(titles) - len(items)}
            )
    return points + _own_points(recommender, max(0, _STARTING_POINTS - len(points)))


def _find(recommender: Recommender, title: str) -> int | None:
    try:
        return recommender.titles.find(title)
    except UserError:
        return None


def with_recommendations(model_path: str, points: list[dict]) -> list[dict]:
    """Adds `best`, pairs (item, probability), to each point.

    The page shows them while it loads the model.
    """
    session = onnxruntime.InferenceSession(
        model_path, _quiet_options(), providers=["CPUExecutionProvider"]
    )
    complete = []
    for point in points:
        feed = {"history": np.array([point["items"]], np.int32), "k": np.array([_LIST_LENGTH])}
        items, probabilities = session.run(["items", "probabilities"], feed)
        pairs = zip(items[0].tolist(), probabilities[0].tolist())
        complete.append(point | {"best": [pair for pair in pairs if pair[0]]})
    return complete


def _own_points(recommender: Recommender, count: int) -> list[dict]:
    """Returns histories of a popular item and its three nearest neighbours with a common genre.

    They are not histories of users, because a page may be public.
    """
    lengths_V1 = np.linalg.norm(recommender.embeddings, axis=1, keepdims=True)
    unit_VD = recommender.embeddings / np.maximum(lengths_V1, 1e-9)
    genres = [set(names) for names in _genres(recommender.items_table)]
    points: list[dict] = []
    used: set[int] = set()
    for seed in np.argsort(-recommender.popularity, kind="stable").tolist():
        if len(points) == count:
            break
        related_V = np.array([not genres[seed] or bool(genres[seed] & other) for other in genres])
        similarity_V = np.where(related_V, unit_VD @ unit_VD[seed], -2)
        near = np.argsort(-similarity_V, kind="stable")[:_OWN_POINT_ITEMS].tolist()
        if used & set(near) or len(near) < 2:
            continue
        used |= set(near)
        name = _short_text(f"Like {recommender.titles.label(seed + 1)}")
        items = [index + 1 for index in reversed(near)]
        points.append({"name": name, "items": items, "missing": 0})
    return points
