# SPDX-License-Identifier: Apache-2.0
r"""What one training step sends between devices, read from the compiled program, against the least it could send.

  python -m benchmarks.communication          # eight simulated devices, every layout; about a minute
  python -m benchmarks.communication --plan   # the model of docs/scaling.md for large catalogues and many devices

Bytes are what one device sends in a ring: 2 (n - 1) / n of the array for an all-reduce over n devices, (n - 1) / n of
the whole array for an all-gather or a reduce-scatter.
"""

import argparse
import os
import re
import tempfile
from dataclasses import dataclass

from bert4rec_jax import config as config_lib

LAYOUTS = {
    "jit 8x1": {},
    "pmap 8": {"parallel.mode": "pmap"},
    "jit 4x2": {"parallel.catalogue": 2},
    "jit 2x4": {"parallel.catalogue": 4},
    "jit 1x8": {"parallel.catalogue": 8},
    "jit 8x1, accumulate 4": {"train.accumulate": 4},
    "jit 2x4, accumulate 4": {"parallel.catalogue": 4, "train.accumulate": 4},
    "jit 2x4, sampled softmax": {"parallel.catalogue": 4, "loss.name": "sampled_softmax"},
}
SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1, "f64": 8, "s64": 8, "u64": 8}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")


@dataclass(frozen=True)
class Job:
    """A model on a grid of devices; everything a step sends or holds follows from these numbers.

    Attributes:
      rows_in_table: V, of the item table.
      width: D.
      encoder: parameters beside the item table.
      rows: of a batch on each device.
      length: L.
      slots: K, masked slots of a row.
      data: devices that share a batch beside the catalogue axis.
      catalogue: devices that share the item table.
      dtype_bytes: of activations.
    """

    rows_in_table: int
    width: int
    encoder: int
    rows: int
    length: int
    slots: int
    data: int
    catalogue: int
    dtype_bytes: int = 4

    @property
    def devices(self) -> int:
        """Returns the number of devices."""
        return self.data * self.catalogue

    def table_gradient(self) -> float:
        """Returns bytes sent to sum the gradient of a device's part of the item table over the data axis."""
        return all_reduce(4 * self.rows_in_table * (self.width + 1) / self.catalogue, self.data)

    def encoder_gradient(self) -> float:
        """Returns bytes sent to sum the encoder's gradient over all devices."""
        return all_reduce(4 * self.encoder, self.devices)

    def activations(self) -> float:
        """Returns bytes of activations and statistics that a split table makes travel with the exact softmax.

        Tokens: ids and embeddings of N = rows * length tokens a device, and the gradient of those embeddings. Slots:
        hidden states of M = rows * slots a device and their gradient; label, log-sum-exp, target logit and weight.
        """
        group, tokens, slots = self.catalogue, self.rows * self.length, self.rows * self.slots
        if group == 1:
            return 0.0
        lookup = gathered(group * tokens * (4 + 2 * 4 * self.width), group)
        hidden = gathered(group * slots * (self.dtype_bytes + 4) * self.width, group)
        statistics = gathered(group * slots * 4 * (2 + group), group) + all_reduce(group * slots * 4, group)
        return lookup + hidden + statistics

    def least(self) -> float:
        """Returns the least bytes a device sends in a step: one reduction of each gradient, and activations."""
        return self.table_gradient() + self.encoder_gradient() + self.activations()

    def state_bytes(self) -> float:
        """Returns bytes of parameters, two moments and the gradient on each device, in float32."""
        return 16 * (self.rows_in_table * (self.width + 1) / self.catalogue + self.encoder)

    def logits_bytes(self) -> float:
        """Returns bytes of all logits of a device: its part of the catalogue for the slots of its group."""
        return 4 * self.rows * self.slots * self.catalogue * self.rows_in_table / self.catalogue

    def table_flops(self) -> float:
        """Returns operations of the exact softmax on each device, forward and backward."""
        return 6 * self.rows * self.slots * self.rows_in_table * self.width


def all_reduce(size: float, devices: int) -> float:
    """Returns bytes sent by each of `devices` to sum arrays of `size` bytes."""
    return 2 * size * (devices - 1) / devices


def gathered(size: float, devices: int) -> float:
    """Returns bytes sent by each device to gather or reduce-scatter a whole array of `size` bytes."""
    return size * (devices - 1) / devices


