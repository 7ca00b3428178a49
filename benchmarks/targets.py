# SPDX-License-Identifier: Apache-2.0
"""Training steps compiled for accelerators: memory, memory traffic against arithmetic, bytes sent, seconds to compile.

    python -m benchmarks.targets --out runs/targets            # every row; an hour on two cores
    python -m benchmarks.targets --only "1M items, h100:8"

Nothing is run: ratios are bytes and operations divided by published speeds. This needs the same
compilers as `--compile_for`. Each row is compiled in a process of its own and becomes a line of
targets.jsonl; rows that are already there are not compiled again.
"""

import json
import math
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from benchmarks import hlo
from benchmarks.formulas import Job

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "out", "runs/targets", "Folder for targets.jsonl (finished rows) and targets.json (the table)."
)
flags.DEFINE_string("only", "", "Compile only this row, given by name and target.")
flags.DEFINE_integer("timeout", 1800, "Seconds after which a compilation is abandoned.")

# name: (items, rows per device, changes to `recommended()` in bfloat16, targets, goals). The goals
# are the highest ratio of memory traffic to arithmetic and the most seconds to compile; None if
# the goal is not set.
LONG = {"model.width": 256, "model.layers": 4, "model.heads": 4, "model.ffn_width": 1024}
LARGE = {"model.width": 128, "model.layers": 2, "model.ffn_width": 512}
PROGRAMS = {
    "MovieLens-1M size": (
        3416,
        16,
        {"model.width": 64, "model.layers": 2, "model.max_length": 200},
        ("v5e:2x4", "h100:8"),
        (6, None),
    ),
    "2,048 long": (62_423, 8, {**LONG, "model.max_length": 2048}, ("v5e:2x4", "h100:8"), (1.5, 60)),
    "4,096 long": (
        62_423,
        4,
        {**LONG, "model.max_length": 4096},
        ("v5e:2x4", "h100:8"),
        (None, None),
    ),
    "8,192 long": (
        62_423,
        4,
        {**LONG, "model.max_length": 8192},
        ("v5e:2x4", "h100:8"),
        (None, None),
    ),
    "1M items": (
        1_000_000,
        32,
        {**LARGE, "model.max_length": 200, "parallel.item_shards": 8},
        ("v5e:2x4", "h100:8"),
        (2, 60),
    ),
    "10M items": (
        10_000_000,
        32,
        {**LARGE, "model.max_length": 100, "parallel.item_shards": 8},
        ("v5p:2x2x2", "tpu7x:2x2x1", "h100:8"),
        (None, 120),
    ),
    "100M items, sampled": (
        100_000_000,
        32,
        {
            **LARGE,
            "model.max_length": 100,
            "parallel.item_shards": 64,
            "loss.name": "sampled_softmax",
        },
        ("v5e:8x8", "h100:8x8"),
        (None, None),
    ),
    "configs/ml_25m.py, 2,048 rows": (59_047, 256, {}, ("v5e:2x4", "h100:8"), (None, None)),
}
COLUMNS = [
    "program",
    "target",
    "memory a device, GiB",
    "by formula",
    "operations, G",
    "memory traffic, GiB",
    "with on-chip, GiB",
    "memory : arithmetic",
    "with on-chip",
    "goal",
    "at most, M positions/s",
    "sent, MiB",
    "of the least",
    "compile, s",
    "CPU s",
    "goal, s",
]


def compile_row(name: str, target_text: str) -> dict:
    """Compiles one row in this process and returns its figures."""
    from bert4rec_jax import config as config_lib
    from bert4rec_jax.aot import estimate, parse
    from bert4rec_jax.devices import Layout

    target = parse(target_text)
    target.prepare()
    items, rows, changes, *_ = PROGRAMS[name]
    if name.startswith("configs/"):
        sys.path.insert(0, ".")
        from configs.ml_25m import get_config

        values = get_config()
    else:
        values = config_lib.recommended()
    devices = target.devices()
    batch = {
        "model.dtype": "bfloat16",
        "train.batch_rows": rows * len(devices),
        "train.steps": 100_000,
        "eval.batch_rows": len(devices),
    }
    with values.unlocked():
        values.update_from_flattened_dict({**changes, **batch})
    config = config_lib.resolve(values)
    layout = Layout(config.parallel, devices)
    sizes = estimate.assumed_sizes(config, layout, items)
    step = estimate.training_step(config, sizes, layout)
    report, program = estimate.compile_step(step, target, layout)
    job = job_of(config, sizes.slots, step.arguments[0].params, layout.num_devices)
    activations = job.activation_bytes(config.model.layers, config.model.ffn_width)
    figures = {
        **vars(report),
        "name": name,
        "target": target_text,
        "formula_bytes": job.state_bytes() + activations / config.train.accumulate,
        "least_sent_bytes": job.least() if config.loss.name == "softmax" else None,
    }
    if program is not None:
        figures |= traffic(
            program.as_text(), report, step.positions, target.chip.bandwidth, len(devices)
        )
    return figures


def job_of(config: Any, slots: int, params: Any, devices: int) -> Job:
    """Returns the quantities that the formulas of docs/scaling.md depend on."""
    share = config.masking.next_item_share
    length = config.model.max_length
    encoder = sum(math.prod(x.shape) for x in jax.tree.leaves(params["encoder"]))
    return Job(
        params["items"]["bias"].shape[0],
        config.model.width,
        encoder,
        config.train.batch_rows // devices,
        length,
        share * length + (1 - share) * slots,
        devices // config.parallel.item_shards,
        config.parallel.item_shards,
        2 if config.model.dtype == "bfloat16" else 4,
    )


