# SPDX-License-Identifier: Apache-2.0
"""A table as CSV: one line per row and metric, with six significant digits,
and the data needed to reproduce it.
"""

import csv
import io
import math

from experiments.reporting.comparisons import Comparison
from experiments.reporting.tables import Table

_COMPARED = (
    "difference",
    "low",
    "high",
    "se_users",
    "se_seeds",
    "p_t",
    "p_bootstrap",
    "p_equivalent",
    "margin",
    "verdict",
)
HEADER = (
    *(
        "dataset",
        "split",
        "model",
        "metric",
        "mean",
        "sd",
        "se",
        "users_se",
        "seeds",
        "place",
        "baseline",
    ),
    *(name if not name.startswith("se_") else f"difference_{name}" for name in _COMPARED),
    *("protocol", "command", "commit", "versions", "devices", "data_fingerprint", "device_hours"),
)


def comma_separated(table: Table) -> str:
    """Returns the table's rows and comparisons, without published numbers."""
    facts = dict(table.reproducibility)
    comparisons = {(c.row, c.metric): c for c in table.comparisons}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for row, cells in zip(table.rows, table.cells):
        trained = () if row.baseline else row.runs
        for metric, cell in zip(table.options.metrics, cells):
            writer.writerow(
                [
                    *(table.name, table.options.split, row.name, metric),
                    *(_number(x) for x in (cell.mean, cell.sd, cell.se, cell.users)),
                    " ".join(str(run.seed) for run in trained),
                    cell.place or "",
                    *_compared(comparisons.get((row.name, metric)), table.options.baseline),
                    facts["protocol"],
                    " ; ".join(run.command() for run in trained),
                    " ; ".join(run.commits for run in trained),
                    facts["versions"],
                    facts["devices"],
                    facts["data fingerprint"],
                    _number(sum(run.device_hours for run in trained)) if trained else "",
                ]
            )
    return text.getvalue()


def _compared(comparison: Comparison | None, baseline: str) -> list[str]:
    if comparison is None:
        return [""] * (1 + len(_COMPARED))
    values = [getattr(comparison, name) for name in _COMPARED]
    return [baseline, *(value if isinstance(value, str) else _number(value) for value in values)]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
