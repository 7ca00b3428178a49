# SPDX-License-Identifier: Apache-2.0
"""One HTML page of figures and tables; everything is inside the file."""

import base64
import html

from bert4rec_jax.files import replacing

_STYLE = """
:root{color-scheme:light dark;--page:#f5f5f8;--card:#fff;--ink:#1c1d29;--soft:#646778;--line:#e3e4ec}
@media(prefers-color-scheme:dark){:root{--page:#12131a;--card:#1b1d27;--ink:#ececf4;--soft:#a0a4b8;--line:#2d303f}}
body{margin:0 auto;max-width:70rem;padding:1.5rem 1rem 3rem;background:var(--page);color:var(--ink);
 font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:0 0 .6rem}p{margin:.3rem 0 .8rem}.soft{color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:1.2rem;
 margin:1.1rem 0;overflow-x:auto}
img{max-width:100%;background:#fff;border-radius:8px;display:block}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600}.two{display:grid;grid-template-columns:1fr 1fr;gap:1.1rem}.two section{margin:0}
@media(max-width:50rem){.two{grid-template-columns:1fr}}
"""


class Sheet:
    """A page in the making."""

    def __init__(self, title: str, below: str):
        """Begins with a title and what stands below it."""
        self._title, self._below, self._parts = title, below, []

    def section(self, title: str, note: str, *parts: str) -> None:
        """Adds a section; `parts` are what `image` and `table` return."""
        head = f"<h2>{html.escape(title)}</h2><p class=soft>{html.escape(note)}</p>"
        self._parts.append(f"<section>{head}{''.join(parts)}</section>")

    def write(self, path: str) -> None:
        """Writes the page."""
        with replacing(path) as file:
            file.write(
                "<!doctype html><html lang=en><meta charset=utf-8>"
                "<meta name=viewport content='width=device-width,initial-scale=1'>"
                "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; "
                "style-src 'unsafe-inline'\">"
                f"<title>{html.escape(self._title)}</title><style>{_STYLE}</style>"
                f"<h1>{html.escape(self._title)}</h1><p class=soft>{html.escape(self._below)}</p>"
                + "".join(self._parts)
                + "</html>\n"
            )


def image(path: str, description: str) -> str:
    """Returns a PNG as part of a page."""
    with open(path, "rb") as file:
        data = base64.b64encode(file.read()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


def table(head: list[str], rows: list[list]) -> str:
    """Returns a table; cells are escaped, those of several lines keep them."""
    cell = lambda value: html.escape(str(value)).replace("\n", "<br>")  # noqa: E731
    lines = ["".join(f"<th>{cell(x)}</th>" for x in head)]
    lines += ["".join(f"<td>{cell(x)}</td>" for x in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
