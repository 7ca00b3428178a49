# SPDX-License-Identifier: Apache-2.0
"""What a sweep is: a Python file that names a config and the overrides of every trial.

    CONFIG = "configs/quickstart.py"

    def sweep():
        yield from with_seeds(grid({"model.width": [32, 64]}), seeds=[0, 1, 2])

or, instead of `sweep`, `SEARCH = Search(space={...}, trials=40)` for an adaptive search. Trial i is the
i-th dict: the same integer names it in a local queue, in a SLURM array and in a Kubernetes Indexed Job.
"""

import importlib.util
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bert4rec_jax.config import Config, resolve
from bert4rec_jax.errors import UserError

Overrides = dict[str, int | float | str | bool]


@dataclass(frozen=True)
class Uniform:
    """A number between `low` and `high`, evenly or on a logarithmic scale; `integer` includes both ends."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self):
        if not self.low < self.high or (self.log and self.low <= 0):
            raise UserError(f"{self} is not a range: low must be below high, and above 0 on a logarithmic scale.")

    def sample(self, u: float) -> int | float:
        """Maps `u`, uniform in [0, 1), to a value."""
        low, high = self.low, self.high + (1 if self.integer else 0)
        value = low * (high / low) ** u if self.log else low + (high - low) * u
        return min(int(value), int(self.high)) if self.integer else float(value)


@dataclass(frozen=True)
class Choice:
    """One of the values, all equally likely."""

    values: tuple

    def sample(self, u: float):
        """Maps `u`, uniform in [0, 1), to a value."""
        return self.values[int(u * len(self.values))]


def uniform(low: float, high: float) -> Uniform:
    """Returns an even range of floats."""
    return Uniform(low, high)


def log_uniform(low: float, high: float) -> Uniform:
    """Returns a range of floats, even in the logarithm: for learning rates."""
    return Uniform(low, high, log=True)


def integer(low: int, high: int, log: bool = False) -> Uniform:
    """Returns a range of integers, both ends included."""
    return Uniform(low, high, log=log, integer=True)


def choice(*values) -> Choice:
    """Returns a choice between the values."""
    return Choice(tuple(values))


@dataclass(frozen=True)
class Search:
    """An adaptive search with Optuna: TPE proposes, a median rule prunes by validation metric.

    Attributes:
      space: config field -> `uniform`, `log_uniform`, `integer` or `choice`.
      trials: how many trials.
      fixed: overrides that every trial gets.
      seed: of the proposals; trial i's random part depends on (seed, i) only.
      startup: trials drawn at random before TPE and pruning begin.
      prune_after: training steps before which no trial is pruned.
    """

    space: dict[str, Uniform | Choice]
    trials: int
    fixed: Overrides = field(default_factory=dict)
    seed: int = 0
    startup: int = 8
    prune_after: int = 0


@dataclass(frozen=True)
class Sweep:
    """A loaded sweep file; `trials` is empty when `search` proposes them."""

    file: str
    config: str
    trials: tuple[Overrides, ...]
    search: Search | None
    common: Overrides  # from the command line, under every trial

    def __len__(self) -> int:
        return self.search.trials if self.search else len(self.trials)

    def overrides(self, index: int) -> Overrides | None:
        """Returns what trial `index` changes; None where the search decides when the trial starts."""
        return None if self.search else {**self.common, **self.trials[index]}


def grid(space: dict[str, list]) -> Iterator[Overrides]:
    """Yields every combination; the last field varies fastest."""
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values))


def one_at_a_time(base: Overrides, variations: dict[str, list]) -> Iterator[Overrides]:
    """Yields `base`, then `base` with one field changed: an ablation. The base's own values are skipped."""
    yield dict(base)
    for name, values in variations.items():
        yield from ({**base, name: value} for value in values if base.get(name) != value)


def random(space: dict[str, Uniform | Choice], trials: int, seed: int = 0) -> Iterator[Overrides]:
    """Yields `trials` independent draws; draw i depends on (seed, i) only, not on `trials`."""
    for index in range(trials):
        draws = np.random.Generator(np.random.Philox(key=[seed, index])).random(len(space))
        yield {name: part.sample(u) for (name, part), u in zip(space.items(), draws)}


def with_seeds(trials: Iterable[Overrides], seeds: Iterable[int]) -> Iterator[Overrides]:
    """Yields every trial once per seed; a seed is finished before the next begins."""
    trials = list(trials)
    for seed in seeds:
        yield from ({**trial, "seed": seed} for trial in trials)


