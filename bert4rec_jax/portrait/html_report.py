# SPDX-License-Identifier: Apache-2.0
"""HTML pages of tables and figures in a single file, readable without a network."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f5f5f8; --card: #fff; --ink: #1c1d29; --soft: #646778; --line: #e3e4ec;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #12131a; --card: #1b1d27; --ink: #ececf4; --soft: #a0a4b8; --line: #2d303f; }
}
body {
  margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 3rem;
  background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 0 0 .6rem; }
p { margin: .3rem 0 .8rem; }
.note, figcaption { color: var(--soft); }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 1.2rem; margin: 1.1rem 0; overflow-x: auto;
}
figure { margin: 1rem 0; }
img { max-width: 100%; background: #fff; border-radius: 8px; display: block; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td {
  text-align: left; vertical-align: top;
  padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
}
th { color: var(--soft); font-weight: 600; }
dd { margin: 0 0 .5em 1em; }
code { font-size: 12px; overflow-wrap: anywhere; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Returns a whole page; `parts` are results of the other functions."""
    body = "\n".join(parts)
    return _PAGE.format(policy=_POLICY, title=html.escape(title), style=_STYLE, body=body)


def section(title: str, *parts: str) -> str:
    """Returns parts under a heading."""
    body = "\n".join(parts)
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{body}\n</section>"


def note(content: str) -> str:
    """Returns a paragraph of text."""
    return f'<p class="note">{html.escape(content)}</p>'


def text(value: object) -> str:
    """Returns the content of a table cell for any value; line breaks are kept."""
    return html.escape(str(value)).replace("\n", "<br>")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table with headings of plain text and cells of HTML, as `text` returns."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def image(figure: Figure, description: str, caption: str = "") -> str:
    """Returns a figure as an embedded PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    data = base64.b64encode(buffer.getvalue()).decode()
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    source = f"data:image/png;base64,{data}"
    return f'<figure><img alt="{html.escape(description)}" src="{source}">{below}</figure>'
