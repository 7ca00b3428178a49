# SPDX-License-Identifier: Apache-2.0
"""One HTML file with all tables and figures of a report inside, readable without a network."""

import base64
import html
import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.reporting.rendering import web
from experiments.reporting.tables import Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
table { display: block; overflow-x: auto; }
thead th { border-bottom: 2px solid #444; text-align: left; }
td, th { padding: .2em .9em .2em 0; white-space: nowrap; }
tbody tr:nth-child(even) { background: #f6f6f6; }
.note { color: #555; margin: .2em 0; font-size: 13px; }
img { max-width: 100%; margin: .5em 1em .5em 0; }
dd { margin: 0 0 .5em 1em; } code { font-size: 12px; overflow-wrap: anywhere; }
"""


def page(title: str, parts: Sequence[tuple[Table, dict[str, Figure]]]) -> str:
    """Returns the whole page.

    Args:
      title: of the page.
      parts: a table and its figures for every data set.
    """
    body = []
    for table, figures in parts:
        body.append(f"<h2>{html.escape(table.name)}</h2>\n{web(table)}")
        for name, figure in figures.items():
            caption = html.escape(f"{table.name}: {name.replace('_', ' ')}")
            body.append(f'<img alt="{caption}" title="{caption}" src="data:image/png;base64,{_png(figure)}">')
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()
