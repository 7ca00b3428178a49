# SPDX-License-Identifier: Apache-2.0
"""Reads and checks a sweep file: its config, its trials, and the flags of each trial."""

import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bert4rec_jax import config as config_lib
from bert4rec_jax.config import Config, resolve
from bert4rec_jax.errors import UserError
from experiments.sweep import Overrides, Search


@dataclass(frozen=True)
class Sweep:
    """A loaded sweep file; `trials` is empty when `search` proposes them."""

    file: str
    config: str
    trials: tuple[Overrides, ...]
    search: Search | None
    common: Overrides  # overrides from the command line, for every trial

    def __len__(self) -> int:
        return self.search.trials if self.search else len(self.trials)

    def overrides(self, index: int) -> Overrides | None:
        """Returns what trial `index` changes; None if the search proposes it at the start."""
        return None if self.search else {**self.common, **self.trials[index]}


def load(file: str, common: Overrides) -> Sweep:
    """Reads and checks a sweep file.

    It resolves the config of every trial, so a typo is found before training.

    Args:
      file: path of the sweep file.
      common: overrides for every trial; the trial's own have priority.

    Raises:
      UserError: the file is invalid; the message contains the trial and the field.
    """
    module = _import(file, "sweep file")
    config = getattr(module, "CONFIG", None)
    if not isinstance(config, str):
        raise UserError(f"{file} must set CONFIG to the path of a config file.")
    if not Path(config.partition(":")[0]).is_file():
        raise UserError(
            f"{file}: CONFIG = {config!r} does not exist; paths are relative to the current folder."
        )
    search = getattr(module, "SEARCH", None)
    trials: tuple[Overrides, ...] = ()
    if (search is None) == (not hasattr(module, "sweep")):
        raise UserError(
            f"{file} must have either a function sweep() that yields dicts, or SEARCH = "
            "Search(...)."
        )
    if search is None:
        trials = _trials(file, module.sweep)
    elif not isinstance(search, Search):
        raise UserError(f"{file}: SEARCH must be an experiments.sweep.Search.")
    sweep = Sweep(file, config, trials, search, common)
    if not len(sweep):
        raise UserError(f"{file} does not define any trials.")
    _check_configs(sweep)
    return sweep


def _check_configs(sweep: Sweep) -> None:
    """Resolves the config of every trial, or of one point in the space of a search."""
    values = config_lib.read(sweep.config)
    if sweep.search:
        point = {name: part.sample(0.0) for name, part in sweep.search.space.items()}
        checked = [{**sweep.common, **sweep.search.fixed, **point}]
    else:
        checked = [{**sweep.common, **trial} for trial in sweep.trials]
    for index, overrides in enumerate(checked):
        try:
            apply(values, overrides)
        except UserError as error:
            raise UserError(f"{sweep.file}, trial {index}: {error}") from None


def apply(values: dict, overrides: Overrides) -> Config:
    """Returns the resolved config of nested `values` with dotted `overrides`.

    Raises:
      UserError: an unknown field or an invalid value.
    """
    for name, value in overrides.items():
        if not isinstance(name, str) or not isinstance(value, bool | int | float | str):
            raise UserError(
                f"{name!r}: {value!r} must be the name of a field and a number, a text, True or "
                "False."
            )
    return resolve(config_lib.with_fields(values, overrides))


def arguments(overrides: Overrides) -> list[str]:
    """Returns the overrides as the training program's flags."""
    return [f"--config.{name}={_text(value)}" for name, value in overrides.items()]


def parse_assignments(assignments: list[str]) -> Overrides:
    """Returns the overrides of `field=value` strings; values get the types of their fields.

    Raises:
      UserError: a string lacks the name or the `=`.
    """
    for assignment in assignments:
        name, equals, _ = assignment.partition("=")
        if not name or not equals:
            raise UserError(f"--set {assignment!r} must look like data.path=FOLDER.")
    return config_lib.parse_flags([f"--config.{assignment}" for assignment in assignments])


def _text(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _trials(file: str, sweep: Callable[[], Iterable[Overrides]]) -> tuple[Overrides, ...]:
    """Returns what a file's sweep() yields, which must be dicts, no two of them the same."""
    try:
        trials = tuple(dict(trial) for trial in sweep())
    except UserError:
        raise
    except Exception as error:  # the file is user code
        raise UserError(
            f"{file}: sweep() does not yield dicts: {type(error).__name__}: {error}"
        ) from error
    seen: dict[str, int] = {}
    for index, trial in enumerate(trials):
        # Not with ==, because 1 == True.
        first = seen.setdefault(repr(sorted(trial.items(), key=repr)), index)
        if first != index:
            raise UserError(f"{file}: trials {first} and {index} are the same: {trial}.")
    return trials


def _import(file: str, what: str):
    if not Path(file).is_file():
        raise UserError(f"the {what} {file!r} does not exist.")
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
        raise UserError(
            f"the {what} {file!r} does not load: {type(error).__name__}: {error}"
        ) from error
    return module
