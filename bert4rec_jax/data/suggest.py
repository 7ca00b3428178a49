# SPDX-License-Identifier: Apache-2.0
"""Hyperparameters for a new data set, derived from its statistics.

They set the fields that `config.recommended` leaves open. The configs `ml_1m`, `beauty` and
`steam_100k` follow these rules, so their results show how good the rules are. The other configs are
older than the rules, or limited by their training time.
"""

import math
import shlex
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bert4rec_jax.config import Config, resolve
from bert4rec_jax.data.dataset import Dataset
from bert4rec_jax.data.prepare import load_dataset
from bert4rec_jax.data.splits import split_dataset

PASSES = 40  # passes over the training events in one run
LENGTHS = (50, 100, 200)
# Thresholds, each with the value that applies from there on. The larger width applies.
WIDTHS_BY_EVENTS = ((0, 64), (5_000_000, 128), (100_000_000, 256))
WIDTHS_BY_ITEMS = ((0, 64), (10_000, 128))
DROPOUTS_BY_EVENTS_PER_ITEM = ((0, 0.5), (25, 0.3), (100, 0.2), (200, 0.1))
# Multiply-adds of the forward passes per second of training, backward passes included. Measured on
# one core with AVX-512: 0.9 to 2.0e10 in the records of ml_1m, beauty, steam_100k and ml_100k.
CPU_PACE = 1.3e10


class Suggestion(NamedTuple):
    """A value for a config field, and the statistic that it follows from."""

    field: str
    value: int | float
    reason: str


def suggest(dataset: Dataset, training_events: int) -> list[Suggestion]:
    """Returns width, length, dropout, batch size and steps for a data set.

    Args:
      dataset: the data.
      training_events: number of its training events.
    """
    longest = int(np.quantile(np.diff(dataset.offsets), 0.9))
    length = next((length for length in LENGTHS if length >= longest), LENGTHS[-1])
    rows = max(16, min(32, 3200 // length))
    positions = rows * length
    steps = max(1000, PASSES * training_events // positions)
    steps = round(steps, 2 - len(str(steps)))  # two significant digits
    passes = steps * positions / training_events
    width_by_events = _from_thresholds(WIDTHS_BY_EVENTS, training_events)
    width_by_items = _from_thresholds(WIDTHS_BY_ITEMS, dataset.num_items)
    width = int(max(width_by_events, width_by_items))
    per_item = training_events / dataset.num_items
    dropout = _from_thresholds(DROPOUTS_BY_EVENTS_PER_ITEM, per_item)
    sizes = f"{training_events:,} training events, {dataset.num_items:,} items"
    interval = max(steps // 12, 1)
    return [
        Suggestion("model.max_length", length, f"90 % of histories have up to {longest:,} events"),
        Suggestion("model.width", width, sizes),
        Suggestion("model.ffn_width", 4 * width, "four times the width"),
        Suggestion("model.dropout", dropout, f"{per_item:,.0f} training events per item"),
        Suggestion("train.batch_rows", rows, f"{positions:,} positions per step"),
        Suggestion("train.steps", steps, f"about {passes:.0f} passes over the training events"),
        Suggestion("train.eval_every", interval, "12 validations"),
        Suggestion("train.checkpoint_every", interval, "12 checkpoints"),
    ]


def _from_thresholds(thresholds: tuple[tuple[int, float], ...], value: float) -> float:
    """Returns the result for the largest threshold that `value` reaches."""
    return [result for threshold, result in thresholds if value >= threshold][-1]


def multiply_adds(config: Config, num_items: int) -> float:
    """Returns the multiply-adds of the forward passes of a whole training run.

    Args:
      config: the run.
      num_items: size of the catalogue; 0 leaves the output layer out.
    """
    m = config.model
    positions = config.train.steps * config.train.batch_rows * m.max_length
    per_layer = 4 * m.width**2 + 2 * m.width * m.ffn_width + 2 * m.width * m.max_length
    next_item = config.masking.next_item_share
    targets = next_item + (1 - next_item) * config.masking.probability
    return positions * (m.layers * per_layer + math.ceil(targets * num_items * m.width))


def suggestions_text(config: Config, arguments: Sequence[str]) -> str:
    """Returns the suggestions with their reasons, a time estimate, and the command that trains.

    Args:
      config: the run's configuration.
      arguments: of the command line; its flags are repeated in the command.

    Raises:
      UserError: the data cannot be prepared or split.
    """
    dataset = load_dataset(config.data, config.filter)
    split = split_dataset(dataset, config.split)
    training_events = int((split.train_stop - dataset.offsets[:-1]).sum())
    suggestions = suggest(dataset, training_events)
    fields = [f"--config.{s.field}={s.value}" for s in suggestions]
    widest = max(map(len, fields))
    rows = [f"  {field:<{widest}}  {s.reason}" for field, s in zip(fields, suggestions)]
    seconds = multiply_adds(_with_suggestions(config, suggestions), dataset.num_items) / CPU_PACE
    events = int(dataset.offsets[-1])
    lines = [
        f"{dataset.num_users:,} users, {dataset.num_items:,} items, {events:,} events",
        "",
        *rows,
        "",
        f"Training takes about {_duration(seconds)} on one CPU core with AVX-512 (within a",
        "factor of two), and much less on a GPU or TPU.",
        "",
        "The command that trains:",
        "",
        _training_command(arguments, fields),
    ]
    return "\n".join(lines)


def _with_suggestions(config: Config, suggestions: list[Suggestion]) -> Config:
    values = config.to_dict()
    for suggestion in suggestions:
        group, field = suggestion.field.split(".")
        values[group][field] = suggestion.value
    return resolve(values)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.0f} hours"
    return f"{seconds / 86_400:,.0f} days"


def _training_command(arguments: Sequence[str], fields: list[str]) -> str:
    """Returns the command line with the flags in `arguments`, except --mode, and `fields`."""
    replaced = {"mode"} | {field.lstrip("-").partition("=")[0] for field in fields}
    kept: list[str] = []
    has_workdir = False
    keep = False
    for word in arguments:
        if word.startswith("-"):
            name = word.lstrip("-").partition("=")[0]
            keep = name not in replaced
            has_workdir |= name == "workdir"
            if keep:
                kept.append(shlex.quote(word))
        elif keep:  # the value of the flag before it
            kept[-1] += f" {shlex.quote(word)}"
    if not has_workdir:
        kept.append("--workdir runs/mine")
    pairs = [" ".join(fields[n : n + 2]) for n in range(0, len(fields), 2)]
    return "  python -m bert4rec_jax.main " + " \\\n      ".join([*kept, *pairs])