def traffic(text: str, report: Any, positions: int, bandwidth: float, devices: int) -> dict:
    """Returns a compiled program's bytes read, written and sent, and the bound on the speed that follows."""
    program = hlo.parse(text)
    slow = hlo.accessed_bytes(program)
    everything = hlo.accessed_bytes(program, slow_only=False)
    seconds = slow / bandwidth
    sent = hlo.sent_bytes(program, devices)
    return {
        "memory_traffic_bytes": slow,
        "all_traffic_bytes": everything,
        "memory_seconds": seconds,
        "ratio": seconds / report.arithmetic_seconds,
        "ratio_with_on_chip": everything / bandwidth / report.arithmetic_seconds,
        "positions_per_second": positions / max(seconds, report.arithmetic_seconds),
        "sent_bytes": {kind: size for kind, size in sent.items() if size},
    }


def row(figures: dict) -> list[str]:
    """Returns a row of the table."""
    most, seconds = PROGRAMS[figures["name"]][-1]
    memory = f"{figures['memory_bytes'] / 2**30:.2f}" if figures["memory_bytes"] else "?"
    sent = sum(figures.get("sent_bytes", {}).values())
    least = figures["least_sent_bytes"]
    compiled = "ratio" in figures
    return [
        figures["name"],
        figures["target"],
        memory + ("" if figures["fits"] else " (does not fit)"),
        f"{figures['formula_bytes'] / 2**30:.2f}",
        f"{figures['operations'] / 1e9:,.0f}",
        f"{figures.get('memory_traffic_bytes', 0) / 2**30:,.2f}",
        f"{figures.get('all_traffic_bytes', 0) / 2**30:,.2f}",
        f"{figures['ratio']:.1f} : 1" if compiled else "?",
        f"{figures['ratio_with_on_chip']:.1f} : 1" if compiled else "?",
        f"{most} : 1" if most else "",
        f"{figures['positions_per_second'] / 1e6:,.0f}",
        f"{sent / 2**20:,.1f}",
        f"{sent / least:.2f}" if least else "",
        f"{figures['compile_seconds']:.0f}",
        f"{figures['compile_cpu_seconds']:.0f}",
        f"{seconds}" if seconds else "",
    ]


def quadratic_from(figures: list[dict]) -> dict[str, int]:
    """Returns, for each target, the row length from which attention takes most of a training step's operations.

    Per position, attention takes operations in proportion to the length of the row; everything else
    is constant. Both follow from the shortest and the longest of the programs that differ only in
    length. Operations bound their time, so from there on it grows with the square of the length.
    """
    found = {}
    long = [r for r in figures if r["name"].endswith(" long")]
    for target in dict.fromkeys(r["target"] for r in long):
        points = []
        for r in long:
            if r["target"] != target:
                continue
            _, rows, changes, *_ = PROGRAMS[r["name"]]
            length = changes["model.max_length"]
            points.append((length, r["operations"] / (rows * length)))
        shortest, fewest = min(points)
        longest, most = max(points)
        if longest > shortest:
            growth = (most - fewest) / (longest - shortest)
            found[target] = round(fewest / growth - shortest)
    return found


def versions() -> dict:
    """Returns the versions and the commit that produce the figures."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    packages = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "bert4rec_jax")),
        "versions": {name: metadata.version(name) for name in packages},
    }


def compile_in_process(name: str, target: str) -> dict | None:
    """Compiles a row in a process of its own; returns None, with a message, if it fails."""
    code = (
        "import json; from benchmarks.targets import compile_row; "
        f"print(json.dumps(compile_row({name!r}, {target!r})))"
    )
    provenance = versions()  # before the run, because the checkout may change meanwhile
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=FLAGS.timeout,
        )
    except subprocess.TimeoutExpired:
        print(f"{name}, {target}: not compiled in {FLAGS.timeout} s", flush=True)
        return None
    if ended.returncode:
        print(f"{name}, {target}: {ended.stderr.strip().splitlines()[-1][:200]}", flush=True)
        return None
    return json.loads(ended.stdout.splitlines()[-1]) | provenance


def main(_) -> None:
    """Compiles the missing rows and prints the table."""
    os.makedirs(FLAGS.out, exist_ok=True)
    path = Path(FLAGS.out, "targets.jsonl")
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    order = [(name, target) for name, (*_, chosen, _) in PROGRAMS.items() for target in chosen]
    for name, target in order:
        is_done = any((r["name"], r["target"]) == (name, target) for r in done)
        if is_done or FLAGS.only not in ("", f"{name}, {target}"):
            continue
        figures = compile_in_process(name, target)
        if figures is None:
            continue
        done.append(figures)
        with path.open("a") as file:
            file.write(json.dumps(figures) + "\n")
        print(" | ".join(row(figures)), flush=True)
    done.sort(key=lambda r: order.index((r["name"], r["target"])))
    rows = [row(r) for r in done]
    table = {
        "columns": COLUMNS,
        "rows": rows,
        "quadratic_from": quadratic_from(done),
        "cores": len(os.sched_getaffinity(0)),
        "figures": done,
    }
    Path(FLAGS.out, "targets.json").write_text(json.dumps(table, indent=1) + "\n")
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    app.run(main)
