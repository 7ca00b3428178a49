# SPDX-License-Identifier: Apache-2.0
"""Twelve short trials on synthetic data: width and learning rate, three seeds each.

python -m experiments.launch --sweep experiments/sweeps/example.py --root sweeps/example --workers 2
python -m experiments.report sweeps/example --baseline popular --out sweeps/example/report
"""

from experiments.sweep import grid, with_seeds

CONFIG = "configs/synthetic.py"


def sweep():
    """Yields four settings, each with three seeds."""
    settings = grid({"model.width": [32, 64], "optimizer.learning_rate": [1e-3, 3e-3]})
    for trial in with_seeds(settings, seeds=[0, 1, 2]):
        yield {
            **trial,
            "train.steps": 60,
            "train.eval_every": 20,
            "train.checkpoint_every": 20,
            "train.log_every": 10,
        }
