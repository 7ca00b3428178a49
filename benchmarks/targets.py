# SPDX-License-Identifier: Apache-2.0
"""What compilers say of training steps on accelerators: memory, traffic against arithmetic, seconds to compile.

    python -m benchmarks.targets --out runs/targets            # every row; an hour on two cores
    python -m benchmarks.targets --only "1M items, h100:8"

Nothing is run: ratios are bytes and operations divided by published speeds. Needs what `--compile_for` needs. Each row
is a process of its own; its figures are a line of targets.jsonl, which rows that are there already are taken from.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "out", "runs/targets", "Folder for targets.jsonl (what is done) and targets.json (the table)."
)
flags.DEFINE_string("only", "", "One row, by its name and target.")
flags.DEFINE_integer("timeout", 1800, "Seconds after which a compilation is given up.")

# name: (items, rows a device, changes to `recommended()` in bfloat16, targets, goals: memory to arithmetic at most,
# seconds to compile at most; None for none)
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
    from bert4rec_jax.devices import targets

    target = targets.parse(target_text)
    target.prepare()
    from bert4rec_jax import compile_for
    from bert4rec_jax import config as config_lib

    items, rows, changes, *_ = PROGRAMS[name]
    if name.startswith("configs/"):
        sys.path.insert(0, ".")
        from configs.ml_25m import get_config

        values = get_config()
    else:
        values = config_lib.recommended()
    with values.unlocked():
        values.update_from_flattened_dict(
            {
                **changes,
                "model.dtype": "bfloat16",
                "train.batch_rows": rows * len(target.devices()),
                "train.steps": 100_000,
                "eval.batch_rows": len(target.devices()),
            }
        )
    [report] = compile_for.report(config_lib.resolve(values), target, items, ("training",))
    return {
        **vars(report),
        "name": name,
        "target": target_text,
        "ratio": report.memory_ratio if report.operations else None,
        "ratio_with_on_chip": report.all_traffic_bytes
        / target.chip.bandwidth
        / report.arithmetic_seconds
        if report.operations
        else None,
    }


def row(r: dict) -> list[str]:
    """Returns a row of the table."""
    most, seconds = PROGRAMS[r["name"]][-1]
    memory = f"{r['memory_bytes'] / 2**30:.2f}" if r["memory_bytes"] else "?"
    sent = sum((r["sent_bytes"] or {}).values())
    return [
        r["name"],
        r["target"],
        memory + ("" if r["fits"] else " (does not fit)"),
        f"{r['formula_bytes'] / 2**30:.2f}",
        f"{r['operations'] / 1e9:,.0f}",
        f"{r['memory_traffic_bytes'] / 2**30:,.2f}",
        f"{r['all_traffic_bytes'] / 2**30:,.2f}",
        f"{r['ratio']:.1f} : 1" if r["ratio"] else "?",
        f"{r['ratio_with_on_chip']:.1f} : 1" if r["ratio"] else "?",
        f"{most} : 1" if most else "",
        f"{r['positions_per_second'] / 1e6:,.0f}",
        f"{sent / 2**20:,.1f}",
        f"{sent / r['least_sent_bytes']:.2f}" if r["least_sent_bytes"] else "",
        f"{r['compile_seconds']:.0f}",
        f"{r['compile_cpu_seconds']:.0f}",
        f"{seconds}" if seconds else "",
    ]


def quadratic_from(figures: list[dict]) -> dict[str, int]:
    """Returns, for each target, from how many columns on attention is more than all the rest of a training step.

    For each position of a row attention takes operations in proportion to the row's length, everything else always the
    same; the shortest and the longest of the programs that differ in nothing else tell how many. Their time is bound by
    operations, so that from there on it grows with the square of the length.
    """
    found, long = {}, [r for r in figures if r["name"].endswith(" long")]
    for target in dict.fromkeys(r["target"] for r in long):
        points = []
        for r in long:
            _, rows, changes, *_ = PROGRAMS[r["name"]]
            length = changes["model.max_length"]
            if r["target"] == target:
                points.append((length, r["operations"] / (rows * length)))
        (short, few), (longest, many) = min(points), max(points)
        if longest > short:
            growth = (many - few) / (longest - short)
            found[target] = round(few / growth - short)
    return found


def made_by() -> dict:
    """Returns the versions and the commit that figures are made by."""
    from importlib import metadata

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False
        ).stdout.strip()

    packages = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "bert4rec_jax")),
        "versions": {name: metadata.version(name) for name in packages},
    }


def main(_) -> None:
    """Compiles what is missing and prints the table."""
    os.makedirs(FLAGS.out, exist_ok=True)
    path = Path(FLAGS.out, "targets.jsonl")
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for name, (*_, chosen, _) in PROGRAMS.items():
        for target in chosen:
            if any(r["name"] == name and r["target"] == target for r in done) or FLAGS.only not in (
                "",
                f"{name}, {target}",
            ):
                continue
            code = f"import json; from benchmarks.targets import compile_row; print(json.dumps(compile_row({name!r}, {target!r})))"
            program = made_by()  # before: a checkout may move on meanwhile
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
                continue
            if ended.returncode:
                print(
                    f"{name}, {target}: {ended.stderr.strip().splitlines()[-1][:200]}", flush=True
                )
                continue
            done.append(json.loads(ended.stdout.splitlines()[-1]) | program)
            with path.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(" | ".join(row(done[-1])), flush=True)
    order = [(name, target) for name, (*_, chosen, _) in PROGRAMS.items() for target in chosen]
    done.sort(key=lambda r: order.index((r["name"], r["target"])))
    rows = [row(r) for r in done]
    Path(FLAGS.out, "targets.json").write_text(
        json.dumps(
            {
                "columns": COLUMNS,
                "rows": rows,
                "quadratic_from": quadratic_from(done),
                "cores": len(os.sched_getaffinity(0)),
                "figures": done,
            },
            indent=1,
        )
        + "\n"
    )
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    app.run(main)
