# SPDX-License-Identifier: Apache-2.0
"""Derives committed tables from their records again, and checks the records themselves."""

import functools
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from bert4rec_jax.command_line import flag
from bert4rec_jax.config import (
    NOT_IDENTITY,
    Config,
    ModelConfig,
    parse_flags,
    read,
    resolve,
    shipped,
    split_arguments,
    with_fields,
)
from bert4rec_jax.config.renamed import NEW_FIELDS
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import init_params
from bert4rec_jax.ranking.metrics import from_ranks
from experiments.reporting.records import Run, by_dataset, find, flatten
from experiments.reporting.tables import Table, build, load_options
from experiments.reporting.writing import comma_separated, latex, markdown
from experiments.reporting.writing.markdown import TAG


def check(file: Path, paths: Sequence[str]) -> list[str]:
    """Derives a Markdown table, its .tex and .csv, and the numbers of every record again.

    Args:
      file: Markdown file with one or more tables of `markdown`.
      paths: folders of the records; if empty, those in the table's comment, relative to the file.

    Returns:
      The problems, one sentence each; empty if the tables are right and this version can
      reproduce the records.

    Raises:
      UserError: the file contains no table, or records are missing or damaged.
    """
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    tags = list(TAG.finditer(text))
    if not tags:
        raise UserError(
            f"{file} does not contain a generated table: the comment with its options is missing."
        )
    problems: list[str] = []
    begin = 0
    for tag in tags:
        part = text[begin : tag.start()]
        begin = tag.end()
        name = re.search(r"^### (.+)$", part, re.MULTILINE)
        runs, _ = find(paths or [str(file.parent / place) for place in json.loads(tag[1])])
        groups = by_dataset(runs)
        if name is None or name[1] not in groups:
            title = name[1] if name else "a table without a heading"
            raise UserError(
                f"{file}: the record for {title!r} is missing; there are records for "
                f"{', '.join(groups)}."
            )
        group = groups[name[1]]
        problems += check_records(group)
        try:
            table = build(name[1], group, load_options(tag[2]))
            derived = markdown(table, group, file.parent)
            derived_part = derived[: TAG.search(derived).start()]
            problems += _differences(part[name.start() :], derived_part)
            problems += _other_formats(file, table)
        except (UserError, TypeError, KeyError) as error:
            # The last two: options or records of another version.
            problems.append(f"the table cannot be derived: {error}")
    return problems


def check_records(runs: Sequence[Run]) -> list[str]:
    """Returns the differences between records and the runs that their configs describe today."""
    return [f"{run.path}: {problem}" for run in runs for problem in _problems(run)]


def _problems(run: Run) -> Iterator[str]:
    try:
        config = resolve(run.config)
    except UserError as error:
        yield f"this version rejects its config.json: {error}"
    else:
        yield from _missing_fields(run, config)
        if run.results["seed"] != config.seed:
            yield f"results.json has seed {run.results['seed']}, config.json has seed {config.seed}"
        if run.results["steps"] > config.train.steps:
            steps = run.results["steps"]
            yield f"results.json has {steps} steps, config.json has {config.train.steps}"
        if run.results["model"] != config.model_name:
            name = run.results["model"]
            yield f"results.json has the model name {name!r}, this version {config.model_name!r}"
        count = parameters(config.model, run.dataset["items"], run.dataset.get("features", 0))
        if run.results["parameters"] != count:
            recorded = run.results["parameters"]
            yield f"results.json has {recorded:,} parameters, the config's model has {count:,}"
    try:
        for start in run.starts:
            if start["git_commit"] is None or start["git_dirty"]:
                yield f"it was started at {start['started']} with files that were not committed"
        yield from _command(run)
    except UserError as error:
        yield str(error).removeprefix(f"{run.path}/")
    yield from _numbers(run)
    yield from _curve(run)


def _missing_fields(run: Run, config: Config) -> Iterator[str]:
    recorded_fields = flatten(run.config)
    for name, value in flatten(config.to_dict()).items():
        if name in recorded_fields or name in NEW_FIELDS or name.startswith(NOT_IDENTITY):
            continue
        yield f"its config.json lacks config.{name}, which is {value!r} in this version"


