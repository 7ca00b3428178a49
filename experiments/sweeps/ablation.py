# SPDX-License-Identifier: Apache-2.0
"""Ablation of the recipe on MovieLens-100K: one change at a time, three seeds each.

  python -m experiments.launch --sweep experiments/sweeps/ablation.py --root sweeps/ablation \
      --workers 2
  python -m experiments.report sweeps/ablation --baseline "BERT4Rec + next item" \
      --out sweeps/ablation/report

For other data, copy this file and set CONFIG = "configs/steam_100k.py",
and `data.path` in every trial.
"""

from experiments.sweep import with_seeds

CONFIG = "configs/quickstart.py"

CLOZE = {"masking.next_item_share": 0.0, "model.predict_from": "mask"}
SASREC = {"masking.next_item_share": 1.0, "model.predict_from": "last_item"}
CHANGES = [
    {},
    {"model.predict_from": "mask"},
    {"model.predict_from": "last_item"},
    {"masking.next_item_share": 0.5},
    {"model.positions": "left"},
    {"model.norm": "pre"},
    {"model.norm": "pre", "model.scale_embeddings": True},
    {"train.windows": "newest"},
    CLOZE,
    SASREC,
]


def sweep():
    """Yields the recipe and every change of it, with three seeds each."""
    yield from with_seeds(CHANGES, seeds=[0, 1, 2])
