# SPDX-License-Identifier: Apache-2.0
"""Derives committed tables from their records again, and asks whether the present program could make the records."""

import functools
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from bert4rec_jax.command_line import flag
from bert4rec_jax.config import NOT_IDENTITY, ModelConfig, load, resolve, shipped
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import init_params
from bert4rec_jax.ranking.metrics import from_ranks
from experiments.reporting.records import Run, by_dataset, find, flatten
from experiments.reporting.tables import Table, build, load_options
from experiments.reporting.writing import comma_separated, latex, markdown
from experiments.reporting.writing.markdown import TAG
from experiments.sweeping.sweep_file import apply, parse_assignments


def check(file: Path, paths: Sequence[str]) -> list[str]:
    """Derives every line of a Markdown table again, the .tex and .csv beside it, and every record's own numbers.

    Args:
      file: text with one or more tables, as `markdown` writes them.
      paths: folders of the records; none: those that the table names, relative to itself.

    Returns:
      What is wrong, a sentence each; empty where the tables are right and the program can make the records.

    Raises:
      UserError: the file holds no table, or records are missing or damaged.
    """
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    tags = list(TAG.finditer(text))
    if not tags:
        raise UserError(
            f"{file} holds no table of this program: the comment with its options is missing."
        )
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
        group = groups[name[1]]
        problems += check_records(group)
        try:
            table = build(name[1], group, load_options(tag[2]))
            derived = markdown(table, group, file.parent)
            problems += _differences(part[name.start() :], derived[: TAG.search(derived).start()])
            problems += _beside(file, table)
        except (
            UserError,
            TypeError,
            KeyError,
        ) as error:  # the last two: options or records of another program
            problems.append(f"the table cannot be derived: {error}")
    return problems


def check_records(runs: Sequence[Run]) -> list[str]:
    """Returns why records are not what the present program makes of their config, a sentence each."""
    return [f"{run.path}: {problem}" for run in runs for problem in _problems(run)]


def _problems(run: Run) -> Iterator[str]:
    try:
        config = resolve(run.config)
    except UserError as error:
        yield f"the present program refuses its config.json: {error}"
    else:
        now, then = flatten(config.to_dict()), flatten(run.config)
        for name in now:
            if name not in then and not name.startswith(NOT_IDENTITY):
                yield f"its config.json says nothing of config.{name}, which is {now[name]!r} in the present program"
        if run.results["seed"] != config.seed:
            yield f"results.json is of seed {run.results['seed']}, config.json of seed {config.seed}"
        if run.results["steps"] > config.train.steps:
            yield f"results.json is of {run.results['steps']} steps, config.json of {config.train.steps}"
        if run.results["model"] != config.model_name:
            yield f"results.json calls it {run.results['model']!r}, the present program {config.model_name!r}"
        count = parameters(config.model, run.dataset["items"], run.dataset.get("features", 0))
        if run.results["parameters"] != count:
            yield f"results.json says {run.results['parameters']:,} parameters, the model of config.json has {count:,}"
    try:
        for start in run.starts:
            if start["git_commit"] is None or start["git_dirty"]:
                yield f"it was started at {start['started']} from files that no commit holds"
        yield from _command(run)
    except UserError as error:
        yield str(error).removeprefix(f"{run.path}/")
    yield from _numbers(run)
    yield from _curve(run)


@functools.cache
def parameters(config: ModelConfig, num_items: int, num_features: int = 0) -> int:
    """Returns how many parameters a model has."""
    init = functools.partial(init_params, config, num_items, num_features=num_features)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def _command(run: Run) -> Iterator[str]:
    """Compares config.json with what the run's command gives today, where that names a config file of the program."""
    command = run.starts[0]["command"]
    name, colon, variant = Path(flag(command, "config")).name.partition(":")
    path = shipped().get(name.removesuffix(".py"))
    if path is None:
        return
    base = load(path + colon + variant).to_dict()
    texts = {field for field, value in flatten(base).items() if isinstance(value, str)}
    given = [
        word.removeprefix("--config.")
        for word in command
        if word.startswith("--config.") and "=" in word
    ]
    overrides = {
        field: str(value) if field in texts else value
        for field, value in parse_assignments(given).items()
    }
    now, then = flatten(apply(base, overrides).to_dict()), flatten(run.config)
    for field in now.keys() & then.keys():
        if now[field] != then[field] and not field.startswith(NOT_IDENTITY):
            yield (
                f"its command with the present configs/{name} gives config.{field} = {now[field]!r}, "
                f"its config.json has {then[field]!r}"
            )


def _curve(run: Run) -> Iterator[str]:
    """Compares results.json with metrics.jsonl: which step was the best, its validation, the seconds of training."""
    valid = {line["step"]: line for line in run.curve if line["split"] == "valid"}
    if not valid:  # ranked with the model of another run
        return
    best, metric = run.results["best_step"], run.config["eval"]["metric"]
    chosen = max(sorted(valid), key=lambda step: valid[step][metric])
    if best != chosen:
        yield f"results.json says that step {best} was the best, by metrics.jsonl it is step {chosen}"
        return
    for name in run.results["valid"].keys() & valid[best].keys():
        if (
            abs(run.results["valid"][name] - valid[best][name]) > 5e-5
        ):  # two rankings may differ on an accelerator
            yield (
                f"results.json says valid {name} = {run.results['valid'][name]:.6f}, metrics.jsonl has "
                f"{valid[best][name]:.6f} at step {best}"
            )
    last = max(
        (x for x in run.curve if x["split"] == "train"), key=lambda x: x["step"], default=None
    )
    if (
        last
        and last["step"] == run.results["steps"]
        and abs(last["seconds"] - run.results["train_seconds"]) > 0.01
    ):
        yield f"results.json says {run.results['train_seconds']:.2f} s of training, metrics.jsonl {last['seconds']:.2f}"


def _numbers(run: Run) -> Iterator[str]:
    """Recomputes the test metrics of a run and of its baselines from the ranks."""
    ranks = run.ranks
    parts = [("test", run.results["test"], ranks["rank"])]
    if "tied" in ranks:
        chosen = {"test_tied": ranks["tied"], "test_untied": ~ranks["tied"]}
        parts += [
            (part, run.results.get(part, {}), ranks["rank"][which])
            for part, which in chosen.items()
        ]
    for name, results in run.results.get("baselines", {}).items():
        parts.append((name, results["test"], ranks[f"{name}_rank"]))
    for part, recorded, of in parts:
        derived = from_ranks(of) if recorded else {}
        for metric in recorded.keys() & derived.keys():
            if abs(recorded[metric] - derived[metric]) > 1e-6:
                yield (
                    f"results.json says {part} {metric} = {recorded[metric]:.6f}, but ranks_test.npz gives "
                    f"{derived[metric]:.6f}"
                )


def _beside(file: Path, table: Table) -> Iterator[str]:
    """Compares the .tex and .csv of the same name."""
    for suffix, write in ((".tex", latex), (".csv", comma_separated)):
        path = file.with_suffix(suffix)
        if path.exists():
            yield from (
                f"{path.name}: {problem}"
                for problem in _differences(path.read_text(), write(table))
            )


def _differences(committed: str, derived: str) -> list[str]:
    """Compares two texts line by line, and lines of a Markdown table cell by cell."""
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
