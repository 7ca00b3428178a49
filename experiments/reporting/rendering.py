# SPDX-License-Identifier: Apache-2.0
"""Writes a table as Markdown, LaTeX, CSV or HTML, and checks a Markdown table against its records."""

import csv
import html
import io
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from bert4rec_jax.errors import UserError
from experiments.reporting.records import Run, by_dataset, find
from experiments.reporting.tables import Cell, Comparison, Table, build, dump_options, load_options, verify

_TAG = re.compile(r"<!-- report of (\[.*?\]) with (\{.*?\}) -->")
_LATEX = {
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
}

_LATEX_NAMES = r"p{0.25\linewidth}"  # names are long, and may break


def markdown(table: Table, runs: Sequence[Run], folder: Path) -> str:
    """Returns the table as Markdown, with what `check` needs in a comment.

    Args:
      table: the table.
      runs: its records.
      folder: where the text will be kept; paths of records are relative to it.
    """
    lines = [f"### {table.name}", "", *_markdown_grid(*_main_grid(table, _markdown_cell)), ""]
    lines += [f"{note}  " for note in table.notes]
    if table.comparisons:
        lines += [
            "",
            f"Differences from {table.options.baseline}, p-values after Holm's correction:",
            "",
            *_markdown_grid(*_comparison_grid(table)),
        ]
    lines += ["", "<details><summary>Reproducibility</summary>", ""]
    lines += [f"- {what}: `{value}`" for what, value in table.reproducibility]
    places = [Path(os.path.relpath(run.path, folder)).as_posix() for run in runs]
    lines += [
        "",
        "</details>",
        "",
        f"<!-- report of {json.dumps(places)} with {dump_options(table.options)} -->",
        "",
    ]
    return "\n".join(lines)


def latex(table: Table) -> str:
    """Returns the table as LaTeX floats; they need the package booktabs alone."""
    label = re.sub(r"[^a-z0-9]+", "-", table.name.lower()).strip("-")
    header, body = _main_grid(table, _latex_cell)
    lines = [f"% {what}: {value}" for what, value in table.reproducibility]
    caption = " ".join(_escape(note) for note in table.notes)
    # Rows hold LaTeX already in their number cells; names and headers do not.
    rows = [[_escape(row[0]), row[1], *row[2:]] for row in body]
    lines += _latex_float(
        [_escape(cell) for cell in header],
        rows,
        _LATEX_NAMES + "r" + "l" * len(table.options.metrics),
        caption,
        f"tab:{label}",
    )
    if table.comparisons:
        header, body = _comparison_grid(table)
        caption = _escape(f"{table.name}: differences from {table.options.baseline} over users. {table.notes[-1]}")
        lines += [
            "",
            *_latex_float(
                [_escape(cell) for cell in header],
                [[_escape(c) for c in row] for row in body],
                _LATEX_NAMES + "lrlrr",
                caption,
                f"tab:{label}-differences",
            ),
        ]
    return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """Returns one line per row and metric, unrounded, with what it takes to reproduce it."""
    facts = dict(table.reproducibility)
    comparisons = {(c.row, c.metric): c for c in table.comparisons}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "dataset",
            "split",
            "model",
            "metric",
            "mean",
            "sd",
            "se",
            "seeds",
            "place",
            "baseline",
            "difference",
            "low",
            "high",
            "p_t",
            "p_bootstrap",
            "protocol",
            "command",
            "commit",
            "versions",
            "devices",
            "data_fingerprint",
            "device_hours",
        ]
    )
    for row, cells in zip(table.rows, table.cells):
        hours = "" if row.baseline else f"{sum(run.device_hours for run in row.runs):.4f}"
        for metric, cell in zip(table.options.metrics, cells):
            c = comparisons.get((row.name, metric))
            against = [table.options.baseline, c.difference, c.low, c.high, c.p_t, c.p_bootstrap] if c else [""] * 6
            writer.writerow(
                [
                    table.name,
                    table.options.split,
                    row.name,
                    metric,
                    *("" if math.isnan(x) else x for x in (cell.mean, cell.sd, cell.se)),
                    " ".join(str(run.seed) for run in row.runs),
                    cell.place or "",
                    *against,
                    facts["protocol"],
                    facts.get(row.name, ""),
                    facts["commit"],
                    facts["versions"],
                    facts["devices"],
                    facts["data fingerprint"],
                    hours,
                ]
            )
    return text.getvalue()


def web(table: Table) -> str:
    """Returns the table as a fragment of HTML."""

    def grid(header: list[str], body: list[list[str]]) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in body)
        return f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>\n"

    header, body = _main_grid(table, _web_cell)
    text = grid(header, [[html.escape(row[0]), *row[1:]] for row in body])
    text += "".join(f"<p class='note'>{html.escape(note)}</p>\n" for note in table.notes)
    if table.comparisons:
        header, body = _comparison_grid(table)
        text += f"<h3>Differences from {html.escape(table.options.baseline)}</h3>\n" + grid(
            header, [[html.escape(cell) for cell in row] for row in body]
        )
    facts = "".join(
        f"<dt>{html.escape(what)}</dt><dd><code>{html.escape(value)}</code></dd>\n"
        for what, value in table.reproducibility
    )
    return text + f"<details><summary>Reproducibility</summary><dl>\n{facts}</dl></details>\n"