def sent_bytes(hlo: str, devices: int) -> dict[str, float]:
    """Returns bytes sent by a device by kind of operation, from the text of a compiled program.

    The body of a loop counts as often as the loop runs.
    """
    loops = re.findall(r' while\(.*body=%?([\w.-]+).*"known_trip_count":\{"n":"(\d+)"\}', hlo)
    repeats = {body: int(times) for body, times in loops}
    sent, times = dict.fromkeys(KINDS, 0.0), 1
    for line in hlo.splitlines():
        computation = re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line)
        if computation:
            times = repeats.get(computation[1], 1)
        match = _OPERATION.search(line)
        if not match:
            continue
        shapes, kind = match.groups()
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        size = sum(SIZES[dtype] * _product(dimensions) for dtype, dimensions in arrays)
        group = _group_size(line, devices)
        sent[kind] += times * {"all-reduce": lambda: all_reduce(size, group),
                               "all-gather": lambda: gathered(size, group),
                               # The result is one part of what was reduced.
                               "reduce-scatter": lambda: gathered(size * group, group)}.get(kind, lambda: size)()
    return sent


def _product(dimensions: str) -> int:
    result = 1
    for dimension in filter(None, dimensions.split(",")):
        result *= int(dimension)
    return result


def _group_size(line: str, devices: int) -> int:
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    return int(tiled[1]) if tiled else devices


def _experiment(changes: dict):
    from bert4rec_jax.experiment import Experiment

    values = config_lib.base()
    values.data.source = "synthetic"
    values.data.synthetic.update(users=2000, num_items=10_000, genres=20, mean_length=40)
    values.model.update(width=64, layers=2, max_length=50)
    values.train.update(batch_rows=64)
    values.update_from_flattened_dict(changes)
    return Experiment(config_lib.resolve(values))


def measure(name: str) -> str:
    """Compiles a layout's step and returns a row of the table."""
    import jax

    experiment = _experiment(LAYOUTS[name])
    c = experiment.config
    step = experiment.step.lower(experiment.template, experiment.batch(0), experiment.root).compile()
    sent = sent_bytes(step.as_text(), 8)
    params = experiment.template.params
    job = Job(params["items"]["bias"].size, c.model.width, sum(x.size for x in jax.tree.leaves(params["encoder"])),
              c.train.batch_rows // 8, c.model.max_length, experiment.num_slots, 8 // c.parallel.catalogue,
              c.parallel.catalogue)
    total = sum(sent.values())
    others = sent["all-to-all"] + sent["collective-permute"]
    cells = [sent["all-reduce"], sent["all-gather"], sent["reduce-scatter"], others, total]
    sampled = c.loss.name != "softmax"
    against = ["-", "-"] if sampled else [f"{job.least() / 2**20:.3f}", f"{total / job.least():.2f}"]
    return " | ".join([name, *(f"{cell / 2**20:.3f}" for cell in cells), *against])


def plan() -> str:
    """Returns the tables of docs/scaling.md."""
    catalogues = {"ML-25M": (59_047, 128, 6, 2048, 120, 32), "10M items": (10_000_000, 128, 2, 512, 100, 32),
                  "100M items": (100_000_000, 128, 2, 512, 100, 32)}
    grids = {"ML-25M": [(8, 1), (64, 1), (256, 1)],
             "10M items": [(8, 1), (1, 8), (64, 1), (8, 8), (256, 1), (32, 8)],
             "100M items": [(1, 8), (8, 8), (1, 64), (32, 8), (4, 64)]}
    lines = ["| catalogue | devices | data x catalogue | state GiB | all logits GiB | table gradient sent MiB | encoder "
             "gradient sent MiB | activations sent MiB | s at 50 GB/s | table TFLOP |", "|" + "---|" * 10]
    for name, (items, width, layers, ffn, length, rows) in catalogues.items():
        encoder = length * width + layers * (4 * width * (width + 1) + width * ffn * 2 + ffn + width + 4 * width)
        for data, catalogue in grids[name]:
            job = Job(items + 2, width, encoder, rows, length, round(0.2 * length) + 3, data, catalogue, 2)
            lines.append("| " + " | ".join([
                name, str(job.devices), f"{data} x {catalogue}", f"{job.state_bytes() / 2**30:.2f}",
                f"{job.logits_bytes() / 2**30:.2f}", f"{job.table_gradient() / 2**20:.1f}",
                f"{job.encoder_gradient() / 2**20:.1f}", f"{job.activations() / 2**20:.1f}",
                f"{job.least() / 50e9:.4f}", f"{job.table_flops() / 1e12:.2f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", action="store_true", help="print the model for large catalogues; measures nothing")
    if parser.parse_args().plan:
        print(plan())
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("BERT4REC_DATA", folder)
        print("MiB sent by each of 8 devices in a step\n")
        print("| layout | all-reduce | all-gather | reduce-scatter | other | total | least | ratio |")
        print("|" + "---|" * 8)
        for name in LAYOUTS:
            print(f"| {measure(name)} |", flush=True)


if __name__ == "__main__":
    main()
