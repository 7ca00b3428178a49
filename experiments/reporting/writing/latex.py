# SPDX-License-Identifier: Apache-2.0
"""A table as LaTeX floats; they need only the package booktabs."""

import re

from experiments.reporting.tables import Table
from experiments.reporting.writing import grids

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "`": "`{}",
}
# The share of the line for a column; the others are as wide as their text.
_WIDTHS = {"model": 0.15, "published model": 0.3, "chosen on": 0.15}
# Shorter names; the captions explain them.
_NAMES = {"seeds": "n", "difference": "diff.", "se users": "se u", "se seeds": "se s"}
_MARKS = grids.Marks(r"\textbf{{{}}}", r"\underline{{{}}}", r"\textsuperscript{{{}}}")


def latex(table: Table) -> str:
    """Returns the table and the grids below it as one float each,
    with the commands that reproduce them in comments.
    """
    label = "tab:" + re.sub(r"[^a-z0-9]+", "-", table.name.lower()).strip("-")
    lines = [f"% {what}: {value}" for what, value in table.reproducibility]
    lines += _float(grids.main(table, _MARKS, _escape), label)
    for grid in grids.others(table):
        kind = re.sub(r"[^a-z]+", "", grid.caption.split()[0].lower())
        body = [[_escape(cell) for cell in row] for row in grid.body]
        whole = grids.Grid(f"{table.name}. {grid.caption}", grid.header, body, grid.notes)
        lines += ["", *_float(whole, f"{label}-{kind}")]
    return "\n".join(lines) + "\n"


def _float(grid: grids.Grid, label: str) -> list[str]:
    """Returns a float; the cells of the grid's body are LaTeX already."""
    widths = [_WIDTHS.get(name) for name in grid.header]
    body = [
        [
            cell if w is None else r"\raggedright " + cell
            for cell, w in zip([row[0], *map(_narrow, row[1:])], widths)
        ]
        for row in grid.body
    ]
    return [
        r"\begin{table}[tp]",
        r"\centering",
        r"\caption{" + _escape(grid.caption) + "}",
        r"\label{" + label + "}",
        # Three metrics fit into the text width of an article; resizing would need another package.
        r"\scriptsize",
        r"\setlength{\tabcolsep}{1.8pt}",
        r"\begin{tabular}{"
        + "".join("l" if w is None else rf"p{{{w}\linewidth}}" for w in widths)
        + "}",
        r"\toprule",
        # Not \\, because \raggedright redefines it.
        " & ".join(_escape(_NAMES.get(name, name)) for name in grid.header) + r" \tabularnewline",
        r"\midrule",
        *(" & ".join(row) + r" \tabularnewline" for row in body),
        r"\bottomrule",
        r"\end{tabular}",
        *(r"\par\smallskip\raggedright " + _escape(note) for note in grid.notes),
        r"\end{table}",
    ]


def _narrow(cell: str) -> str:
    """Omits the zero before the decimal point, as papers in this field do."""
    return re.sub(r"(?<![\d.])0(?=\.\d)", "", cell)


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text)