def check(file: Path, paths: Sequence[str]) -> list[str]:
    """Derives every line of a Markdown table again from its records.

    Args:
      file: text with one or more tables, as `markdown` writes them.
      paths: folders of the records; none: those that the table names, relative to itself.

    Returns:
      What differs, a sentence each; empty where the tables are right.

    Raises:
      UserError: the file holds no table, or records are missing or contradict themselves.
    """
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    tags = list(_TAG.finditer(text))
    if not tags:
        raise UserError(f"{file} holds no table of this program: the comment with its options is missing.")
    problems, begin = [], 0
    for tag in tags:
        part = text[begin : tag.start()]
        begin = tag.end()
        name = re.search(r"^### (.+)$", part, re.MULTILINE)
        runs, _ = find(paths or [str(file.parent / place) for place in json.loads(tag[1])])
        groups = by_dataset(runs)
        if name is None or name[1] not in groups:
            raise UserError(
                f"{file}: no record is about {name[1] if name else 'a table without a heading'!r}; "
                f"the records are about {', '.join(groups)}."
            )
        verify(groups[name[1]])
        table = build(name[1], groups[name[1]], load_options(tag[2]))
        derived = markdown(table, groups[name[1]], file.parent)
        derived = derived[: _TAG.search(derived).start()]
        problems += _differences(part[name.start() :], derived)
    return problems


def _differences(committed: str, derived: str) -> list[str]:
    """Compares two Markdown texts line by line, and tables cell by cell."""
    mine, theirs = committed.rstrip().split("\n"), derived.rstrip().split("\n")
    problems, header = [], []
    if len(mine) != len(theirs):
        problems.append(f"the table has {len(mine)} lines, the records give {len(theirs)}")
    for old, new in zip(mine, theirs):
        cells, expected = _split(old), _split(new)
        header = (header or expected) if expected else []
        if old == new:
            continue
        if expected and len(cells) == len(expected):
            problems += [
                f"row {expected[0]!r}, column {header[i]!r}: the table says {a!r}, the records give {b!r}"
                for i, (a, b) in enumerate(zip(cells, expected))
                if a != b
            ]
        else:
            problems.append(f"the table says {old!r}, the records give {new!r}")
    return problems


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []


def _main_grid(table: Table, cell_text) -> tuple[list[str], list[list[str]]]:
    body = [
        [row.name, str(len(row.runs)), *(cell_text(cell, table) for cell in cells)]
        for row, cells in zip(table.rows, table.cells)
    ]
    return ["model", "seeds", *table.options.metrics], body


def _comparison_grid(table: Table) -> tuple[list[str], list[list[str]]]:
    digits = table.options.digits + 1

    def line(c: Comparison) -> list[str]:
        return [
            c.row,
            c.metric,
            f"{c.difference:+.{digits}f}",
            f"[{c.low:+.{digits}f}, {c.high:+.{digits}f}]",
            _p(c.p_t),
            _p(c.p_bootstrap),
        ]

    return (
        ["model", "metric", "difference", "95 % interval", "p t-test", "p bootstrap"],
        [line(c) for c in table.comparisons],
    )


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else f"{value:.0e}"


def _parts(cell: Cell, table: Table) -> tuple[str, str, str]:
    """Returns (mean, spread, mark) as plain text."""
    deviation = getattr(cell, table.options.spread)
    digits = table.options.digits
    if math.isnan(cell.mean):
        return "-", "", ""
    return (
        f"{cell.mean:.{digits}f}",
        # Popularity does not depend on a seed, and a spread of zero would look like a result.
        "" if math.isnan(deviation) or deviation == 0 else f" ± {deviation:.{digits}f}",
        " †" if cell.significant else "",
    )


def _markdown_cell(cell: Cell, table: Table) -> str:
    mean, deviation, mark = _parts(cell, table)
    return {0: "{}", 1: "**{}**", 2: "<u>{}</u>"}[cell.place].format(mean) + deviation + mark


def _web_cell(cell: Cell, table: Table) -> str:
    mean, deviation, mark = _parts(cell, table)
    return {0: "{}", 1: "<b>{}</b>", 2: "<u>{}</u>"}[cell.place].format(mean) + deviation + mark


def _latex_cell(cell: Cell, table: Table) -> str:
    mean, deviation, mark = _parts(cell, table)
    return (
        {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}[cell.place].format(mean)
        + _escape(deviation)
        + _escape(mark.strip())
    )


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _markdown_grid(header: list[str], body: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in [header, *body]]
    return [lines[0], "|" + " --- |" * len(header), *lines[1:]]


def _latex_float(header: list[str], body: list[list[str]], columns: str, caption: str, label: str) -> list[str]:
    return [
        r"\begin{table}[t]",
        r"\centering",
        r"\caption{" + caption + "}",
        r"\label{" + label + "}",
        # So that three metrics fit into the text width of an article; resizing would need another package.
        r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        r"\begin{tabular}{" + columns + "}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
