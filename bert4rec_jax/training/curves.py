# SPDX-License-Identifier: Apache-2.0
"""curves.png: loss and validation metrics of a run against the step, beside what the baselines reach."""

import itertools
import json

from bert4rec_jax.files import replacing
from bert4rec_jax.training.run_directory import RunDirectory


def draw(run: RunDirectory, metric: str) -> None:
    """Draws the lines of metrics.jsonl; `metric` is the one that chose the best step."""
    from matplotlib.figure import Figure

    with open(run.path("metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    results = run.read("results.json")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    loss, quality = figure.subplots(1, 2)
    train = [x for x in lines if x["split"] == "train"]
    loss.plot([x["step"] for x in train], [x["loss"] for x in train], color="tab:blue")
    loss.set(xlabel="step", ylabel="training loss (nats per target)")
    valid = [x for x in lines if x["split"] == "valid"]
    quality.plot(
        [x["step"] for x in valid], [x[metric] for x in valid], marker="o", ms=3, label="validation"
    )
    quality.plot(
        results["best_step"],
        results["test"][metric],
        "*",
        ms=11,
        color="tab:red",
        label="test, best step",
    )
    known = {
        name: b["test"][metric] for name, b in results["baselines"].items() if metric in b["test"]
    }
    for (name, value), style in zip(
        known.items(), itertools.cycle((":", "--", "-.", (0, (5, 1, 1, 1, 1, 1))))
    ):
        quality.axhline(value, color="grey", ls=style, label=f"test, {name}")
    figure.suptitle(
        f"{results['model']} on {results['dataset']['name']}, seed {results['seed']}", fontsize=10
    )
    quality.set(xlabel="step", ylabel=metric, ylim=(0, None))
    quality.legend(fontsize=8)
    for axes in (loss, quality):
        axes.grid(alpha=0.3)
        axes.set_xlim(0, None)
    with replacing(run.path("curves.png"), "wb") as file:
        figure.savefig(file, dpi=150, format="png")
