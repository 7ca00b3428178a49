# SPDX-License-Identifier: Apache-2.0
"""Generated tables in documents, between `<!-- cite: ... -->` and `<!-- end -->`.

<!-- cite: results ml_1m/ml-1m.csv ndcg@10 hr@10 -->     our rows, from the CSV of a report <!--
cite: published ml-1m full leave_one_out hr@10 -->   published rows, from experiments/published.json
<!-- cite: table benchmarks/catalogue.json -->           {"columns": [...], "rows": [[...]]},
written by a benchmark
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bert4rec_jax.errors import UserError
from experiments.citing.sources import shown
from experiments.reporting import published

_BLOCK = re.compile(r"(<!-- cite: (?P<source>[^>]+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Yields the positions of generated tables."""
    for match in _BLOCK.finditer(text):
        yield match.span()


def write(text: str, root: Path) -> tuple[list[str], str]:
    """Returns the problems of the blocks, and the text with every table regenerated."""
    problems: list[str] = []

    def one(match: re.Match) -> str:
        try:
            return f"{match[1]}{_table(match['source'].split(), root)}{match[4]}"
        except UserError as error:
            problems.append(f"<!-- cite: {match['source']} -->: {error}")
            return match[0]

    return problems, _BLOCK.sub(one, text)


def _table(words: Sequence[str], root: Path) -> str:
    if words[0] == "results" and len(words) > 2:
        return _results(root / words[1], words[2:])
    if words[0] == "table" and len(words) == 2:
        return _file(root / words[1])
    if words[0] == "published" and len(words) > 4:
        return _published(*words[1:4], words[4:])
    raise UserError(
        "must be `results FILE.csv METRIC...`, `table FILE.json` or "
        "`published DATA CANDIDATES SPLIT METRIC...`."
    )


def _results(file: Path, metrics: Sequence[str]) -> str:
    if not file.is_file():
        raise UserError(f"{file} does not exist.")
    with file.open(newline="") as text:
        lines = {(line["model"], line["metric"]): line for line in csv.DictReader(text)}
    models = list(dict.fromkeys(model for model, _ in lines))
    body = []
    for model in models:
        cells = []
        for metric in metrics:
            if (model, metric) not in lines:
                raise UserError(f"{file.name} does not contain {metric} for {model}.")
            line = lines[model, metric]
            errors = (
                f" ±{shown(float(line[key]), '.4')}<sup>{kind}</sup>"
                for key, kind in (("se", "s"), ("users_se", "u"))
                if line[key]
            )
            cells.append(
                (shown(float(line["mean"]), ".4") if line["mean"] else "-") + "".join(errors)
            )
        body.append(
            [
                model,
                str(len(lines[model, metrics[0]]["seeds"].split())) if line["seeds"] else "-",
                *cells,
            ]
        )
    return _markdown(["model", "seeds", *metrics], body)


def _file(file: Path) -> str:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return _markdown(
            content["columns"], [[str(cell) for cell in row] for row in content["rows"]]
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} is not a table with columns and rows: {error}.") from None


def _published(data: str, candidates: str, split: str, metrics: Sequence[str]) -> str:
    rows = [
        row
        for row in published.load()
        if data in row.data and (row.candidates, row.split) == (candidates, split)
    ]
    if not rows:
        raise UserError(
            f"published rows are missing for {data} with candidates {candidates} and split {split}."
        )
    header, body, notes = published.lettered(rows, metrics)
    return _markdown(header, body) + "\n" + "".join(f"- {note}\n" for note in notes)


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, *body)]
    return "\n".join([lines[0], "|" + " --- |" * len(header), *lines[1:]]) + "\n"
