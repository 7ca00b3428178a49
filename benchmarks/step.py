# SPDX-License-Identifier: Apache-2.0
"""How near a training step comes to the machine's limit, where the rest goes, and how its time grows.

    python benchmarks/step.py --out runs/bench

Batches are made up and full, so no data are needed. Printed, and written to OUT/step.md:

* the fastest matrix product this machine does, and the share of that rate which the products of a step reach, for the
  configurations of `speed.py`;
* the share of a step's time by part of the model, from XLA's own profile;
* the host's part: how long the prefetching thread takes to make a batch during the step;
* from the command to the first finished step, with and without JAX's compilation cache;
* OUT/growth.png: time against length, rows, width, layers and items, with fitted exponents.
"""

from bert4rec_jax.allocator import keep_freed_memory

keep_freed_memory()  # as the commands do, before NumPy starts threads

import collections
import dataclasses
import functools
import glob
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from bert4rec_jax.config import Config, base, resolve
from bert4rec_jax.data import Packed
from bert4rec_jax.devices import Layout
from bert4rec_jax.model import masks_per_history
from bert4rec_jax.training import StepSpec, init_state, train_step

FLAGS = flags.FLAGS
flags.DEFINE_string("out", "runs/bench", "Folder for step.md and growth.png.")
flags.DEFINE_list(
    "parts", ["limit", "profile", "start", "growth"], "Of limit, profile, start, growth."
)
flags.DEFINE_integer("repeats", 15, "Steps timed for a figure; the median counts.", lower_bound=3)

# Width, heads, length, rows and items of the configurations of speed.py; layers are 2, FFN 4 x width.
CONFIGURATIONS = {
    "A": (64, 2, 200, 70, 3416),
    "B": (128, 4, 50, 228, 3416),
    "C": (128, 4, 120, 22, 62423),
    "D": (128, 4, 50, 34, 12101),
}
MASKED = 0.2
_START = """
import sys
from bert4rec_jax.allocator import keep_freed_memory
keep_freed_memory()
from bert4rec_jax.config import recommended, resolve
config = recommended()
config.data.update(source="synthetic", cache_dir=sys.argv[1])
config.data.synthetic.update(users=6040, num_items=3416, mean_length=165)
from bert4rec_jax.experiment import Experiment
experiment = Experiment(resolve(config))
state, metrics = experiment.step(experiment.initial_state(), experiment.batch(0), experiment.root)
float(metrics["loss"])
sys.path.insert(0, sys.argv[2])
from protocol import process_age
print(process_age())
"""


def configuration(width: int, heads: int, length: int, rows: int, layers: int = 2) -> Config:
    """Returns the model of the benchmark, attention weights without dropout as in `speed.py`."""
    config = base()
    config.model.update(
        width=width,
        heads=heads,
        ffn_width=4 * width,
        max_length=length,
        layers=layers,
        attention_dropout=0.0,
    )
    config.masking.probability = MASKED
    config.train.batch_rows = rows
    return resolve(config)


def full_batch(config: Config, items: int) -> Packed:
    """Returns a batch in which every row is one history of full length."""
    rows, length = config.train.batch_rows, config.model.max_length
    tokens = np.random.default_rng(0).integers(1, items + 1, (rows, length), dtype=np.int32)
    left = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return Packed(
        tokens,
        np.ones_like(tokens),
        np.ascontiguousarray(left),
        np.ascontiguousarray(left[:, ::-1]),
    )


class Step:
    """A compiled step with a state to go on from."""

    def __init__(self, config: Config, items: int):
        """Compiles the step and takes it three times."""
        layout = Layout(config.parallel)
        slots = int(masks_per_history(config.masking, config.model.max_length)[-1])
        self._state = init_state(config, items)
        spec = StepSpec(config, items, slots)
        self._step = layout.compile_update(functools.partial(train_step, spec), self._state)
        self._batch, self._key = layout.put_batch(full_batch(config, items)), jax.random.key(0)
        for _ in range(3):
            self()

    def __call__(self) -> None:
        """Takes one step and waits for it."""
        self._state, metrics = self._step(self._state, self._batch, self._key)
        jax.block_until_ready(metrics)

    def hlo(self) -> str:
        """Returns the compiled program."""
        return self._step.lower(self._state, self._batch, self._key).compile().as_text()


