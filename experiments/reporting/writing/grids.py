# SPDX-License-Identifier: Apache-2.0
"""The contents of a table for all formats: headers, lines of cells, and captions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from experiments.reporting.comparisons import ONE_SEED, Comparison
from experiments.reporting.published import lettered
from experiments.reporting.tables import Cell, Table


@dataclass(frozen=True)
class Grid:
    """A table of plain text.

    Attributes:
      caption: text above the table.
      header: names of the columns.
      body: lines of cells.
      notes: sentences below the table.
    """

    caption: str
    header: list[str]
    body: list[list[str]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Marks:
    """How a format marks the best, the second and an error's kind; each contains `{}` for the text.

    Attributes:
      best: of a column.
      second: of a column.
      raised: of a superscript.
    """

    best: str
    second: str
    raised: str


def main(table: Table, marks: Marks, text: Callable[[str], str] = str) -> Grid:
    """Returns the table's rows; a cell is the mean, its errors over seeds and over users,
    and a dagger.

    Args:
      table: the table.
      marks: of the format.
      text: escapes plain text for the format.
    """

    def one(cell: Cell) -> str:
        if math.isnan(cell.mean):
            return "-"
        digits = table.options.digits
        mean = {0: "{}", 1: marks.best, 2: marks.second}[cell.place].format(
            f"{cell.mean:.{digits}f}"
        )
        errors = ((getattr(cell, table.options.spread), "s"), (cell.users, "u"))
        parts = [
            text(f" ±{error:.{digits}f}") + marks.raised.format(kind)
            for error, kind in errors
            if not math.isnan(error)
        ]
        return mean + "".join(parts) + (text(" †") if cell.significant else "")

    body = [
        [
            text(row.name),
            "-" if row.baseline else str(len(row.runs)),
            *(one(cell) for cell in cells),
        ]
        for row, cells in zip(table.rows, table.cells)
    ]
    return Grid(" ".join(table.notes), ["model", "seeds", *table.options.metrics], body)


def others(table: Table) -> list[Grid]:
    """Returns the grids below the table: differences, ties and published numbers, if any."""
    return [grid for grid in (_differences(table), _ties(table), _published(table)) if grid.body]


def percent(share: float) -> str:
    """Returns a share as `5 %`."""
    return f"{100 * share:g} %"


def _differences(table: Table) -> Grid:
    digits = table.options.digits + 1

    def line(c: Comparison) -> list[str]:
        errors = ["-" if math.isnan(x) else f"{x:.{digits}f}" for x in (c.se_users, c.se_seeds)]
        return [
            c.row,
            c.metric,
            f"{c.difference:+.{digits}f}",
            "-"
            if math.isnan(c.low)
            else f"[{c.low:+.{digits}f}, {c.high:+.{digits}f}]",  # metrics of a single user
            *errors,
            _p(max(c.p_t, c.p_bootstrap)),
            _p(c.p_equivalent),
            c.verdict,
        ]

    caption = (
        f"Differences from {table.options.baseline}: 95 % interval from the variance of users and "
        "of seeds, standard "
        "errors of either; p is the larger of the two tests' and p equal that of equivalence, "
        "after Holm's correction. "
        f"`equal`: a difference of {percent(table.options.margin)} of {table.options.baseline}'s "
        "value or more is "
        "excluded by two one-sided tests; `undecided`: neither a difference nor its absence is "
        "shown."
    )
    if any(c.verdict == ONE_SEED for c in table.comparisons):
        caption += (
            " `one seed`: a row of one training says nothing about seeds; interval and p-values "
            "are of the users "
            "alone, and hold for these very runs."
        )
    header = ["model", "metric", "difference", "95 % interval", "se users", "se seeds"]
    header += ["p", "p equal", "verdict"]
    return Grid(caption, header, [line(c) for c in table.comparisons])


def _ties(table: Table) -> Grid:
    digits = table.options.digits
    return Grid(
        "Test targets that carry the time of their predecessor, whose order is the file's, and all "
        "others.",
        ["model", "metric", "tied in time", "others"],
        [
            [row, metric, f"{tied:.{digits}f}", f"{other:.{digits}f}"]
            for row, metric, tied, other in table.ties
        ],
    )


def _published(table: Table) -> Grid:
    header, body, notes = lettered(table.published, table.options.metrics)
    return Grid(
        "Published by others, and not measured here; below stand the source of each, its protocol, "
        "and what is "
        "different from ours.",
        header,
        body,
        tuple(notes),
    )


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if value >= 1e-4 else f"{value:.0e}"
