# SPDX-License-Identifier: Apache-2.0
"""What lies beside an exported model: its catalogue as CSV and a README that shows how to call it."""

import os

import numpy as np
import pandas as pd

from bert4rec_jax.export.stablehlo import room_of
from bert4rec_jax.files import replacing
from bert4rec_jax.serving.recommender import Recommender

_ONNX = """```python
import csv
import numpy as np
import onnxruntime  # pip install onnxruntime

onnxruntime.set_default_logger_severity(3)  # else it warns of what it does not simplify
session = onnxruntime.InferenceSession("model.onnx")
rows = {int(row["number"]): row for row in csv.DictReader(open("items.csv", encoding="utf-8"))}
number = {row["item"]: n for n, row in rows.items()}  # original id -> item number

history = np.array([[0, 0, *EXAMPLE]], np.int32)  # oldest first, zeros in front are ignored
items, probabilities = session.run(["items", "probabilities"], {"history": history, "k": np.array([10])})
for item, probability in zip(items[0], probabilities[0]):
    if item:  # 0: no item is left
        print(rows[item]["title"] or rows[item]["item"], f"{100 * probability:.2f} %")
```

Inputs: `history` int32 [batch, length], item numbers of `items.csv`, oldest first, filled up with zeros in front; of
a longer history than ROOM items the newest are read, and all are removed from the list. `k` int64 [1], how many
items.

Outputs: `items` int64 [batch, k], item numbers, best first, without the history's own; `scores` float32 [batch, k],
logits; `probabilities` float32 [batch, k], softmax over the whole catalogue; `all_scores` float32 [batch, NUMBER],
column = item number, below -1e8 in column 0 and for items of the history. Where fewer than k items are left, the last
places are item 0.
"""

_JAX = """```python
import csv
import jax
import numpy as np  # pip install jax

with open("model.stablehlo", "rb") as file:
    function = jax.export.deserialize(bytearray(file.read()))
weights = dict(np.load("model.stablehlo.npz"))
rows = {int(row["number"]): row for row in csv.DictReader(open("items.csv", encoding="utf-8"))}

history = np.array([[0, 0, *EXAMPLE]], np.int32)  # oldest first, zeros in front are ignored
out = jax.jit(function.call)(weights, history[:, -ROOM:])
for item, probability in zip(out["items"][0].tolist(), out["probabilities"][0].tolist()):
    if item:  # 0: no item is left
        print(rows[item]["title"] or rows[item]["item"], f"{100 * probability:.2f} %")
```

It takes any batch and any length up to ROOM, on CPU, CUDA and TPU, and returns the best LISTED items without those of
the history. Which versions of JAX can read it is said in JAX's own page on exporting and serialization.
"""


def write_items(folder: str, recommender: Recommender) -> str:
    """Writes `items.csv`: number, item (original id), title, year, genres; returns its path."""
    catalogue = recommender.catalogue
    table = pd.DataFrame(
        {
            "number": np.arange(1, len(catalogue) + 1),
            "item": catalogue["item"].astype(str).to_numpy(),
        }
    )
    for name in ("title", "year", "genres"):
        values = catalogue[name] if name in catalogue else pd.Series([None] * len(catalogue))
        if name == "year":
            values = values.astype("Int64")
        table[name] = values.array
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
    text = text.replace("ROOM", str(room_of(recommender.config.model)))
    text = text.replace("NUMBER", str(recommender.num_items + 1)).replace(
        "LISTED", str(min(k, recommender.num_items))
    )
    about = [
        f"{recommender.config.model_name}, {recommender.num_items:,} items, checkpoint of step "
        f"{recommender.step:,}; written by `python -m bert4rec_jax.export`."
    ]
    if results:
        about.append(
            f"Test: NDCG@10 {results['test']['ndcg@10']:.4f}, HR@10 {results['test']['hr@10']:.4f}. "
            f"Protocol: {results['protocol']}."
        )
    about.append(
        "The model scores the items of `items.csv` and no others: an item that was not in its training data "
        "has no number."
    )
    path = os.path.join(folder, "README.md")
    with replacing(path) as file:
        file.write("# A trained model\n\n" + "\n\n".join([*about, *notes, text]))
    return path
