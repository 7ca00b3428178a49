# SPDX-License-Identifier: Apache-2.0
"""One HTML file with all tables and figures of a report, readable without a network."""

import html
from collections.abc import Sequence

from bert4rec_jax.portrait import html_report
from experiments.reporting.plots import Drawn
from experiments.reporting.tables import Table
from experiments.reporting.writing import grids

_MARKS = grids.Marks("<b>{}</b>", "<u>{}</u>", "<sup>{}</sup>")


def page(title: str, parts: Sequence[tuple[Table, dict[str, Drawn]]]) -> str:
    """Returns the whole page.

    Args:
      title: title of the page.
      parts: the table and the figures of each data set.
    """
    sections = []
    for table, figures in parts:
        images = [
            html_report.image(drawn.figure, drawn.title, f"{drawn.title}. {drawn.caption}")
            for drawn in figures.values()
        ]
        sections.append(html_report.section(table.name, *_tables(table), *images))
    return html_report.page(title, sections)


def _tables(table: Table) -> list[str]:
    """Returns the table of results, further tables with their notes, and the commands."""
    main = grids.main(table, _MARKS, html.escape)
    parts = [html_report.table(main.header, main.body)]
    parts += [html_report.note(note) for note in table.notes]
    for grid in grids.others(table):
        body = [[html_report.text(cell) for cell in row] for row in grid.body]
        parts.append(html_report.note(grid.caption))
        parts.append(html_report.table(grid.header, body))
        parts += [html_report.note(note) for note in grid.notes]
    parts.append("<details><summary>Reproducibility</summary><dl>")
    for name, value in table.reproducibility:
        parts.append(f"<dt>{html.escape(name)}</dt><dd><code>{html.escape(value)}</code></dd>")
    parts.append("</dl></details>")
    return parts
