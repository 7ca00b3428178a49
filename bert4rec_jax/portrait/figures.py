# SPDX-License-Identifier: Apache-2.0
"""Figures of a portrait, on a light and quiet ground."""

import matplotlib
import numpy as np

from bert4rec_jax.portrait.measures import Bin

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito: told apart by people who see colours differently.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A7F00", "#999999")
MODEL, BESIDE = "#4453c9", ("#9094a8", "#c9ccd8", "#e0e1e8")


def _axes(width: float, height: float):
    figure, axes = plt.subplots(figsize=(width, height), dpi=150, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def item_map(
    path: str, places: np.ndarray, shares: np.ndarray, groups: list[str], labels: dict[int, str]
) -> None:
    """Draws items on two axes, coloured by group.

    Args:
      path: of the PNG.
      places: float[V, 2].
      shares: float[2], share of the variance on each axis.
      groups: of each item, such as its first genre; the seven largest have a colour.
      labels: {row: text} of items that are named.
    """
    figure, axes = _axes(9, 6.2)
    names, counts = np.unique(groups, return_counts=True)
    largest = [n for n in names[np.argsort(-counts, kind="stable")].tolist() if n][:7]
    groups = np.array(groups)
    rest = ~np.isin(groups, largest)
    size = float(np.clip(20000 / max(len(places), 1), 3, 22))
    if rest.any():
        axes.scatter(
            *places[rest].T,
            s=size,
            color=COLOURS[7],
            alpha=0.5,
            linewidths=0,
            label="other" if largest else None,
        )
    for name, colour in zip(largest, COLOURS):
        axes.scatter(
            *places[groups == name].T, s=size, color=colour, alpha=0.65, linewidths=0, label=name
        )
    # Names that would lie over another are left out; the first ones count most.
    width, height = np.ptp(places, axis=0) + 1e-9
    taken: list[np.ndarray] = []
    for row, text in labels.items():
        place = places[row] / (width, height)
        if all(
            abs(place[0] - other[0]) > 0.17 or abs(place[1] - other[1]) > 0.035 for other in taken
        ):
            taken.append(place)
            short = text if len(text) <= 28 else text[:27] + "…"
            axes.annotate(
                short,
                places[row],
                fontsize=7.5,
                xytext=(4, 3),
                textcoords="offset points",
                color="#222",
            )
    axes.set_xlabel(f"first principal axis ({100 * shares[0]:.0f} % of the variance)")
    axes.set_ylabel(f"second ({100 * shares[1]:.0f} %)")
    axes.set_xticks([]), axes.set_yticks([])
    if largest:
        axes.legend(
            loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8.5, markerscale=2.5
        )
    figure.savefig(path)
    plt.close(figure)


def bars(path: str, bins: dict[str, list[Bin]], label: str) -> None:
    """Draws NDCG@10 in bins, the model (first) beside what it is compared with."""
    figure, axes = _axes(6.2, 3.4)
    width = 0.8 / len(bins)
    for place, (name, values) in enumerate(bins.items()):
        x = np.arange(len(values)) + (place - (len(bins) - 1) / 2) * width
        axes.bar(
            x,
            [b.ndcg for b in values],
            width,
            color=MODEL if place == 0 else BESIDE[(place - 1) % 3],
            label=name,
        )
    first = next(iter(bins.values()))
    ranges = [f"{b.low:,}" if b.low == b.high else f"{b.low:,}–{b.high:,}" for b in first]
    axes.set_xticks(
        range(len(first)), [f"{r}\n{b.cases:,} users" for r, b in zip(ranges, first)], fontsize=8
    )
    axes.set_xlabel(label), axes.set_ylabel("NDCG@10")
    axes.legend(frameon=False, fontsize=8.5)
    figure.savefig(path)
    plt.close(figure)


def popularity(path: str, recommended: np.ndarray, events: np.ndarray) -> None:
    """Draws which share of places and of training events goes to the most popular items.

    Args:
      path: of the PNG.
      recommended: int[num_items], how often each item is in a list.
      events: int[num_items], how often it occurs in training.
    """
    figure, axes = _axes(6.2, 3.4)
    order = np.argsort(-events, kind="stable")
    share = 100 * np.arange(1, len(events) + 1) / len(events)
    for name, values, colour in (
        ("recommended", recommended, MODEL),
        ("training events", events, "#8b8fa5"),
    ):
        axes.plot(
            share,
            100 * np.cumsum(values[order]) / max(values.sum(), 1),
            color=colour,
            label=name,
            linewidth=2,
        )
    axes.set_xlabel("most popular share of the catalogue, %"), axes.set_ylabel("share of all, %")
    axes.set_xlim(0, 100), axes.set_ylim(0, 101)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    figure.savefig(path)
    plt.close(figure)