def median_seconds(function, repeats: int) -> float:
    """Returns the median time of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def product_flops(config: Config, items: int) -> float:
    """Returns the floating-point operations of a step's matrix products: forward, and twice that backward.

    The last layer asks at masked slots only; everything else of attention is counted at all positions.
    """
    m, rows = config.model, config.train.batch_rows
    width, length = m.width, m.max_length
    slots = MASKED * length
    block = lambda asking: (  # noqa: E731
        2 * length * width * 2 * width
        + asking * (2 * width * 2 * width + 2 * 2 * length * width + 2 * 8 * width * width)
    )
    head = slots * (2 * width * width + 2 * width * items)
    return 3.0 * rows * ((m.layers - 1) * block(length) + block(slots) + head)


def best_product_rate() -> float:
    """Returns the operations a second of the fastest float32 matrix product among some large ones."""
    best = 0.0
    for m, k, n in ((2048, 2048, 2048), (14000, 256, 64), (4096, 128, 4096)):
        x, y = jnp.ones((m, k)), jnp.ones((k, n))
        product = jax.jit(jnp.dot)
        product(x, y).block_until_ready()
        seconds = median_seconds(lambda: product(x, y).block_until_ready(), 20)
        best = max(best, 2.0 * m * k * n / seconds)
    return best


def limit() -> list[str]:
    """Returns the table of the configurations against the machine's limit."""
    rate = best_product_rate()
    lines = [
        f"Matrix products reach {rate / 1e9:.0f} GFLOP/s on this machine.",
        "",
        "| configuration | ms a step | tokens/s | MFLOP a token | GFLOP/s | of the limit | a batch takes the host ms |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, (width, heads, length, rows, items) in CONFIGURATIONS.items():
        config = configuration(width, heads, length, rows)
        seconds = median_seconds(Step(config, items), FLAGS.repeats)
        flops, tokens = product_flops(config, items), rows * length
        lines.append(
            f"| {name} | {seconds * 1e3:.1f} | {tokens / seconds:,.0f} | {flops / tokens / 1e6:.2f} | "
            f"{flops / seconds / 1e9:.0f} | {flops / seconds / rate:.0%} | {host_milliseconds(config, items):.1f} |"
        )
    return lines


def host_milliseconds(config: Config, items: int) -> float:
    """Returns how long a batch takes to make, from histories of MovieLens-1M's lengths."""
    from bert4rec_jax.data.batching import TrainingBatches

    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(4.5, 1.0, 6040)).astype(np.int64), 18, 2277)

    @dataclasses.dataclass
    class Log:
        items: np.ndarray
        offsets: np.ndarray

    @dataclasses.dataclass
    class Stops:
        train_stop: np.ndarray

    offsets = np.r_[0, np.cumsum(lengths)]
    log = Log(generator.integers(1, items + 1, offsets[-1]).astype(np.int32), offsets)
    batches = TrainingBatches(
        log, Stops(offsets[1:] - 2), config.model.max_length, config.train.batch_rows, "random", 0
    )
    steps = iter(range(10**6))
    return 1e3 * median_seconds(lambda: batches.batch(next(steps)), 50)


def profile() -> list[str]:
    """Returns the table of where the time of configuration A goes."""
    width, heads, length, rows, items = CONFIGURATIONS["A"]
    step = Step(configuration(width, heads, length, rows), items)
    for _ in range(20):
        step()
    wall = median_seconds(step, FLAGS.repeats)
    names = dict(
        re.findall(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"', step.hlo(), re.MULTILINE)
    )
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(FLAGS.repeats):
                step()
        file = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)[0]
        spent = collections.Counter()
        for plane in jax.profiler.ProfileData.from_file(file).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in names:
                        spent[part_of_step(names[event.name])] += (
                            event.duration_ns / 1e6 / FLAGS.repeats
                        )
    total = sum(spent.values())
    lines = [
        f"Where a step of configuration A ({wall * 1e3:.0f} ms) goes; operations that run side by side count each:",
        "",
        "| part | ms | share |",
        "|---|--:|--:|",
    ]
    return lines + [f"| {part} | {ms:.1f} | {ms / total:.0%} |" for part, ms in spent.most_common()]


