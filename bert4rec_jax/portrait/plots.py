# SPDX-License-Identifier: Apache-2.0
"""The plots of a portrait."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bert4rec_jax.portrait.measures import Bin

# The palette of Okabe and Ito, which people with colour blindness can distinguish.
GROUP_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A7F00")
OTHER_COLOUR = "#999999"
MODEL_COLOUR = "#4453c9"
BASELINE_COLOURS = ("#9094a8", "#c9ccd8", "#e0e1e8")
EVENTS_COLOUR = "#8b8fa5"
# Minimum distances between two labels of the item map, as shares of its width and height.
_LABEL_WIDTH = 0.17
_LABEL_HEIGHT = 0.035
_LABEL_CHARACTERS = 28


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def item_map(
    places_V2: np.ndarray, shares: np.ndarray, groups: list[str], labels: dict[int, str]
) -> Figure:
    """Draws items on two axes, coloured by group.

    Args:
      places_V2: coordinates of each item.
      shares: float[2], share of the variance on each axis.
      groups: group of each item, such as its first genre; the seven largest have a colour.
      labels: {row: text} for items to label, most important first.
    """
    figure, axes = _axes(9, 6.2)
    names, counts = np.unique(groups, return_counts=True)
    by_size = names[np.argsort(-counts, kind="stable")].tolist()
    largest = [name for name in by_size if name][: len(GROUP_COLOURS)]
    group_V = np.array(groups)
    style: dict[str, Any] = {
        "s": float(np.clip(20000 / max(len(groups), 1), 3, 22)),
        "linewidths": 0,
    }
    others = places_V2[~np.isin(group_V, largest)]
    if len(others):
        label = "other" if largest else None
        axes.scatter(*others.T, color=OTHER_COLOUR, alpha=0.5, label=label, **style)
    for name, colour in zip(largest, GROUP_COLOURS):
        places = places_V2[group_V == name]
        axes.scatter(*places.T, color=colour, alpha=0.65, label=name, **style)
    for row in _rows_with_room(places_V2, list(labels)):
        text = labels[row]
        if len(text) > _LABEL_CHARACTERS:
            text = text[: _LABEL_CHARACTERS - 1] + "…"
        axes.annotate(text, places_V2[row], (4, 3), textcoords="offset points", fontsize=7.5)
    axes.set_xlabel(f"first principal axis ({100 * shares[0]:.0f} % of the variance)")
    axes.set_ylabel(f"second principal axis ({100 * shares[1]:.0f} %)")
    axes.set_xticks([])
    axes.set_yticks([])
    if largest:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, markerscale=2.5)
    return figure


def _rows_with_room(places_V2: np.ndarray, rows: list[int]) -> list[int]:
    """Returns the rows whose labels do not cover the label of an earlier row."""
    relative_V2 = places_V2 / (np.ptp(places_V2, axis=0) + 1e-9)
    chosen: list[int] = []
    for row in rows:
        distances = np.abs(relative_V2[chosen] - relative_V2[row])
        if ((distances[:, 0] > _LABEL_WIDTH) | (distances[:, 1] > _LABEL_HEIGHT)).all():
            chosen.append(row)
    return chosen


def ndcg_bars(bins: dict[str, list[Bin]], label: str) -> Figure:
    """Draws NDCG@10 in bins, for the model (first) and for baselines."""
    figure, axes = _axes(6.2, 3.4)
    width = 0.8 / len(bins)
    colours = (MODEL_COLOUR, *BASELINE_COLOURS)
    for index, (name, values) in enumerate(bins.items()):
        x = np.arange(len(values)) + (index - (len(bins) - 1) / 2) * width
        axes.bar(x, [entry.ndcg for entry in values], width, color=colours[index], label=name)
    ticks = [f"{_range(entry)}\n{entry.cases:,} users" for entry in next(iter(bins.values()))]
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.set_xlabel(label)
    axes.set_ylabel("NDCG@10")
    axes.legend(frameon=False, fontsize=8.5)
    return figure


def _range(entry: Bin) -> str:
    return f"{entry.low:,}" if entry.low == entry.high else f"{entry.low:,}–{entry.high:,}"


def popularity(recommended_V: np.ndarray, events_V: np.ndarray) -> Figure:
    """Draws the share of recommendations and of training events that goes to popular items.

    Args:
      recommended_V: int[num_items], number of lists that contain each item.
      events_V: int[num_items], training events of each item.
    """
    figure, axes = _axes(6.2, 3.4)
    order = np.argsort(-events_V, kind="stable")
    share = 100 * np.arange(1, len(events_V) + 1) / len(events_V)
    for name, counts_V, colour in (
        ("recommended", recommended_V, MODEL_COLOUR),
        ("training events", events_V, EVENTS_COLOUR),
    ):
        cumulative = 100 * np.cumsum(counts_V[order]) / max(counts_V.sum(), 1)
        axes.plot(share, cumulative, color=colour, label=name, linewidth=2)
    axes.set_xlabel("most popular share of the catalogue, %")
    axes.set_ylabel("share of all, %")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 101)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    return figure
