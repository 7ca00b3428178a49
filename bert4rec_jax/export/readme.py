# SPDX-License-Identifier: Apache-2.0
"""The files next to an exported model: its catalogue as CSV and a README with example code."""

import os

from bert4rec_jax.files import replacing
from bert4rec_jax.serving.recommender import Recommender

_ONNX = """```python
import csv
import numpy as np
import onnxruntime  # pip install onnxruntime

onnxruntime.set_default_logger_severity(3)  # hides warnings about graph simplification
session = onnxruntime.InferenceSession("model.onnx")
rows = {int(row["number"]): row for row in csv.DictReader(open("items.csv", encoding="utf-8"))}
number = {row["item"]: n for n, row in rows.items()}  # original id -> item number

history = np.array([[0, 0, *EXAMPLE]], np.int32)  # oldest first; zeros in front are ignored
inputs = {"history": history, "k": np.array([10])}
items, probabilities = session.run(["items", "probabilities"], inputs)
for item, probability in zip(items[0], probabilities[0]):
    if item:  # 0: no item is left
        print(rows[item]["title"] or rows[item]["item"], f"{100 * probability:.2f} %")
```

Inputs:

- `history` int32 [batch, length]: item numbers of `items.csv`, oldest first, padded with zeros in
  front. The model reads the newest MAX_HISTORY items; the list excludes every item of the history.
  A number outside 0 to LAST is an error on CPU.
- `k` int64 [1]: number of items in each list.

Outputs:

- `items` int64 [batch, k]: item numbers, best first. If fewer than k items are left, the last ones
  are 0.
- `scores` float32 [batch, k]: logits.
- `probabilities` float32 [batch, k]: softmax over the whole catalogue.
- `all_scores` float32 [batch, LAST + 1]: one column per item number, below -1e8 in column 0 and for
  the history's items.
"""

_JAX = """```python
import csv
import jax
import numpy as np  # pip install jax

with open("model.stablehlo", "rb") as file:
    function = jax.export.deserialize(bytearray(file.read()))
weights = dict(np.load("model.stablehlo.npz"))
rows = {int(row["number"]): row for row in csv.DictReader(open("items.csv", encoding="utf-8"))}

history = np.array([[0, 0, *EXAMPLE]], np.int32)  # oldest first; zeros in front are ignored
out = jax.jit(function.call)(weights, history[:, -MAX_HISTORY:])
for item, probability in zip(out["items"][0].tolist(), out["probabilities"][0].tolist()):
    if item:  # 0: no item is left
        print(rows[item]["title"] or rows[item]["item"], f"{100 * probability:.2f} %")
```

The function takes any batch size and up to MAX_HISTORY items per history, on CPU, CUDA and TPU. It
returns the best LISTED items without the history's own. JAX's documentation of `jax.export` lists
the versions that can read the file.
"""


def write_items(folder: str, recommender: Recommender) -> str:
    """Writes `items.csv` (number, original id, title, year, genres); returns its path."""
    catalogue = recommender.items_table.reset_index(names="number")
    table = catalogue.reindex(columns=["number", "item", "title", "year", "genres"])
    table["year"] = table["year"].astype("Int64")
    path = os.path.join(folder, "items.csv")
    with replacing(path) as file:
        table.to_csv(file, index=False, lineterminator="\n")
    return path


def write_readme(
    folder: str, recommender: Recommender, kind: str, notes: list[str], k: int = 10
) -> str:
    """Writes `README.md` for a model exported as `onnx` or `stablehlo`; returns its path."""
    results = recommender.results or {}
    example = ", ".join(str(n) for n in range(1, min(3, recommender.num_items) + 1))
    text = (_ONNX if kind == "onnx" else _JAX).replace("*EXAMPLE", example)
    text = text.replace("MAX_HISTORY", str(recommender.config.model.max_history))
    text = text.replace("LAST + 1", str(recommender.num_items + 1))
    text = text.replace("LAST", str(recommender.num_items))
    text = text.replace("LISTED", str(min(k, recommender.num_items)))
    paragraphs = [
        f"{recommender.config.model_name}, {recommender.num_items:,} items, checkpoint of step "
        f"{recommender.step:,}. Written by `python -m bert4rec_jax.export`."
    ]
    if results:
        test = results["test"]
        paragraphs.append(
            f"Test: NDCG@10 {test['ndcg@10']:.4f}, HR@10 {test['hr@10']:.4f}. "
            f"Protocol: {results['protocol']}."
        )
    paragraphs.append(
        "The model scores only the items of `items.csv`. Items without training events have no "
        "number."
    )
    path = os.path.join(folder, "README.md")
    with replacing(path) as file:
        file.write("# A trained model\n\n" + "\n\n".join([*paragraphs, *notes, text]))
    return path
