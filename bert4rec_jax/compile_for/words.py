# SPDX-License-Identifier: Apache-2.0
"""Reports of compiled steps, in words for people and in JSON for programs."""

import json
from dataclasses import asdict

from bert4rec_jax.compile_for.figures import Report
from bert4rec_jax.config import Config
from bert4rec_jax.devices.targets import Target

GIB = 2**30


def as_json(_: Config, target: Target, reports: list[Report]) -> str:
    """Returns everything that `as_text` says, for programs."""
    return json.dumps(
        {
            "target": target.text,
            "device_memory_bytes": target.chip.memory,
            "nothing_was_run": True,
            "steps": [asdict(r) for r in reports],
        },
        indent=2,
    )


def as_text(config: Config, target: Target, reports: list[Report]) -> str:
    """Returns the reports in words and numbers, for people."""
    lines = [
        f"Compiled for {target.text}; nothing was run. Times and speeds are bounds from published figures, "
        "not measurements."
    ]
    for r in reports:
        lines += [
            "",
            f"{r.name} step ({r.compile_seconds:.0f} s to compile here, {r.compile_cpu_seconds:.0f} s of "
            "processor time)",
            *_memory_lines(config, target, r),
        ]
        if r.operations:
            slower, ratio = (
                ("memory", r.memory_ratio)
                if r.memory_ratio >= 1
                else ("arithmetic", 1 / r.memory_ratio)
            )
            lines += [
                f"  operations        {r.operations / 1e9:,.1f} G in matrix products, at least "
                f"{1e3 * r.arithmetic_seconds:.3f} ms",
                f"  memory traffic    {r.memory_traffic_bytes / GIB:,.3f} GiB, at least "
                f"{1e3 * r.memory_seconds:.3f} ms ({r.all_traffic_bytes / GIB:,.3f} GiB with what stays on the chip)",
                f"  what binds        {slower}, {ratio:.1f} : 1",
                f"  bound             at most {r.positions_per_second:,.0f} positions a second on all devices",
                f"  sent by a device  {_sent(r)}",
            ]
    return "\n".join(lines)


def _sent(r: Report) -> str:
    total = sum(r.sent_bytes.values())
    kinds = (
        ", ".join(f"{kind} {size / 2**20:,.1f} MiB" for kind, size in r.sent_bytes.items())
        or "nothing"
    )
    least = (
        ""
        if r.least_sent_bytes is None or not total
        else (
            f" ({total / r.least_sent_bytes:.2f} times the least, {r.least_sent_bytes / 2**20:,.1f} MiB)"
        )
    )
    return kinds + least


def _memory_lines(c: Config, target: Target, r: Report) -> list[str]:
    have = target.chip.memory / GIB
    if r.fits:
        return [f"  memory a device   {r.memory_bytes / GIB:,.2f} of {have:.0f} GiB: fits"]
    missing = f"does not fit ({r.error})"
    if r.memory_bytes:
        over = (r.memory_bytes - target.chip.memory) / GIB
        least = "at least " if r.error else ""
        missing = f"{least}{r.memory_bytes / GIB:,.2f} of {have:.0f} GiB: does not fit, by {least}{over:,.2f} GiB"
    if r.name == "ranking":
        advice = f"lower config.eval.batch_rows = {c.eval.batch_rows}"
    else:
        advice = (
            f"lower config.train.batch_rows = {c.train.batch_rows}, raise config.train.accumulate = "
            f"{c.train.accumulate}, set config.model.remat = True, or config.loss.name = 'sampled_softmax'"
        )
    return [
        f"  memory a device   {missing}",
        f"  to make it fit    {advice}; where the table is what is too large, "
        f"raise config.parallel.item_shards = {c.parallel.item_shards}",
    ]