def part_of_step(name: str) -> str:
    """Returns the part of the model that an operation's name in the compiled program belongs to."""
    product = "products" if "dot_general" in name or "->" in name else "the rest"
    for pattern, part in (
        (r"block_\d+/attention/bh", "attention: scores and their weighted sums"),
        (r"block_\d+/attention/(query|key_value|out)/", f"attention: projections, {product}"),
        (r"block_\d+/attention/", "attention: softmax, masks, layouts"),
        (r"block_\d+/ffn_(in|out)/", f"feed-forward: {product}"),
        (r"Encoder", "GELU, layer norm, dropout, residuals, embeddings"),
        (
            r"jvp\((md,cd->mc)?\)+/(dot_general|add|exp|reduce|sub|log|max|mul)",
            f"loss over the catalogue: {product}",
        ),
        (r"md,cd->mc|mc,md->cd", f"loss over the catalogue: {product}"),
    ):
        if re.search(pattern, name):
            return part
    return "masking, lookup, optimizer"


def start() -> list[str]:
    """Returns the seconds from the command to the first finished step, data prepared."""
    lines = [
        "From the command to the first finished step (6,040 users, 3,416 items, prepared before):",
        "",
        "| | seconds |",
        "|---|--:|",
    ]
    with tempfile.TemporaryDirectory() as folder:

        def run(**variables):
            done = subprocess.run(
                [sys.executable, "-c", _START, folder, str(Path(__file__).parent / "peers")],
                text=True,
                capture_output=True,
                check=True,
                env={**os.environ, **variables},
            )
            return float(done.stdout.split()[-1])

        run()
        cached = {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        lines.append(
            f"| without the compilation cache | {statistics.median([run() for _ in range(3)]):.1f} |"
        )
        run(**cached)
        lines.append(f"| with it | {statistics.median([run(**cached) for _ in range(3)]):.1f} |")
    return lines


SWEPT = {
    "length": (25, 50, 100, 200, 400),
    "rows": (8, 16, 32, 64, 128),
    "width": (32, 64, 128, 256),
    "layers": (1, 2, 4, 8),
    "items": (1000, 4000, 16000, 64000),
}


def growth() -> list[str]:
    """Draws time a step against each size, and returns the exponents fitted to the largest three points of each."""
    from matplotlib.figure import Figure

    default = {"length": 100, "rows": 32, "width": 64, "layers": 2, "items": 4000}
    figure = Figure(figsize=(15, 3.4), layout="constrained")
    lines = [
        "Growth of the time of a step, other sizes being length 100, 32 rows, width 64, 2 layers, 4,000 items:",
        "",
        "| size | values | ms a step | exponent at the upper end |",
        "|---|---|---|--:|",
    ]
    for axes, (name, values) in zip(figure.subplots(1, len(SWEPT)), SWEPT.items()):
        seconds = []
        for value in values:
            c = default | {name: value}
            config = configuration(
                c["width"], max(c["width"] // 32, 1), c["length"], c["rows"], c["layers"]
            )
            seconds.append(median_seconds(Step(config, c["items"]), FLAGS.repeats))
        exponent = np.polyfit(np.log(values[-3:]), np.log(seconds[-3:]), 1)[0]
        axes.loglog(values, np.array(seconds) * 1e3, "o-")
        axes.set(xlabel=name, title=f"exponent {exponent:.2f}")
        axes.grid(True, which="both", alpha=0.3)
        lines.append(
            f"| {name} | {', '.join(map(str, values))} | {', '.join(f'{s * 1e3:.1f}' for s in seconds)} | "
            f"{exponent:.2f} |"
        )
    figure.axes[0].set_ylabel("ms a step")
    figure.savefig(os.path.join(FLAGS.out, "growth.png"), dpi=120)
    return lines


def main(_) -> None:
    """Measures and prints the parts in `--parts`."""
    parts = {"limit": limit, "profile": profile, "start": start, "growth": growth}
    unknown = [name for name in FLAGS.parts if name not in parts]
    if unknown:
        raise app.UsageError(f"--parts: unknown {unknown[0]!r}; there are {', '.join(parts)}")
    os.makedirs(FLAGS.out, exist_ok=True)
    sections = []
    for name in FLAGS.parts:
        sections.append("\n".join(parts[name]()))
        print(sections[-1] + "\n", flush=True)
    Path(FLAGS.out, "step.md").write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
    app.run(main)
