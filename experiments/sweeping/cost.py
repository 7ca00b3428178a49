# SPDX-License-Identifier: Apache-2.0
"""The cost of a sweep: tokens and operations per trial, and a time estimate after the first one."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bert4rec_jax import config as config_lib
from bert4rec_jax.data.suggest import multiply_adds
from bert4rec_jax.terminal import wrapped
from experiments.sweeping import trials
from experiments.sweeping.board import common_overrides, describe, duration
from experiments.sweeping.sweep_file import Sweep, apply
from experiments.sweeping.trials import TrialStatus


@dataclass(frozen=True)
class _Cost:
    """The cost of one trial.

    Attributes:
      tokens: steps x rows x positions.
      operations: multiply-adds of the forward pass.
    """

    tokens: int
    operations: float


def plan(sweep: Sweep, root: Path, workers: int) -> str:
    """Returns the trials with their cost, and a time estimate if a trial has finished."""
    statuses = [
        trials.trial_status(root, index, sweep.overrides(index)) for index in range(len(sweep))
    ]
    finished = [status for status in statuses if status.results]
    items = finished[0].results["dataset"]["items"] if finished else 0
    costs = _costs(sweep, statuses, items)
    speeds = [_seconds(status) / costs[status.index].operations for status in finished]
    speed = statistics.median(speeds) if speeds else 0.0
    shared = common_overrides(statuses)
    lines = []
    if shared:
        lines.append(f"all trials: {describe(shared)}")
    left = [costs[status.index] for status in statuses if status.state not in trials.DONE]
    tokens = sum(cost.tokens for cost in left)
    operations = sum(cost.operations for cost in left)
    layers = "the Transformer and the output layer" if items else "the Transformer"
    # A multiply-add is 2 operations, and the backward pass takes twice as many as the forward pass.
    lines.append(
        f"{len(sweep)} trials of {sweep.config}, {len(left)} left: {tokens / 1e6:.1f} M tokens "
        f"(steps x rows x positions), {2 * 3 * operations / 1e12:.1f} TFLOP in {layers}"
    )
    if speed:
        seconds = speed * operations
        lines.append(
            f"at the speed of {len(speeds)} finished trial(s): {duration(seconds) or '0 s'} of "
            f"machine time, about {duration(seconds / workers) or '0 s'} with {workers} worker(s)"
        )
    else:
        lines.append("no trial has finished yet; the first finished trial provides a time estimate")
    return "\n".join([*_table(statuses, costs, speed), *map(wrapped, lines)])


def _costs(sweep: Sweep, statuses: Sequence[TrialStatus], items: int) -> dict[int, _Cost]:
    """Returns {index: cost}. A trial that is not proposed yet costs as much as the config."""
    values = config_lib.read(sweep.config)
    costs = {}
    for status in statuses:
        overrides = status.overrides
        if overrides is None:
            assert sweep.search is not None
            overrides = {**sweep.common, **sweep.search.fixed}
        config = apply(values, overrides)
        tokens = config.train.steps * config.train.batch_rows * config.model.max_length
        costs[status.index] = _Cost(tokens, multiply_adds(config, items))
    return costs


def _table(
    statuses: Sequence[TrialStatus], costs: dict[int, _Cost], seconds_per_operation: float
) -> list[str]:
    """Returns the lines of a table with one row per trial."""
    shared = common_overrides(statuses)
    rows = [("trial", "state", "tokens", "time", "overrides")]
    for status in statuses:
        cost = costs[status.index]
        proposed = status.overrides is not None
        rows.append(
            (
                str(status.index),
                status.state,
                f"{cost.tokens / 1e6:.1f} M",
                duration(seconds_per_operation * cost.operations),
                describe(status.overrides, shared) if proposed else "(proposed when it starts)",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _seconds(status: TrialStatus) -> float:
    return status.results["train_seconds"] + status.results["eval_seconds"]
