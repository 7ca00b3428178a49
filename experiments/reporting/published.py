# SPDX-License-Identifier: Apache-2.0
"""Published numbers (experiments/published.json), with protocols and differences from ours."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.reporting.records import Run

FILE = Path(__file__).parents[1] / "published.json"


@dataclass(frozen=True)
class Published:
    """A row of a published table.

    Attributes:
      id: identifier in citations.
      data: names of our data sets for which it is shown.
      candidates: full, pop100 or uni100, as in config.eval.protocol.
      split: leave_one_out or temporal, as in config.split.kind.
      model: name in the source.
      metrics: name -> value as printed in the source.
      source: publication.
      protocol: evaluation protocol.
      differences: differences from our protocol.
      chosen_on: data that selected the model or epoch: validation, test, or not stated.
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
    """Reads all published numbers. Values are text and keep their printed digits."""
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
    """Returns the published rows for a table of runs like `run` that have at least one
    of the metrics.
    """
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
    """Returns the header and the lines of a table of published rows,
    and a note for each letter in its last column.

    A note gives the publication, the protocol and the differences from ours for all rows
    of one origin.
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
