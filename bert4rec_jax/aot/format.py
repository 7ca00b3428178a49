# SPDX-License-Identifier: Apache-2.0
"""Reports of compiled steps as text and as JSON."""

import json
from dataclasses import asdict

from bert4rec_jax.aot.estimate import Report
from bert4rec_jax.aot.targets import Target
from bert4rec_jax.config import Config

_GIB = 2**30


def as_json(_: Config, target: Target, reports: list[Report]) -> str:
    """Returns the reports as JSON."""
    values = {
        "target": target.text,
        "device_memory_bytes": target.chip.memory,
        "nothing_was_run": True,
        "steps": [asdict(report) for report in reports],
    }
    return json.dumps(values, indent=2)


def as_text(config: Config, target: Target, reports: list[Report]) -> str:
    """Returns the reports as text, with advice for steps that do not fit."""
    lines = [
        f"Compiled for {target.text}; nothing was run. Times and speeds are bounds from published "
        "figures, not measurements."
    ]
    for report in reports:
        lines += ["", *_step_lines(config, target, report)]
    return "\n".join(lines)


def _step_lines(config: Config, target: Target, report: Report) -> list[str]:
    lines = [
        f"{report.name} step (compiled here in {report.compile_seconds:.0f} s, "
        f"{report.compile_cpu_seconds:.0f} s of processor time)",
        f"  memory per device  {_memory(target, report)}",
    ]
    if not report.fits:
        lines.append(f"  to make it fit     {_advice(config, report)}")
    if report.operations:
        milliseconds = 1e3 * report.arithmetic_seconds
        lines += [
            f"  operations         {report.operations / 1e9:,.1f} G in matrix products, at least "
            f"{milliseconds:.3f} ms",
            f"  bound              at most {report.positions_per_second:,.0f} positions per second "
            "on all devices",
        ]
    return lines


def _memory(target: Target, report: Report) -> str:
    if not report.memory_bytes:
        return f"does not fit ({report.error})"
    needed = report.memory_bytes / _GIB
    available = target.chip.memory / _GIB
    if report.fits:
        return f"{needed:,.2f} of {available:.0f} GiB: fits"
    least = "at least " if report.error else ""
    excess = needed - available
    return f"{least}{needed:,.2f} of {available:.0f} GiB: does not fit, by {least}{excess:,.2f} GiB"


def _advice(config: Config, report: Report) -> str:
    if report.name == "ranking":
        advice = f"lower config.eval.batch_rows = {config.eval.batch_rows}"
    else:
        advice = (
            f"lower config.train.batch_rows = {config.train.batch_rows}, raise "
            f"config.train.accumulate = {config.train.accumulate}, set config.model.remat = True, "
            "or config.loss.name = 'sampled_softmax'"
        )
    shards = config.parallel.item_shards
    return f"{advice}; if the item table is too large, raise config.parallel.item_shards = {shards}"
