# SPDX-License-Identifier: Apache-2.0
"""A table as Markdown, with a comment that contains its options and records."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.reporting.records import Run
from experiments.reporting.tables import Table, dump_options
from experiments.reporting.writing import grids

# The comment of each table: paths of its records, and its options.
TAG = re.compile(r"<!-- report of (\[.*?\]) with (\{.*?\}) -->")
_MARKS = grids.Marks("**{}**", "<u>{}</u>", "<sup>{}</sup>")


def markdown(table: Table, runs: Sequence[Run], folder: Path) -> str:
    """Returns the table as Markdown.

    Args:
      table: the table.
      runs: records of the table.
      folder: folder of the Markdown file; paths of records in the comment are relative to it.
    """
    lines = [f"### {table.name}", "", *_grid(grids.main(table, _MARKS)), ""]
    lines += [f"{note}  " for note in table.notes]
    for grid in grids.others(table):
        lines += ["", grid.caption, "", *_grid(grid)]
        lines += ["", *(f"{note}  " for note in grid.notes)] if grid.notes else []
    lines += ["", "<details><summary>Reproducibility</summary>", ""]
    lines += [f"- {what}: `{value}`" for what, value in table.reproducibility]
    places = [Path(os.path.relpath(run.path, folder)).as_posix() for run in runs]
    lines += [
        "",
        "</details>",
        "",
        f"<!-- report of {json.dumps(places)} with {dump_options(table.options)} -->",
        "",
    ]
    return "\n".join(lines)


def _grid(grid: grids.Grid) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in [grid.header, *grid.body]]
    return [lines[0], "|" + " --- |" * len(grid.header), *lines[1:]]