@functools.cache
def parameters(config: ModelConfig, num_items: int, num_features: int = 0) -> int:
    """Returns the number of parameters of a model."""
    init = functools.partial(init_params, config, num_items, num_features=num_features)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def _command(run: Run) -> Iterator[str]:
    """Compares config.json with the result of its command today, if that used a shipped config."""
    command = run.starts[0]["command"]
    name, colon, variant = Path(flag(command, "config")).name.partition(":")
    path = shipped().get(name.removesuffix(".py"))
    if path is None:
        return
    overrides = parse_flags(split_arguments(command)[0])
    values = with_fields(read(path + colon + variant), overrides)
    today = flatten(resolve(values).to_dict())
    recorded = flatten(run.config)
    for field in today.keys() & recorded.keys():
        if today[field] != recorded[field] and not field.startswith(NOT_IDENTITY):
            yield (
                f"its command with today's configs/{name} sets config.{field} = {today[field]!r}, "
                f"its config.json has {recorded[field]!r}"
            )


def _curve(run: Run) -> Iterator[str]:
    """Compares results.json with metrics.jsonl: best step, validation metrics and seconds."""
    valid = {line["step"]: line for line in run.curve if line["split"] == "valid"}
    if not valid:  # evaluated the model of another run
        return
    best = run.results["best_step"]
    metric = run.config["eval"]["metric"]
    chosen = max(sorted(valid), key=lambda step: valid[step][metric])
    if best != chosen:
        yield f"results.json has best step {best}, metrics.jsonl has {chosen}"
        return
    best_line = valid[best]
    for name, value in run.results["valid"].items():
        # Two rankings may differ slightly on an accelerator.
        if name in best_line and abs(value - best_line[name]) > 5e-5:
            yield (
                f"results.json has valid {name} = {value:.6f}, metrics.jsonl has "
                f"{best_line[name]:.6f} at step {best}"
            )
    seconds = {line["step"]: line["seconds"] for line in run.curve if line["split"] == "train"}
    last = max(seconds, default=None)
    recorded = run.results["train_seconds"]
    if last == run.results["steps"] and abs(seconds[last] - recorded) > 0.01:
        yield (
            f"results.json has {recorded:.2f} s of training, metrics.jsonl has {seconds[last]:.2f}"
        )


def _numbers(run: Run) -> Iterator[str]:
    """Recomputes the test metrics of a run and of its baselines from the ranks."""
    ranks = run.ranks
    parts = [("test", run.results["test"], ranks["rank"])]
    if "tied" in ranks:
        masks = {"test_tied": ranks["tied"], "test_untied": ~ranks["tied"]}
        for part, mask in masks.items():
            parts.append((part, run.results.get(part, {}), ranks["rank"][mask]))
    for name, results in run.results.get("baselines", {}).items():
        parts.append((name, results["test"], ranks[f"{name}_rank"]))
    for part, recorded, part_ranks in parts:
        derived = from_ranks(part_ranks) if recorded else {}
        for metric in recorded.keys() & derived.keys():
            if abs(recorded[metric] - derived[metric]) > 1e-6:
                yield (
                    f"results.json has {part} {metric} = {recorded[metric]:.6f}, but "
                    f"ranks_test.npz yields {derived[metric]:.6f}"
                )


def _other_formats(file: Path, table: Table) -> Iterator[str]:
    """Compares the .tex and .csv files with the same name."""
    for suffix, write in ((".tex", latex), (".csv", comma_separated)):
        path = file.with_suffix(suffix)
        if path.exists():
            for problem in _differences(path.read_text(), write(table)):
                yield f"{path.name}: {problem}"


def _differences(committed: str, derived: str) -> list[str]:
    """Compares two texts line by line, and lines of a Markdown table cell by cell."""
    committed_lines = committed.rstrip().split("\n")
    derived_lines = derived.rstrip().split("\n")
    problems = []
    header: list[str] = []
    if len(committed_lines) != len(derived_lines):
        problems.append(
            f"the table has {len(committed_lines)} lines, the records yield {len(derived_lines)}"
        )
    for old, new in zip(committed_lines, derived_lines):
        cells = _split(old)
        expected = _split(new)
        header = (header or expected) if expected else []
        if old == new:
            continue
        if expected and len(cells) == len(expected):
            for column, cell, expected_cell in zip(header, cells, expected):
                if cell != expected_cell:
                    problems.append(
                        f"row {expected[0]!r}, column {column!r}: the table has {cell!r}, the "
                        f"records yield {expected_cell!r}"
                    )
        else:
            problems.append(f"the table has {old!r}, the records yield {new!r}")
    return problems


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
