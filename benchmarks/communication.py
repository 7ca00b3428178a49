# SPDX-License-Identifier: Apache-2.0
r"""Compares the bytes that one training step sends between devices with the least it could send.

  python -m benchmarks.communication          # eight simulated devices, every layout; about a minute
  python -m benchmarks.communication --plan   # the model of docs/scaling.md for large catalogues and many devices

With `--out FOLDER` the table is also written there, as communication.json or communication_plan.json.
These files are kept in experiments/results/benchmarks and cited in docs/scaling.md.

Bytes are counted for one device in a ring: 2 (n - 1) / n of the array for an all-reduce over n devices, (n - 1) / n of
the whole array for an all-gather or a reduce-scatter.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.formulas import Job
from bert4rec_jax import config as config_lib

LAYOUTS = {
    "jit 8x1": {},
    "pmap 8": {"parallel.mode": "pmap"},
    "jit 4x2": {"parallel.item_shards": 2},
    "jit 2x4": {"parallel.item_shards": 4},
    "jit 1x8": {"parallel.item_shards": 8},
    "jit 8x1, accumulate 4": {"train.accumulate": 4},
    "jit 2x4, accumulate 4": {"parallel.item_shards": 4, "train.accumulate": 4},
    "jit 2x4, sampled softmax": {"parallel.item_shards": 4, "loss.name": "sampled_softmax"},
}


def _experiment(changes: dict):
    from bert4rec_jax.experiment import Experiment

    values = config_lib.base()
    values.data.source = "synthetic"
    values.data.synthetic.update(users=2000, num_items=10_000, genres=20, mean_length=40)
    values.model.update(width=64, layers=2, max_length=50)
    values.train.update(batch_rows=64)
    values.update_from_flattened_dict(changes)
    return Experiment(config_lib.resolve(values))


COLUMNS = [
    "layout",
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "other",
    "total",
    "least",
    "ratio",
]
PLAN_COLUMNS = [
    "catalogue",
    "devices",
    "data x catalogue",
    "state GiB",
    "all logits GiB",
    "table gradient sent MiB",
    "encoder gradient sent MiB",
    "activations sent MiB",
    "s at 50 GB/s",
    "table TFLOP",
]


def measure(name: str) -> list[str]:
    """Compiles a layout's step and returns a row of the table."""
    import jax

    from benchmarks.hlo import parse, sent_bytes

    experiment = _experiment(LAYOUTS[name])
    c = experiment.config
    step = experiment.step.lower(
        experiment.template, experiment.batch(0), experiment.root
    ).compile()
    sent = sent_bytes(parse(step.as_text()), 8)
    params = experiment.template.params
    encoder = sum(x.size for x in jax.tree.leaves(params["encoder"]))
    job = Job(
        params["items"]["bias"].size,
        c.model.width,
        encoder,
        c.train.batch_rows // 8,
        c.model.max_length,
        experiment.num_slots,
        8 // c.parallel.item_shards,
        c.parallel.item_shards,
    )
    total = sum(sent.values())
    others = sent["all-to-all"] + sent["collective-permute"]
    cells = [sent["all-reduce"], sent["all-gather"], sent["reduce-scatter"], others, total]
    sampled = c.loss.name != "softmax"
    against = (
        ["-", "-"] if sampled else [f"{job.least() / 2**20:.3f}", f"{total / job.least():.2f}"]
    )
    return [name, *(f"{cell / 2**20:.3f}" for cell in cells), *against]


def plan() -> list[list[str]]:
    """Returns the rows of docs/scaling.md's plan."""
    catalogues = {
        "ML-25M": (59_047, 128, 6, 2048, 120, 32),
        "10M items": (10_000_000, 128, 2, 512, 100, 32),
        "100M items": (100_000_000, 128, 2, 512, 100, 32),
    }
    grids = {
        "ML-25M": [(8, 1), (64, 1), (256, 1)],
        "10M items": [(8, 1), (1, 8), (64, 1), (8, 8), (256, 1), (32, 8)],
        "100M items": [(1, 8), (8, 8), (1, 64), (32, 8), (4, 64)],
    }
    rows_of_table = []
    for name, (items, width, layers, ffn, length, rows) in catalogues.items():
        encoder = length * width + layers * (
            4 * width * (width + 1) + width * ffn * 2 + ffn + width + 4 * width
        )
        for data, catalogue in grids[name]:
            job = Job(
                items + 2, width, encoder, rows, length, round(0.2 * length) + 3, data, catalogue, 2
            )
            rows_of_table.append(
                [
                    name,
                    str(job.devices),
                    f"{data} x {catalogue}",
                    f"{job.state_bytes() / 2**30:.2f}",
                    f"{job.logits_bytes() / 2**30:.2f}",
                    f"{job.table_gradient() / 2**20:.1f}",
                    f"{job.encoder_gradient() / 2**20:.1f}",
                    f"{job.activations() / 2**20:.1f}",
                    f"{job.least() / 50e9:.4f}",
                    f"{job.table_flops() / 1e12:.2f}",
                ]
            )
    return rows_of_table


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the model for large catalogues; measures nothing"
    )
    parser.add_argument("--out", type=Path, help="folder for the table as a record")
    arguments = parser.parse_args()
    columns = PLAN_COLUMNS if arguments.plan else COLUMNS
    print(f"{_line(columns)}\n{_line(['---'] * len(columns))}", flush=True)
    made_by, rows = {}, []
    if arguments.plan:
        rows = plan()
        print("\n".join(map(_line, rows)))
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
        )
        with tempfile.TemporaryDirectory() as folder:
            os.environ.setdefault("BERT4REC_DATA", folder)
            for name in LAYOUTS:
                rows.append(measure(name))
                print(_line(rows[-1]), flush=True)
        import jax

        made_by = {
            "unit": "MiB sent by each of 8 simulated devices in a step",
            "jax": jax.__version__,
        }
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = "communication_plan.json" if arguments.plan else "communication.json"
        (arguments.out / name).write_text(
            json.dumps({"columns": columns, "rows": rows, **made_by}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
