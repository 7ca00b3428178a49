# SPDX-License-Identifier: Apache-2.0
"""What a sweep file imports: ways to write down trials.
The file names a config and the overrides of every trial.

    CONFIG = "configs/quickstart.py"

    def sweep():
        yield from with_seeds(grid({"model.width": [32, 64]}), seeds=[0, 1, 2])

or, instead of `sweep`, `SEARCH = Search(space={...}, trials=40)` for an adaptive search. Trial i is
the i-th dict: the same integer names it in a local queue, in a SLURM array and in a Kubernetes
Indexed Job.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from bert4rec_jax.errors import UserError

Overrides = dict[str, int | float | str | bool]
_HUGE = 1e300  # differences and quotients of what is smaller are still numbers


@dataclass(frozen=True)
class Uniform:
    """A number between `low` and `high`, evenly or on a logarithmic scale;
    `integer` includes both ends.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self):
        if not -_HUGE < self.low < self.high < _HUGE or (self.log and self.low <= 0):
            raise UserError(
                f"{self} is not a range: low must be below high, and above 0 on a logarithmic "
                "scale."
            )

    def sample(self, u: float) -> int | float:
        """Maps `u`, uniform in [0, 1), to a value."""
        low = self.low
        high = self.high + (1 if self.integer else 0)
        value = low * (high / low) ** u if self.log else low + (high - low) * u
        return min(int(value), int(self.high)) if self.integer else float(value)


@dataclass(frozen=True)
class Choice:
    """One of the values, all equally likely."""

    values: tuple

    def __post_init__(self):
        if not self.values:
            raise UserError("choice() needs at least one value to choose from.")

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

    def __post_init__(self):
        space = self.space
        if not isinstance(space, dict) or not all(
            isinstance(part, Uniform | Choice) for part in space.values()
        ):
            raise UserError(
                "Search: space must map config fields to uniform(), log_uniform(), integer() or "
                "choice()."
            )
        if not isinstance(self.fixed, dict):
            raise UserError("Search: fixed must map config fields to values.")
        if type(self.trials) is not int or not 0 < self.trials < 2**31:
            raise UserError(f"Search: trials must be a whole number above 0, not {self.trials!r}.")


def grid(space: dict[str, list]) -> Iterator[Overrides]:
    """Yields every combination; the last field varies fastest."""
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values))


def one_at_a_time(base: Overrides, variations: dict[str, list]) -> Iterator[Overrides]:
    """Yields `base`, then `base` with one field changed: an ablation.
    The base's own values are skipped.
    """
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
