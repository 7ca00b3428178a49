# SPDX-License-Identifier: Apache-2.0
"""Settings for data that nobody has tuned on: what is left open by `config.recommended`, from the data's statistics.

`ml_1m`, `beauty` and `steam_100k` follow these rules, so that what they reach on their data is what the rules are
worth. Other shipped configs are older than the rules, or made for the time they take.
"""

from typing import NamedTuple

import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.data.dataset import Dataset
from bert4rec_jax.data.prepare import load_dataset
from bert4rec_jax.data.splits import split_dataset

PASSES = 40  # over the training events, in a run
LENGTHS = (50, 100, 200)
# From how many training events, or items, on a width is suggested: the larger of the two. Then events an item, and
# dropout.
WIDTHS_BY_EVENTS = ((0, 64), (5_000_000, 128), (100_000_000, 256))
WIDTHS_BY_ITEMS = ((0, 64), (10_000, 128))
DROPOUTS = ((0, 0.5), (25, 0.3), (100, 0.2), (200, 0.1))


class Suggestion(NamedTuple):
    """A field with its value, and the statistic that it follows from."""

    field: str
    value: int | float
    reason: str


def suggest(dataset: Dataset, training_events: int) -> list[Suggestion]:
    """Returns width, length, dropout, rows and steps for a data set.

    Args:
      dataset: the data.
      training_events: how many of its events are trained on.
    """
    lengths = np.diff(dataset.offsets)
    long = int(np.quantile(lengths, 0.9))
    length = next((n for n in LENGTHS if n >= long), LENGTHS[-1])
    rows = max(16, min(32, 3200 // length))
    per_item = training_events / dataset.num_items
    steps = max(1000, PASSES * training_events // (rows * length))
    steps = round(steps, 2 - len(str(steps)))
    width = max(_step(WIDTHS_BY_EVENTS, training_events), _step(WIDTHS_BY_ITEMS, dataset.num_items))
    return [
        Suggestion(
            "model.max_length", length, f"nine histories in ten have at most {long:,} events"
        ),
        Suggestion(
            "model.width",
            width,
            f"{training_events:,} training events, {dataset.num_items:,} items",
        ),
        Suggestion("model.ffn_width", 4 * width, "four times the width"),
        Suggestion(
            "model.dropout", _step(DROPOUTS, per_item), f"{per_item:,.0f} training events an item"
        ),
        Suggestion("train.batch_rows", rows, f"{rows * length:,} positions a step"),
        Suggestion(
            "train.steps", steps, f"about {steps * rows * length / training_events:.0f} passes"
        ),
        Suggestion("train.eval_every", max(steps // 12, 1), "a twelfth of the run"),
        Suggestion("train.checkpoint_every", max(steps // 12, 1), "a twelfth of the run"),
    ]


def _step(steps: tuple[tuple[int, float], ...], value: float) -> float:
    return [result for least, result in steps if value >= least][-1]


def suggestions_text(config: Config) -> str:
    """Returns the suggestions for a configuration's data, with their reasons and as flags."""
    dataset = load_dataset(config.data, config.filter)
    split = split_dataset(dataset, config.split)
    suggestions = suggest(dataset, int((split.train_stop - dataset.offsets[:-1]).sum()))
    flags = [f"--config.{s.field}={s.value}" for s in suggestions]
    widest = max(map(len, flags))
    return "\n".join(
        [
            f"{len(dataset.offsets) - 1:,} users, {dataset.num_items:,} items, {dataset.offsets[-1]:,} events; "
            "beside recommended():",
            "",
            *(
                f"  {flag:<{widest}}  {s.reason}"
                for flag, s in zip(flags, suggestions, strict=True)
            ),
            "",
            "to be added to the command that trains:",
            "",
            "  " + " \\\n  ".join(" ".join(flags[n : n + 2]) for n in range(0, len(flags), 2)),
        ]
    )  # fits 80 columns