def load(file: str, common: Overrides) -> Sweep:
    """Reads and checks a sweep file; every trial's config is resolved, so that a typo costs no training.

    Args:
      file: path of the sweep file.
      common: overrides for every trial, on which the trial's own win.

    Raises:
      UserError: the file cannot be used; says which trial and which field.
    """
    module = _import(file, "sweep file")
    config = getattr(module, "CONFIG", None)
    if not isinstance(config, str):
        raise UserError(f"{file} must set CONFIG to the path of a config file.")
    if not Path(config.partition(":")[0]).is_file():
        raise UserError(f"{file}: CONFIG = {config!r} does not exist; paths start where you run the command.")
    search, trials = getattr(module, "SEARCH", None), ()
    if (search is None) == (not hasattr(module, "sweep")):
        raise UserError(f"{file} must have either a function sweep() that yields dicts, or SEARCH = Search(...).")
    if search is None:
        trials = tuple(dict(trial) for trial in module.sweep())
        _refuse_repeats(file, trials)
    elif not isinstance(search, Search):
        raise UserError(f"{file}: SEARCH must be an experiments.sweep.Search.")
    sweep = Sweep(file, config, trials, search, common)
    if not len(sweep):
        raise UserError(f"{file} has no trials.")
    values = base_values(config)
    for index in range(len(sweep)):
        overrides = sweep.overrides(index)
        if overrides is None:  # a search: its corners must be valid, one draw stands for them
            overrides = {
                **common,
                **search.fixed,
                **{n: part.sample(0.0) for n, part in search.space.items()},
            }
        try:
            apply(values, overrides)
        except UserError as error:
            raise UserError(f"{file}, trial {index}: {error}") from None
    return sweep


def base_values(config: str) -> dict:
    """Returns the nested values of a config file's `get_config()`; `FILE:NAME` passes it the name.

    Raises:
      UserError: the file has no get_config.
    """
    file, _, name = config.partition(":")
    module = _import(file, "config file")
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} must have a function get_config().")
    return module.get_config(*[name] if name else []).to_dict()


def apply(values: dict, overrides: Overrides) -> Config:
    """Returns the resolved config of nested `values` with dotted `overrides`.

    Raises:
      UserError: an unknown field or a bad value; names the field.
    """
    values = json.loads(json.dumps(values))
    for name, value in overrides.items():
        group = values
        *parents, leaf = name.split(".")
        for parent in parents:
            group = group.setdefault(parent, {})
            if not isinstance(group, dict):
                raise UserError(f"unknown config field config.{name}.")
        group[leaf] = value
    return resolve(values)


def arguments(overrides: Overrides) -> list[str]:
    """Returns the overrides as the training program's flags."""
    return [f"--config.{name}={_text(value)}" for name, value in overrides.items()]


def parse_assignments(assignments: list[str]) -> Overrides:
    """Reads `field=value` strings; values that read as JSON scalars become numbers and booleans.

    Raises:
      UserError: no `=`.
    """
    overrides = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not name or not equals:
            raise UserError(f"--set {assignment!r} must look like data.path=FOLDER.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        overrides[name] = value if isinstance(value, (bool, int, float, str)) else text
    return overrides


def work(config: Config, items: int = 0) -> tuple[int, float]:
    """Returns (tokens, multiply-adds) of a run's forward passes.

    Args:
      config: the run.
      items: size of the catalogue, where known; 0 leaves the output layer out.
    """
    m = config.model
    tokens = config.train.steps * config.train.batch_rows * m.max_length
    per_token = m.layers * (4 * m.width**2 + 2 * m.width * m.ffn_width + 2 * m.width * m.max_length)
    share = config.masking.next_item
    targets = share + (1 - share) * config.masking.probability
    return tokens, tokens * (per_token + math.ceil(targets * items * m.width))


def _text(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_repeats(file: str, trials: tuple[Overrides, ...]) -> None:
    seen: dict[str, int] = {}
    for index, trial in enumerate(trials):
        first = seen.setdefault(json.dumps(trial, sort_keys=True), index)
        if first != index:
            raise UserError(f"{file}: trials {first} and {index} are the same: {trial}.")


def _import(file: str, what: str):
    if not Path(file).is_file():
        raise UserError(f"there is no {what} {file!r}.")
    spec = importlib.util.spec_from_file_location("_" + Path(file).stem, file)
    if spec is None:
        raise UserError(f"the {what} {file!r} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the {what} {file!r} does not load: {type(error).__name__}: {error}") from error
    return module
