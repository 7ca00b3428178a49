# SPDX-License-Identifier: Apache-2.0
"""The cost of a sweep: tokens and operations per trial,
and the time if a finished trial provides the speed.
"""

import statistics
from pathlib import Path

from bert4rec_jax import config as config_lib
from bert4rec_jax.config import Config
from bert4rec_jax.data.suggest import multiply_adds
from bert4rec_jax.terminal import wrapped
from experiments.sweeping import trials
from experiments.sweeping.board import common_overrides, describe, duration
from experiments.sweeping.sweep_file import Sweep, apply


def plan(sweep: Sweep, root: Path, workers: int) -> str:
    """Returns the trials with their cost: tokens, and the time
    if a finished trial provides the speed.
    """
    values = config_lib.load(sweep.config).to_dict()
    progress = [trials.progress(root, i, sweep.overrides(i)) for i in range(len(sweep))]
    items = next((p.results["dataset"]["items"] for p in progress if p.results), 0)
    configs = {p.index: apply(values, p.overrides) for p in progress if p.overrides is not None}
    if sweep.search:  # the proposals of a search are unknown; the config itself is the estimate
        typical = apply(values, {**sweep.common, **sweep.search.fixed})
        configs = {p.index: configs.get(p.index, typical) for p in progress}
    costs = {
        index: (_positions(config), multiply_adds(config, items))
        for index, config in configs.items()
    }
    paces = [
        (p.results["train_seconds"] + p.results["eval_seconds"]) / costs[p.index][1]
        for p in progress
        if p.results
    ]
    pace = statistics.median(paces) if paces else 0.0
    shared = common_overrides(progress)
    cells = [("trial", "state", "tokens", "time", "overrides")]
    for p in progress:
        tokens, operations = costs[p.index]
        cells.append(
            (
                str(p.index),
                p.state,
                f"{tokens / 1e6:.1f} M",
                duration(pace * operations),
                "(proposed when it starts)"
                if p.overrides is None
                else describe(p.overrides, shared),
            )
        )
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    table = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in cells]
    lines = []
    if shared:
        lines.append(f"all trials: {describe(shared)}")
    left = [p.index for p in progress if p.state not in trials.DONE]
    tokens, operations = (sum(costs[i][part] for i in left) for part in (0, 1))
    lines.append(
        f"{len(sweep)} trials of {sweep.config}, {len(left)} left: {tokens / 1e6:.1f} M tokens "
        f"(steps x rows x positions), {2 * 3 * operations / 1e12:.1f} TFLOP in the Transformer"
        + (" and the output layer" if items else "")
    )
    if pace:
        lines.append(
            f"at the speed of {len(paces)} finished trial(s): "
            f"{duration(pace * operations) or '0 s'} of "
            f"machine time, about {duration(pace * operations / workers) or '0 s'} with {workers} "
            "worker(s)"
        )
    else:
        lines.append("no trial has finished yet; the first finished trial provides a time estimate")
    return "\n".join([*table, *map(wrapped, lines)])


def _positions(config: Config) -> int:
    return config.train.steps * config.train.batch_rows * config.model.max_length
