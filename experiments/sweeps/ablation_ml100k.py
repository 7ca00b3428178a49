# SPDX-License-Identifier: Apache-2.0
"""What each choice of BERT4Rec is worth on MovieLens-100K: one factor at a time, 16 settings, 2 seeds.

  python -m experiments.launch --sweep experiments/sweeps/ablation_ml100k.py --root sweeps/ablation_ml100k --workers 2
  python -m experiments.report sweeps/ablation_ml100k --baseline BERT4Rec --out sweeps/ablation_ml100k/report

A run is about 80 seconds of one CPU core. They are shorter than the config's own so that
the sweep ends within half an hour on a laptop: differences between rows mean something, the level is not the best.
"""

from experiments.sweep import one_at_a_time, with_seeds

CONFIG = "configs/quickstart.py"

BASE = {
    "masking.probability": 0.2,
    "masking.last_item_only": 0.0,
    "model.layers": 2,
    "model.width": 64,
    "model.positions": "right",
    "model.head": "tied",
    "model.init_scale": 0.02,
    "masking.next_item": 0.0,
    "optimizer.warmup_steps": 100,
}
VARIATIONS = {
    "masking.probability": [0.1, 0.4, 0.6],
    "masking.last_item_only": [0.1, 0.5],
    "model.layers": [1, 3],
    "model.width": [32, 128],
    "model.positions": ["left", "rotary"],
    "model.init_scale": [0.05],
    "masking.next_item": [0.5],
    "model.head": ["transform"],
}
RECOMMENDED = {"model.positions": "rotary", "model.init_scale": 0.05, "masking.next_item": 0.5}


def sweep():
    """Yields the base, every variation, and the recommended settings, seed by seed."""
    settings = [*one_at_a_time(BASE, VARIATIONS), BASE | RECOMMENDED]
    for trial in with_seeds(settings, seeds=[0, 1]):
        yield {**trial, "train.steps": 600, "train.eval_every": 150, "train.checkpoint_every": 150}
