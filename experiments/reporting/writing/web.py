# SPDX-License-Identifier: Apache-2.0
"""One HTML file with all tables and figures of a report, readable without a network."""

import base64
import html
import io
from collections.abc import Sequence

from experiments.reporting.figures import Drawn
from experiments.reporting.tables import Table
from experiments.reporting.writing import grids

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
table { display: block; overflow-x: auto; }
thead th { border-bottom: 2px solid #444; text-align: left; }
td, th { padding: .2em .9em .2em 0; white-space: nowrap; }
tbody tr:nth-child(even) { background: #f6f6f6; }
.note, figcaption { color: #555; margin: .2em 0; font-size: 13px; }
figure { margin: 1.5em 0; } img { max-width: 100%; }
dd { margin: 0 0 .5em 1em; } code { font-size: 12px; overflow-wrap: anywhere; }
"""
_MARKS = grids.Marks("<b>{}</b>", "<u>{}</u>", "<sup>{}</sup>")


def page(title: str, parts: Sequence[tuple[Table, dict[str, Drawn]]]) -> str:
    """Returns the whole page.

    Args:
      title: of the page.
      parts: a table and its figures for every data set.
    """
    body = []
    for table, figures in parts:
        body.append(f"<h2>{html.escape(table.name)}</h2>\n{_table(table)}")
        for drawn in figures.values():
            caption = html.escape(f"{drawn.title}. {drawn.caption}")
            body.append(
                f'<figure><img alt="{html.escape(drawn.title)}" '
                f'src="data:image/png;base64,{_png(drawn)}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _table(table: Table) -> str:
    text = _grid(grids.main(table, _MARKS, html.escape))
    text += "".join(f"<p class='note'>{html.escape(note)}</p>\n" for note in table.notes)
    for grid in grids.others(table):
        body = [[html.escape(cell) for cell in row] for row in grid.body]
        text += f"<p class='note'>{html.escape(grid.caption)}</p>\n"
        text += _grid(grids.Grid(grid.caption, grid.header, body))
        text += "".join(f"<p class='note'>{html.escape(note)}</p>\n" for note in grid.notes)
    facts = "".join(
        f"<dt>{html.escape(what)}</dt><dd><code>{html.escape(value)}</code></dd>\n"
        for what, value in table.reproducibility
    )
    return text + f"<details><summary>Reproducibility</summary><dl>\n{facts}</dl></details>\n"


def _grid(grid: grids.Grid) -> str:
    """Returns a grid whose cells are HTML already."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in grid.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in grid.body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>\n"


def _png(drawn: Drawn) -> str:
    buffer = io.BytesIO()
    drawn.figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()
