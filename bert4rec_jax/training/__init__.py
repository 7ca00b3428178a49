# SPDX-License-Identifier: Apache-2.0
"""From batches to a trained model on disk.

`step` is one pure update and `optimizer` its rule. `loop` repeats the step and keeps its `progress`.
`checkpoint` contains everything about Orbax. `run_directory` writes the files of a run, together with
`environment`, `metric_writers`, `results` and `curves`.
"""

from bert4rec_jax.training import curves
from bert4rec_jax.training.checkpoint import Checkpoints
from bert4rec_jax.training.loop import Loop
from bert4rec_jax.training.metric_writers import MetricWriter, write_test_line
from bert4rec_jax.training.progress import Progress
from bert4rec_jax.training.results import add_baselines, collect, summary
from bert4rec_jax.training.run_directory import RunDirectory
from bert4rec_jax.training.step import StepSpec, TrainState, init_state, state_template, train_step

__all__ = [
    "Checkpoints",
    "Loop",
    "MetricWriter",
    "Progress",
    "RunDirectory",
    "StepSpec",
    "TrainState",
    "add_baselines",
    "collect",
    "curves",
    "init_state",
    "state_template",
    "summary",
    "train_step",
    "write_test_line",
]
