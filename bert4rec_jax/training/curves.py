# SPDX-License-Identifier: Apache-2.0
"""Draws curves.png: the training loss and the validation metric over the steps, with baselines."""

import itertools
from typing import TYPE_CHECKING

from bert4rec_jax.errors import UserError
from bert4rec_jax.files import replacing
from bert4rec_jax.run_files import RunFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE_STYLES = (":", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))


def draw(files: RunFiles, metric: str) -> None:
    """Draws the curves of a run that has results into its directory.

    Args:
      files: the run directory.
      metric: the metric that chose the best step, such as ndcg@10.

    Raises:
      UserError: the run is not finished, or its files cannot be read.
    """
    from matplotlib.figure import Figure

    results = files.results()
    if results is None:
        raise UserError(f"the run in {files.folder} is not finished; continue its training.")
    lines = files.metrics()
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    loss_axes, metric_axes = figure.subplots(1, 2)
    _draw_loss(loss_axes, [line for line in lines if line["split"] == "train"])
    valid = [line for line in lines if line["split"] == "valid"]
    _draw_metric(metric_axes, valid, results, metric)
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
        axes.set_xlim(0, None)
    title = f"{results['model']} on {results['dataset']['name']}, seed {results['seed']}"
    figure.suptitle(title, fontsize=10)
    with replacing(files.curves_path, "wb") as file:
        figure.savefig(file, dpi=150, format="png")


def _draw_loss(axes: "Axes", train: list[dict]) -> None:
    steps = [line["step"] for line in train]
    losses = [line["loss"] for line in train]
    axes.plot(steps, losses, color="tab:blue")
    axes.set(xlabel="step", ylabel="training loss (nats per target)")


def _draw_metric(axes: "Axes", valid: list[dict], results: dict, metric: str) -> None:
    steps = [line["step"] for line in valid]
    values = [line[metric] for line in valid]
    axes.plot(steps, values, marker="o", ms=3, label="validation")
    test_value = results["test"][metric]
    axes.plot(
        results["best_step"], test_value, "*", ms=11, color="tab:red", label="test, best step"
    )
    styles = itertools.cycle(_LINE_STYLES)
    for name, baseline in results["baselines"].items():
        if metric in baseline["test"]:
            value = baseline["test"][metric]
            axes.axhline(value, color="grey", ls=next(styles), label=f"test, {name}")
    axes.set(xlabel="step", ylabel=metric, ylim=(0, None))
    axes.legend(fontsize=8)
