# SPDX-License-Identifier: Apache-2.0
"""One HTML file with all tables and figures of a report, readable without a network."""

import html
from collections.abc import Sequence

from bert4rec_jax.portrait import html_report
from experiments.reporting.figures import Drawn
from experiments.reporting.tables import Table
from experiments.reporting.writing import grids

_MARKS = grids.Marks("<b>{}</b>", "<u>{}</u>", "<sup>{}</sup>")


def page(title: str, parts: Sequence[tuple[Table, dict[str, Drawn]]]) -> str:
    """Returns the whole page.

    Args:
      title: of the page.
      parts: a table and its figures for every data set.
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
    main = grids.main(table, _MARKS, html.escape)
    parts = [html_report.table(main.header, main.body)]
    parts += [html_report.note(note) for note in table.notes]
    for grid in grids.others(table):
        body = [[html.escape(cell) for cell in row] for row in grid.body]
        parts.append(html_report.note(grid.caption))
        parts.append(html_report.table(grid.header, body))
        parts += [html_report.note(note) for note in grid.notes]
    return [*parts, _reproducibility(table)]


def _reproducibility(table: Table) -> str:
    entries = "".join(
        f"<dt>{html.escape(name)}</dt><dd><code>{html.escape(value)}</code></dd>\n"
        for name, value in table.reproducibility
    )
    return f"<details><summary>Reproducibility</summary><dl>\n{entries}</dl></details>"
