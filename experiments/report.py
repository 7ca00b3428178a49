# SPDX-License-Identifier: Apache-2.0
"""Creates the tables and figures of a paper from run directories.

Print a table as Markdown, write it in all formats with figures, or write records to commit:

  python -m experiments.report sweeps/example --baseline popular
  python -m experiments.report sweeps/example --baseline popular --out report
  python -m experiments.report sweeps/example --records experiments/results/example

Check that the numbers of a table follow from its records:

  python -m experiments.report --check experiments/results/ml_100k/ml-100k.md

Each argument is a run directory or a folder of run directories, such as the --root of a sweep. Runs
that differ only in their seed become one row. --check derives the table again, together with the
.tex and .csv next to it, and checks that this version reads each record's config.json in the same
way as the version that wrote it.

Exit code: 0; 1 if --check finds a number that does not follow from the records; 2 for wrong usage.
"""

import re
import sys
from pathlib import Path

from absl import flags

from bert4rec_jax.command_line import run_command
from bert4rec_jax.errors import UserError
from experiments.reporting import checking, records, tables, writing
from experiments.reporting.comparisons import PER_USER

FORMATS = {"markdown": "md", "latex": "tex", "csv": "csv", "html": "html"}

FORMAT = flags.DEFINE_list(
    "format", None, "Formats: markdown, latex, csv, html. Default: markdown; with --out, all."
)
OUT = flags.DEFINE_string(
    "out", "", "Folder for the tables and figures. Without it, the tables are printed."
)
METRICS = flags.DEFINE_list(
    "metrics",
    ["ndcg@10", "hr@10", "mrr"],
    "Columns. The first accuracy metric is used in the figures.",
)
SPLIT = flags.DEFINE_enum("split", "test", ["test", "valid"], "Which users' metrics.")
BASELINE = flags.DEFINE_string("baseline", "", "Row to compare all others with, user by user.")
SPREAD = flags.DEFINE_enum(
    "spread",
    "se",
    ["sd", "se"],
    "Error over seeds: standard deviation or standard error of the mean.",
)
ALPHA = flags.DEFINE_float("alpha", 0.05, "Level of significance.", lower_bound=0, upper_bound=1)
RESAMPLES = flags.DEFINE_integer(
    "resamples", 10_000, "Number of bootstrap resamples.", lower_bound=100
)
MARGIN = flags.DEFINE_float(
    "margin",
    0.05,
    "Largest difference from --baseline that counts as equal, as a share of its value.",
    lower_bound=0,
)
DIGITS = flags.DEFINE_integer("digits", 4, "Number of decimals.", lower_bound=1, upper_bound=8)
FIGURES = flags.DEFINE_bool("figures", True, "With --out: draw the figures as PDF and PNG.")
CHECK = flags.DEFINE_string(
    "check",
    "",
    "Markdown file with tables to derive again. Arguments are folders of records; default: the "
    "folders named in the file.",
)
RECORDS = flags.DEFINE_string(
    "records", "", "Copy the runs' records here, without checkpoints, data and host names."
)


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    paths = argv[1:]
    if CHECK.value:
        return _check(Path(CHECK.value), paths)
    if not paths:
        raise UserError(
            "give at least one run directory, or a folder that contains some; see --help."
        )
    runs, unfinished = records.find(paths)
    for folder in unfinished:
        print(f"left out, not finished: {folder}", file=sys.stderr)
    if RECORDS.value:
        made = records.export(runs, Path(RECORDS.value))
        print(f"copied the records of {len(made)} runs to {RECORDS.value}")
        return 0
    formats = FORMAT.value or (list(FORMATS) if OUT.value else ["markdown"])
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format {name!r} is not one of {', '.join(FORMATS)}.")
    options = tables.Options(
        metrics=tuple(METRICS.value),
        split=SPLIT.value,
        baseline=BASELINE.value,
        spread=SPREAD.value,
        alpha=ALPHA.value,
        resamples=RESAMPLES.value,
        digits=DIGITS.value,
        margin=MARGIN.value,
    )
    groups = records.by_dataset(runs)
    built = {name: tables.build(name, group, options) for name, group in groups.items()}
    if OUT.value:
        return _write(Path(OUT.value), formats, groups, built)
    if len(formats) > 1 or formats == ["html"]:
        raise UserError("several formats, or html, require --out.")
    for name, table in built.items():
        print(_render(formats[0], table, groups[name], Path()))
    return 0


def _render(kind: str, table: tables.Table, runs: list[records.Run], folder: Path) -> str:
    if kind == "markdown":
        return writing.markdown(table, runs, folder)
    return {"latex": writing.latex, "csv": writing.comma_separated}[kind](table)


def _write(folder: Path, formats: list[str], groups: dict, built: dict[str, tables.Table]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    parts = []
    for name, table in built.items():
        prefix = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        for kind in formats:
            if kind != "html":
                path = folder / f"{prefix}.{FORMATS[kind]}"
                path.write_text(_render(kind, table, groups[name], folder))
                written.append(path)
        drawn = {}
        if FIGURES.value:
            # Here, because matplotlib takes a second to import.
            from experiments.reporting import plots

            drawn = plots.draw_all(
                name, table.rows, _figure_metric(), table.options.baseline, SPREAD.value
            )
            written += plots.save(drawn, folder, prefix)
        parts.append((table, drawn))
    if "html" in formats:
        from experiments.reporting.writing import web

        path = folder / "report.html"
        path.write_text(web.page(f"Report on {', '.join(built)}", parts))
        written.append(path)
    print(*written, sep="\n")
    return 0


def _figure_metric() -> str:
    """Returns the first metric that exists per user; the figures by group need one."""
    return next((name for name in METRICS.value if PER_USER.fullmatch(name)), "ndcg@10")


def _check(file: Path, paths: list[str]) -> int:
    problems = checking.check(file, paths)
    for problem in problems:
        print(f"{file}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{file}: every number follows from the records, and this version can reproduce them")
    return 1 if problems else 0


if __name__ == "__main__":
    run_command(main)
