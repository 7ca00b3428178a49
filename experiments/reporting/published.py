# SPDX-License-Identifier: Apache-2.0
"""Numbers that others have published (experiments/published.json), each with what makes it comparable or not."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.reporting.records import Run

FILE = Path(__file__).parents[1] / "published.json"


@dataclass(frozen=True)
class Published:
    """A row of somebody else's table.

    Attributes:
      id: by which documents cite it.
      data: names of our data sets that it may stand below.
      candidates: full, pop100 or uni100, as in config.eval.protocol.
      split: leave_one_out or temporal, as in config.split.kind.
      model: as its source calls it.
      metrics: name -> value, as printed there.
      source: where it is printed.
      protocol: how it was made.
      differences: from ours.
      chosen_on: what its model or epoch was chosen on: validation, test, or not stated.
    """

    id: str
    data: tuple[str, ...]
    candidates: str
    split: str
    model: str
    metrics: dict[str, str]
    source: str
    protocol: str
    differences: str
    chosen_on: str


def load(file: Path = FILE) -> list[Published]:
    """Reads all published numbers. Values are text, so that they are shown with the digits that were printed."""
    groups = json.loads(file.read_text(encoding="utf-8"))["groups"]
    return [
        Published(
            id=row["id"],
            data=tuple(group["data"]),
            candidates=group["candidates"],
            split=group.get("split", "leave_one_out"),
            model=row["model"],
            metrics=row["metrics"],
            source=row.get("source", group.get("source", "")),
            protocol=row.get("protocol", group.get("protocol", "")),
            differences=row.get("differences", group.get("differences", "")),
            chosen_on=row.get("chosen_on", group.get("chosen_on", "")),
        )
        for group in groups
        for row in group["rows"]
    ]


def published(run: Run, metrics: Sequence[str], file: Path = FILE) -> list[Published]:
    """Returns the published rows to show below a table of runs like `run`, with one of these metrics at least."""
    return [
        row
        for row in load(file)
        if run.dataset["name"] in row.data
        and run.fields["eval.protocol"] == row.candidates
        and run.fields["split.kind"] == row.split
        and any(metric in row.metrics for metric in metrics)
    ]


def lettered(
    rows: Sequence[Published], metrics: Sequence[str]
) -> tuple[list[str], list[list[str]], list[str]]:
    """Returns header and lines of a table of such rows, and a note for each letter of its last column.

    A note says for all rows of one origin where they are printed, how they were made, and what is different from ours.
    """
    shown = [m for m in metrics if any(m in row.metrics for row in rows)]
    origins = list(dict.fromkeys((row.source, row.protocol, row.differences) for row in rows))
    letters = {origin: chr(ord("a") + i) for i, origin in enumerate(origins)}
    body = [
        [row.model, *(row.metrics.get(m, "-") for m in shown), row.chosen_on]
        + [letters[row.source, row.protocol, row.differences]]
        for row in rows
    ]
    notes = [
        f"{letter}: {source}. Protocol: {protocol}. Differences from ours: {differences}."
        for (source, protocol, differences), letter in letters.items()
    ]
    return ["published model", *shown, "chosen on", "source"], body, notes
