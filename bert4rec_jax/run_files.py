# SPDX-License-Identifier: Apache-2.0
"""The files of a run directory: their names, and how to read them."""

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bert4rec_jax.errors import UserError
from bert4rec_jax.files import read_json

if TYPE_CHECKING:
    import pandas as pd

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
RANKS = "ranks_test.npz"
ITEMS = "catalogue.parquet"
CHECKPOINTS = "checkpoints"
CURVES = "curves.png"
LOCK = ".lock"
# Key of results.json that is true until the baselines have been ranked.
BASELINES_PENDING = "baselines_pending"

_Content = TypeVar("_Content")


class RunFiles:
    """Reads the directory of a finished or running run, or a committed record.

    Readers open a file when they are called and do not cache its content. They raise a `UserError`
    that names the file if it cannot be read.
    """

    def __init__(self, folder: str | os.PathLike):
        """Takes the path of the run directory, which does not have to exist yet."""
        self.folder = Path(folder)
        self.config_path = self.folder / CONFIG
        self.environment_path = self.folder / ENVIRONMENT
        self.metrics_path = self.folder / METRICS
        self.results_path = self.folder / RESULTS
        self.ranks_path = self.folder / RANKS
        self.items_path = self.folder / ITEMS
        self.checkpoints_path = self.folder / CHECKPOINTS
        self.curves_path = self.folder / CURVES
        self.lock_path = self.folder / LOCK

    def config(self) -> dict | None:
        """Returns the fields of the configuration, or None without a config.json."""
        return _read_object(self.config_path)

    def environment(self) -> dict | None:
        """Returns environment.json, or None if the file does not exist.

        It contains the fingerprints of the data, the run that was evaluated (`trained_from`) and a
        list of all starts, oldest first.
        """
        return _read_object(self.environment_path)

    def results(self) -> dict | None:
        """Returns results.json, or None if the model has not been ranked yet."""
        return _read_object(self.results_path)

    def complete_results(self) -> dict | None:
        """Returns results.json, or None if the model or the baselines have not been ranked."""
        results = self.results()
        if results is None or results.get(BASELINES_PENDING):
            return None
        return results

    def trained_from(self) -> str:
        """Returns the run directory whose model was evaluated here, or "" if it is this one."""
        environment = self.environment() or {}
        return environment.get("trained_from", "")

    def metrics(self, last_bytes: int | None = None) -> list[dict]:
        """Returns the lines of metrics.jsonl, oldest first; an empty list if it is missing.

        A last line that is still being written is left out.

        Args:
          last_bytes: read only so much of the end of the file; None: all of it.
        """
        return _read(self.metrics_path, lambda path: _read_lines(path, last_bytes)) or []

    def ranks(self) -> dict[str, np.ndarray]:
        """Returns the arrays of ranks_test.npz, one element per test case.

        Raises:
          UserError: the file is missing or damaged.
        """
        return _required(self.ranks_path, _read_arrays)

    def items(self, columns: list[str] | None = None) -> "pd.DataFrame":
        """Returns one row per item with its id, title, year, genres and training_interactions.

        Args:
          columns: the columns to read; None: all.

        Raises:
          UserError: the file is missing or damaged, or lacks a column.
        """
        import pandas as pd  # slow to import, and the launcher of a sweep does not need it

        return _required(self.items_path, lambda path: pd.read_parquet(path, columns=columns))

    def checkpoint_steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, ascending."""
        if not self.checkpoints_path.is_dir():
            return []
        return sorted(int(name) for name in os.listdir(self.checkpoints_path) if name.isdigit())


def find_runs(folder: Path) -> list[RunFiles]:
    """Returns the run directories in a folder and its subfolders, sorted by path."""
    return [RunFiles(config.parent) for config in sorted(folder.rglob(CONFIG))]


def _required(path: Path, read: Callable[[Path], _Content]) -> _Content:
    """Returns read(path); raises a UserError if the file is missing or damaged."""
    content = _read(path, read)
    if content is None:
        raise UserError(f"{path} is missing; is {path.parent} a run directory?")
    return content


def _read(path: Path, read: Callable[[Path], _Content]) -> _Content | None:
    """Returns read(path), or None if the file is missing; raises a UserError if it is damaged."""
    try:
        if path.is_symlink() and not path.exists():
            raise OSError("its symbolic link leads to no file")
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")  # opening a named pipe would never return
        return read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} cannot be read: {reason or 'it is empty'}. Restore the file, or choose "
            "another run directory."
        ) from None


def _read_object(path: Path) -> dict | None:
    def read(path: Path) -> dict:
        value = read_json(os.fspath(path))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
        return value

    return _read(path, read)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        if not hasattr(arrays, "files"):
            raise ValueError("it is not an .npz file")
        return dict(arrays)


def _read_lines(path: Path, last_bytes: int | None) -> list[dict]:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        begin = 0 if last_bytes is None else max(0, size - last_bytes)
        file.seek(begin)
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    lines.pop()  # empty, or a line that is still being written
    if begin:
        lines = lines[1:]  # its beginning was not read
    entries: list[Any] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entries.append({"step": entry["step"], "split": entry["split"], **entry})
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"line {number} is not a JSON object with step and split") from None
    return entries
