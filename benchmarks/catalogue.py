# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a training step against the size of the catalogue, for each loss.

    python benchmarks/catalogue.py --out runs/bench

Width 64, 2 layers, 32 rows of 200, 1,280 masked slots. Each figure comes from a process of its own: the median of some
steps, and the peak of its resident memory, state and program included. `naive` is what most programs do: all logits
at once and the gradient by automatic differentiation.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("out", "runs/bench", "Folder for catalogue.md.")
flags.DEFINE_list("items", ["1000", "10000", "100000", "1000000"], "Sizes of the catalogue.")
flags.DEFINE_list(
    "losses",
    ["softmax", "naive", "sampled_softmax", "gbce"],
    "Of softmax, naive, sampled_softmax, gbce.",
)

SLOTS = 32 * 40
_MEASURE = """
from bert4rec_jax.allocator import keep_freed_memory
keep_freed_memory()
import dataclasses, json, resource, sys
sys.path.insert(0, sys.argv[3])
import jax, jax.numpy as jnp
from bert4rec_jax.model import losses
from step import Step, configuration, median_seconds
name, items = sys.argv[1], int(sys.argv[2])
config = configuration(64, 2, 200, 32)
if name == "naive":
    def naive(config, items, h_MD, labels_M, weights_M, num_items, key, axis=None):
        logits_MV = h_MD @ items["embedding"][:num_items + 1].T + items["bias"][:num_items + 1]
        taken_M = jnp.take_along_axis(logits_MV, labels_M[:, None], axis=1)[:, 0]
        return jnp.sum(weights_M * (jax.nn.logsumexp(logits_MV, axis=1) - taken_M))
    losses.loss_sum = naive
else:
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, name=name))
step = Step(config, items)
print(json.dumps({"ms": 1e3 * median_seconds(step, 5),
                  "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
"""


def measure(loss: str, items: int) -> str:
    """Returns `ms / MiB` of one loss at one size, or why it was not measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    wanted = 3 * 4 * SLOTS * items  # logits, their exponentials and their gradient
    if loss == "naive" and wanted > memory:
        return f"not run: needs {wanted / 2**30:.0f} GiB"
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, loss, str(items), str(Path(__file__).parent)],
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['killed'])[-1][:80]}"
    answer = json.loads(done.stdout)
    return f"{answer['ms']:,.0f} ms, {answer['mib']:,} MiB"


def main(_) -> None:
    """Measures and prints the table."""
    lines = ["| items | " + " | ".join(FLAGS.losses) + " |", "|--:|" + "--:|" * len(FLAGS.losses)]
    for items in map(int, FLAGS.items):
        lines.append(
            f"| {items:,} | " + " | ".join(measure(loss, items) for loss in FLAGS.losses) + " |"
        )
        print(lines[-1], flush=True)
    os.makedirs(FLAGS.out, exist_ok=True)
    Path(FLAGS.out, "catalogue.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    app.run(main)
