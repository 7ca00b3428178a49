# SPDX-License-Identifier: Apache-2.0
"""A number out of a record: `test/ndcg@10 mean .4 from ml_1m/runs/seed_*`.

PATH REDUCTION FORMAT, and `from SOURCE` where it is not the citation's own. SOURCE, below
experiments/results, is a pattern of run directories, or a .json or .csv file (of a report:
MODEL/METRIC/COLUMN); `published` is experiments/published.json (ID/METRIC). PATH leads through the
JSON, its parts separated by `/`; of a run it begins in results.json, config/ and environment/ are
the other files, curve/valid/STEP/ the lines of metrics.jsonl.
"""

import csv
import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from bert4rec_jax.errors import UserError
from bert4rec_jax.ranking.metrics import per_user
from experiments.reporting import published
from experiments.reporting.records import CHECKOUT, Run
from experiments.reporting.statistics import users_error

RESULTS = CHECKOUT / "experiments" / "results"
_SPEC = re.compile(r"(?P<path>.+?) (?P<reduction>\S+) (?P<format>\S+)(?: from (?P<source>.+))?")
_FORMAT = re.compile(r"(?P<sign>\+?)(?P<kind>0?\.|,|%?)(?P<digits>\d*)")
REDUCTIONS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": np.mean,
    "sd": lambda values: np.std(values, ddof=1),
    "se": lambda values: np.std(values, ddof=1) / np.sqrt(len(values)),
    "min": np.min,
    "max": np.max,
    "sum": np.sum,
    "count": len,
}


def derive(spec: str, source: str, root: Path = RESULTS) -> str:
    """Returns a number as printed text.

    Args:
      spec: PATH REDUCTION FORMAT [from SOURCE]. The reduction is over the runs of a pattern: `one`
        (there is one), mean, sd, se (of the mean), min, max, sum, count, or `users`, the standard
        error over users of one run. The format: `.4` digits without, `0.4` with a zero before the
        point; `1` decimals; `,` thousands; `%1` percent; `+` first for a sign; `text` as it stands.
      source: default source of the citation.
      root: folder of the records.

    Raises:
      UserError: the number cannot be derived; the message contains the wrong part.
    """
    match = _SPEC.fullmatch(spec)
    if not match:
        raise UserError(f"{spec!r} must look like 'test/ndcg@10 mean .4'.")
    found = _open(match["source"] or source, str(root))
    values = [_take(content, match["path"], where) for where, content in found]
    if match["format"] == "text":
        return str(_only(values, spec))
    if match["reduction"] == "one":
        value = _only(values, spec)
    elif match["reduction"] == "users":
        value = users_error(
            np.stack([_by_user(content, match["path"], where) for where, content in found], axis=1)
        )
    elif match["reduction"] in REDUCTIONS:
        value = REDUCTIONS[match["reduction"]](np.array(values))
    else:
        raise UserError(
            f"{spec!r}: {match['reduction']!r} is not a reduction; use one, users, "
            f"{', '.join(REDUCTIONS)}."
        )
    return shown(float(value), match["format"])


def shown(value: float, form: str) -> str:
    """Returns a number in a format of `derive`."""
    match = _FORMAT.fullmatch(form)
    if not match:
        raise UserError(
            f"{form!r} is not a format; use .4, 0.4, 1, ',', %1, with + before it for a sign, or "
            "text."
        )
    digits = int(match["digits"] or 0)
    value *= 100 if match["kind"] == "%" else 1
    text = f"{value:{match['sign']}{',' if match['kind'] == ',' else ''}.{digits}f}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text) if match["kind"] == "." else text


@lru_cache
def _open(source: str, root: str) -> list[tuple[str, dict]]:
    """Returns (name, content) of every file or run of a source."""
    if source == "published":
        return [
            (
                published.FILE.name,
                {row.id: row.metrics | {"model": row.model} for row in published.load()},
            )
        ]
    paths = sorted(Path(root).glob(source))
    if not paths:
        raise UserError(f"experiments/results/{source} does not exist.")
    return [(str(path), _content(path)) for path in paths]


def _content(path: Path) -> dict:
    if path.suffix == ".csv":
        content: dict = {}
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                content.setdefault(line["model"], {})[line["metric"]] = {
                    k: _number(v) for k, v in line.items()
                }
        return content
    if path.suffix == ".json":
        return json.loads(path.read_text())
    run = Run(path)
    curve: dict = {}
    for line in run.curve:
        curve.setdefault(line["split"], {})[str(line["step"])] = line
    return run.results | {
        "config": run.config,
        "environment": run.environment,
        "curve": curve,
        "run": run,
    }


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _take(content: dict | list, path: str, where: str):
    for part in path.split("/"):
        if isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, dict) and part in content:
            content = content[part]
        else:
            known = ", ".join(content) if isinstance(content, dict) else "no parts of that name"
            raise UserError(f"{where} does not contain {path!r}: at {part!r} it has {known}.")
    if isinstance(content, str):  # published values keep their printed digits
        content = _number(content)
    return content


def _by_user(content: dict, path: str, where: str) -> np.ndarray:
    *model, split, metric = path.split("/")
    if split != "test" or "run" not in content:
        raise UserError(
            f"{where}: the error over users exists only for test metrics of runs, not for {path!r}."
        )
    return per_user(metric, content["run"].ranks[f"{model[1]}_rank" if model else "rank"])


def _only(values: list, spec: str):
    if len(values) != 1:
        raise UserError(
            f"{spec!r} needs one run, but its source has {len(values)}; use mean, min, max ..."
        )
    return values[0]
