# SPDX-License-Identifier: Apache-2.0
"""Figures of one data set, with title and caption: curves, swept parameters, parallel coordinates,
groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bert4rec_jax.portrait.measures import GROUPED_BY
from bert4rec_jax.ranking import equal_groups
from experiments.reporting import statistics
from experiments.reporting.records import Run
from experiments.reporting.rows import Row, describe

GROUPS = 5  # groups of users or items of about equal size
MOST_LINES = 8  # more colours are hard to distinguish
MOST_TICKS = 6
_GREYS = [
    {"color": shade, "linestyle": dots} for shade in ("0.3", "0.6") for dots in (":", "--", "-.")
]  # line styles of baselines
matplotlib.rcParams.update(
    {
        "font.size": 8,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
        "pdf.fonttype": 42,
        "svg.hashsalt": "bert4rec_jax",
    }
)


@dataclass(frozen=True)
class Drawn:
    """A figure with its title and caption.

    Attributes:
      figure: the drawing, its title on top.
      title: a few words.
      caption: explains lines, bars and bands.
      spread: a short legend of bars and bands inside the figure.
    """

    figure: Figure
    title: str
    caption: str
    spread: str = ""


def draw_all(
    name: str, rows: Sequence[Row], metric: str, baseline: str, spread: str
) -> dict[str, Drawn]:
    """Draws the figures that the rows have data for.

    Args:
      name: of the data set.
      rows: rows of the table.
      metric: accuracy metric of all figures.
      baseline: row that is always shown among the groups, if any.
      spread: of the table, over seeds: `sd` or `se`; error bars over seeds are the same.

    Returns:
      name -> figure: `curves`, `parameters`, `coordinates`, `history_length`, `item_popularity`.
    """
    models = [row for row in rows if not row.baseline]
    bars = {"sd": "standard deviation", "se": "standard error of the mean"}[spread]
    drawn = {
        "curves": Drawn(
            curves(models, [row for row in rows if row.baseline], metric),
            f"{name}: validation {metric} during training",
            f"Mean over seeds; bands run from the lowest to the highest seed. Grey: test {metric} "
            "of the baselines. "
            f"At most {MOST_LINES} rows, the best on test.",
            "bands: lowest to highest seed",
        )
    }
    swept = sorted({field for row in models for field in _swept(models, row)})
    if swept:
        drawn["parameters"] = Drawn(
            parameters(models, swept, metric, spread),
            f"{name}: test {metric} by setting",
            f"Mean over seeds; bars are ± the {bars} over seeds, as in the table, and absent where "
            "there is one seed. "
            "A line joins settings that differ in this field alone.",
            f"bars: ± {bars} over seeds",
        )
    if len(swept) > 1:
        drawn["coordinates"] = Drawn(
            coordinates(models, swept, metric),
            f"{name}: every setting",
            "A line is a setting, its colour and its place on the last axis are the mean over "
            f"seeds of test {metric}.",
        )
    shown = _best_and_baselines(rows, metric, baseline)
    for array, label in GROUPED_BY.items():
        drawn[array] = Drawn(
            by_group(shown, array, label, metric),
            f"{name}: test {metric} by {label}",
            "Cases in groups of about equal size; means over seeds, bars are 95 % intervals over "
            "the cases of a group "
            "(Student), without the variance of seeds. The best row of every model, and the "
            "baselines.",
            "bars: 95 % intervals over cases",
        )
    for one in drawn.values():
        one.figure.suptitle("\n".join(filter(None, (one.title, one.spread))), fontsize=8)
    return drawn


def save(figures: dict[str, Drawn], folder: Path, prefix: str) -> list[Path]:
    """Writes every figure as PDF and as PNG; returns the paths."""
    paths = []
    for name, drawn in figures.items():
        for kind in ("pdf", "png"):
            path = folder / f"{prefix}-{name}.{kind}"
            # No date inside: the same records give the same file.
            drawn.figure.savefig(
                path, dpi=200, metadata={"CreationDate": None} if kind == "pdf" else None
            )
            paths.append(path)
    return paths


def curves(rows: Sequence[Row], baselines: Sequence[Row], metric: str) -> Figure:
    """Draws validation against step and against training seconds: the mean over seeds,
    and their range.
    """
    figure = Figure(figsize=(7, 2.8))
    axes = figure.subplots(1, 2, sharey=True)
    chosen = _top(rows, metric, MOST_LINES)
    for color, row in zip(_colors(len(chosen)), chosen):
        series = [_validations(run, metric) for run in row.runs]
        steps = sorted(set.intersection(*(set(s) for s in series)))
        if not steps:
            continue
        values = np.array([[s[step][1] for step in steps] for s in series])
        seconds = np.array([[s[step][0] for step in steps] for s in series]).mean(axis=0)
        for axis, x in zip(axes, (np.array(steps), seconds)):
            axis.plot(x, values.mean(axis=0), color=color, label=row.name, marker=".", markersize=3)
            axis.fill_between(
                x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0
            )
    for style, row in zip(_GREYS, baselines):
        for axis in axes:
            axis.axhline(row.values(metric, "test").mean(), **style, label=f"{row.name} (test)")
    axes[0].set(xlabel="step", ylabel=f"validation {metric}")
    axes[1].set(xlabel="training seconds")
    _legend(figure, axes[0])
    return figure


def parameters(rows: Sequence[Row], swept: Sequence[str], metric: str, spread: str) -> Figure:
    """Draws test quality against each swept field, with the table's error over seeds.

    A line joins settings that differ only in this field; without such settings,
    every setting is a point.
    """
    columns = min(3, len(swept))
    lines = -(-len(swept) // columns)
    figure = Figure(figsize=(2.5 * columns, 2.1 * lines))
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(swept) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, swept):
        position = _place(axis, rows, name)
        families = _families(rows, name)
        for label, family in families.items():
            family = sorted(family, key=position)
            values = [row.values(metric, "test") for row in family]
            axis.errorbar(
                [position(row) for row in family],
                [v.mean() for v in values],
                yerr=np.nan_to_num([statistics.spread(v)[spread == "se"] for v in values]),
                marker="o",
                markersize=3,
                capsize=2,
                linewidth=1 if len(family) > 1 else 0,
                elinewidth=1,
                label=label,
            )
        axis.set_xlabel(name)
        if 1 < len(families) <= MOST_LINES:
            axis.legend(fontsize=5, frameon=False)
    for line in axes:
        line[0].set_ylabel(f"test {metric}")
    return figure


def coordinates(rows: Sequence[Row], swept: Sequence[str], metric: str) -> Figure:
    """Draws every setting as a line over its fields, coloured by test quality, the best on top."""
    quality = np.array([row.values(metric, "test").mean() for row in rows])
    names = [*swept, f"test {metric}"]
    figure = Figure(figsize=(max(4.0, 1.1 * len(names)), 2.8))
    axis = figure.subplots()
    table = np.zeros((len(rows), len(names)))
    for column, name in enumerate(swept):
        ordered = sorted(
            {row.runs[0].fields[name] for row in rows}, key=lambda v: (isinstance(v, str), v)
        )
        for place, value in enumerate(ordered):
            height = place / max(len(ordered) - 1, 1)
            if len(ordered) <= 8:
                axis.annotate(
                    str(value),
                    (column, height),
                    xytext=(3, 2),
                    textcoords="offset points",
                    fontsize=6,
                )
        table[:, column] = [
            ordered.index(row.runs[0].fields[name]) / max(len(ordered) - 1, 1) for row in rows
        ]
    span = np.ptp(quality) or 1.0
    table[:, -1] = (quality - quality.min()) / span
    colors = matplotlib.colormaps["viridis"](table[:, -1])
    for i in np.argsort(quality):
        axis.plot(range(len(names)), table[i], color=colors[i], linewidth=1.2, alpha=0.8)
    for height in (0.0, 1.0):
        axis.annotate(
            f"{quality.min() + height * span:.4f}",
            (len(names) - 1, height),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=6,
        )
    axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axis.set_yticks([])
    return figure


def by_group(rows: Sequence[Row], array: str, label: str, metric: str) -> Figure:
    """Draws test quality in groups of test cases, with 95 % intervals over the cases of a group.

    Args:
      rows: lines of the figure.
      array: name of the array in ranks_test.npz whose quantiles define the groups.
      label: label of the axis.
      metric: accuracy metric.
    """
    figure = Figure(figsize=(4.5, 2.8))
    axis = figure.subplots()
    key = rows[0].runs[0].ranks[array]
    group = equal_groups(key, GROUPS)
    present = np.unique(group)
    for color, row in zip(_colors(len(rows)), rows):
        case = row.per_case(metric).mean(axis=1)
        parts = [case[group == g] for g in present]
        offset = (rows.index(row) - (len(rows) - 1) / 2) * 0.3 / len(rows)
        axis.errorbar(
            np.arange(len(present)) + offset,
            [part.mean() for part in parts],
            yerr=[statistics.half_width(part) for part in parts],
            color=color,
            marker="o",
            markersize=3,
            capsize=2,
            linewidth=1,
            label=row.name,
        )
    ticks = [
        f"{key[group == g].min():g}-{key[group == g].max():g}\n{(group == g).sum():,} cases"
        for g in present
    ]
    axis.set_xticks(range(len(present)), ticks)
    axis.set(xlabel=label, ylabel=f"test {metric}")
    _legend(figure, axis)
    return figure


def _validations(run: Run, metric: str) -> dict[int, tuple[float, float]]:
    return {
        line["step"]: (line["seconds"], line[metric])
        for line in run.curve
        if line["split"] == "valid" and metric in line
    }


def _swept(models: Sequence[Row], row: Row) -> set[str]:
    """Returns the fields in which other rows of the same model differ from this one."""
    own = [other for other in models if _model(other) == _model(row)]
    return {
        name
        for other in own
        for name in (*other.changes, *row.changes)
        if repr(other.runs[0].fields[name]) != repr(row.runs[0].fields[name])
    }


def _model(row: Row) -> str:
    return row.runs[0].results["model"]


def _families(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    """Groups rows that differ only in the field `name`; single rows only without groups.

    Returns:
      Common settings of a group -> its rows.
    """
    swept = [
        field for field in dict.fromkeys(f for row in rows for f in row.changes) if field != name
    ]
    families: dict[str, list[Row]] = {}
    for row in rows:
        others = describe({field: row.runs[0].fields[field] for field in swept}, swept)
        families.setdefault(", ".join([_model(row), *others]), []).append(row)
    return {label: family for label, family in families.items() if len(family) > 1} or families


def _place(axis, rows: Sequence[Row], name: str) -> Callable[[Row], float]:
    """Sets the ticks of a field's axis; returns the position of a row on it."""
    values = {row.runs[0].fields[name] for row in rows}
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        if min(values) > 0 and max(values) / min(values) >= 8:
            axis.set_xscale("log")
        if len(values) <= MOST_TICKS:
            axis.set_xticks(sorted(values), [f"{value:g}" for value in sorted(values)])
            axis.set_xticks([], minor=True)
        return lambda row: row.runs[0].fields[name]
    ordered = sorted(map(str, values))
    axis.set_xticks(range(len(ordered)), ordered)
    axis.margins(x=0.3)
    return lambda row: ordered.index(str(row.runs[0].fields[name]))


def _top(rows: Sequence[Row], metric: str, count: int) -> list[Row]:
    """Returns the `count` best rows, in their given order."""
    best = sorted(rows, key=lambda row: -row.values(metric, "test").mean())[:count]
    return [row for row in rows if row in best]


def _best_and_baselines(rows: Sequence[Row], metric: str, baseline: str) -> list[Row]:
    """Returns the best row of every model, the counting baselines and the row of --baseline."""
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(row.baseline or _model(row), []).append(row)
    shown = [_top(family, metric, 1)[0] for family in models.values()]
    return [row for row in rows if row in shown or row.name == baseline]


def _colors(count: int):
    return matplotlib.colormaps["tab10"](np.arange(max(count, 1)) % 10)


def _legend(figure: Figure, axis) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=2 if len(labels) > 3 else len(labels),
            frameon=False,
            fontsize=7,
        )
