# SPDX-License-Identifier: Apache-2.0
"""From batches to a trained model on disk.

`step` is one pure update and `optimizer` its rule. `loop` repeats the step and keeps its
`progress`. `checkpoint` contains everything about Orbax. `run_directory` writes the files of a run,
together with `environment`, `metric_writers`, `trackers`, `training_display`, `results` and
`curves`.
"""

from bert4rec_jax.training import curves
from bert4rec_jax.training.checkpoint import Checkpoints, CheckpointState
from bert4rec_jax.training.loop import Loop, TrainingTask
from bert4rec_jax.training.metric_writers import MetricWriter, write_test_line
from bert4rec_jax.training.optimizer import warmup_steps
from bert4rec_jax.training.progress import Progress
from bert4rec_jax.training.results import (
    RankedData,
    RunFacts,
    add_baselines,
    make_ranks,
    make_results,
)
from bert4rec_jax.training.run_directory import RunDirectory
from bert4rec_jax.training.step import StepSpec, TrainState, init_state, state_template, train_step

__all__ = [
    "CheckpointState",
    "Checkpoints",
    "Loop",
    "MetricWriter",
    "Progress",
    "RankedData",
    "RunDirectory",
    "RunFacts",
    "StepSpec",
    "TrainState",
    "TrainingTask",
    "add_baselines",
    "curves",
    "init_state",
    "make_ranks",
    "make_results",
    "state_template",
    "train_step",
    "warmup_steps",
    "write_test_line",
]
