# SPDX-License-Identifier: Apache-2.0
"""Records of finished runs: reading, the command that reproduces one, and copies to commit."""

import shlex
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.errors import UserError
from bert4rec_jax.files import write_json
from bert4rec_jax.run_files import RunFiles, find_runs

CHECKOUT = Path(__file__).resolve().parents[2]


class Run:
    """The record of a finished run; large parts are read when first used."""

    def __init__(self, path: Path):
        """Reads the record in `path`.

        Raises:
          UserError: a file is missing or damaged.
        """
        self.path = path
        self.files = RunFiles(path)
        self.config = self._required(self.files.config(), self.files.config_path)
        self.environment = self._required(self.files.environment(), self.files.environment_path)
        self.results = self._required(self.files.results(), self.files.results_path)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.results["seed"]

    @property
    def dataset(self) -> dict:
        """Name, fingerprint and counts of the data."""
        return self.results["dataset"]

    @property
    def starts(self) -> list[dict]:
        """Every start of the run, oldest first.

        Raises:
          UserError: the record does not list its starts.
        """
        starts = self.environment.get("starts")
        if not starts:
            raise UserError(
                f"{self.files.environment_path} contains no history of starts, because an older "
                "version made the run; make it again."
            )
        return starts

    @property
    def commits(self) -> str:
        """The commits of all starts, each once; a `+` after a commit marks modified files."""
        return " ".join(
            dict.fromkeys(
                (s["git_commit"] or "unknown")[:12] + "+" * bool(s["git_dirty"])
                for s in self.starts
            )
        )

    @property
    def device_hours(self) -> float:
        """Hours of training and evaluation times devices."""
        seconds = self.results["train_seconds"] + self.results["eval_seconds"]
        return seconds * self.starts[-1]["device_count"] / 3600

    @cached_property
    def fields(self) -> dict:
        """The config as dotted name -> value; fields that are newer
        than the record have their defaults.
        """
        return flatten(Config().to_dict()) | flatten(self.config)

    @cached_property
    def curve(self) -> list[dict]:
        """The lines of metrics.jsonl; if a resumed run repeated a step, its last line."""
        lines = {(line["split"], line["step"]): line for line in self.files.metrics()}
        return list(lines.values())

    @property
    def validations(self) -> list[int]:
        """The steps with a validation, ascending."""
        return sorted(line["step"] for line in self.curve if line["split"] == "valid")

    @property
    def interrupted(self) -> bool:
        """Whether the run was evaluated before its last validation,
        although its patience had not run out.
        """
        valid = self.validations
        if (
            not valid or valid[-1] >= self.fields["train.steps"]
        ):  # without a validation, it evaluated another run's model
            return False
        patience = self.fields["train.patience"]
        return patience == 0 or sum(step > self.results["best_step"] for step in valid) < patience

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """The arrays of ranks_test.npz."""
        return self.files.ranks()

    @property
    def cases_digest(self) -> str:
        """A digest of the ranked cases: user and target of each case,
        and its candidates if they were sampled.

        Raises:
          UserError: the record lacks the digest.
        """
        if "cases_digest" not in self.results:
            raise UserError(
                f"{self.files.results_path} lacks cases_digest, so its test cases cannot be "
                "compared with those of another run. An older version made it: make the run again."
            )
        return self.results["cases_digest"]

    def command(self) -> str:
        """Returns the command that reproduces the run from its own config.json."""
        config_file = shown(self.files.config_path)
        words = ["python", "-m", "bert4rec_jax.main", "--config", config_file]
        for field in ("data.path", "data.items_path"):
            if path := self.fields[field]:
                words.append(f"--config.{field}={PurePath(path).name}")
        if trained := self.environment.get("trained_from"):
            words += ["--mode", "evaluate", "--trained", f"runs/{PurePath(trained).name}"]
        return shlex.join([*words, "--workdir", f"runs/{self.path.name}"])

    def _required(self, content: dict | None, path: Path) -> dict:
        if content is None:
            raise UserError(f"{path} is missing; is {self.path} a run directory?")
        return content


def find(paths: Sequence[str]) -> tuple[list[Run], list[Path]]:
    """Finds runs in folders: run directories, or folders that contain some, such as a sweep's root.

    Returns:
      The finished runs, and the folders of runs that have not finished.

    Raises:
      UserError: a folder does not exist, or none of the runs is finished.
    """
    found: dict[Path, RunFiles] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"the folder {path} does not exist.")
        found |= {files.folder: files for files in find_runs(path)}
    runs = [Run(folder) for folder, files in found.items() if files.results_path.exists()]
    unfinished = [folder for folder, files in found.items() if not files.results_path.exists()]
    if not runs:
        raise UserError(f"no finished run (a folder with results.json) in {', '.join(paths)}.")
    return runs, unfinished


def by_dataset(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups runs by data set, and rejects runs whose numbers cannot share a column.

    Raises:
      UserError: runs on data of one name differ in the data or in the protocol.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.dataset["name"], []).append(run)
    for name, group in groups.items():
        _require_same(
            group, lambda run: run.dataset["fingerprint"], f"data called {name}", "data fingerprint"
        )
        _require_same(group, lambda run: run.results["protocol"], f"runs on {name}", "protocol")
    return groups


def export(runs: Sequence[Run], destination: Path) -> list[Path]:
    """Copies the records of runs, without checkpoints and data, under `destination`;
    returns the new folders.

    Host names and the folders of absolute paths are removed, because they do not affect the
    numbers. The target item of each user is removed as well, because the terms of most data sets
    forbid redistribution; results.json has a digest.
    """
    made = []
    for run in runs:
        parent = run.path.resolve().parent.name
        folder = destination / (
            f"{parent}-{run.path.name}" if run.path.name.isdigit() else run.path.name
        )
        if folder in made or folder.resolve() == run.path.resolve():
            raise UserError(
                f"the record of {run.path} would overwrite another in {folder}; give another "
                "folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        copy = RunFiles(folder)
        config = portable(run.config)
        config["data"]["cache_dir"] = ""  # a path of the machine on which the run was made
        write_json(copy.config_path, config)
        write_json(copy.environment_path, portable(run.environment))
        write_json(copy.results_path, portable(run.results))
        shutil.copyfile(run.files.metrics_path, copy.metrics_path)
        ranks = {name: array for name, array in run.ranks.items() if name != "item"}
        np.savez_compressed(copy.ranks_path, **ranks)
        made.append(folder)
    return made


def flatten(values: dict, prefix: str = "") -> dict:
    """Returns nested dicts as dotted name -> value."""
    flat = {}
    for name, value in values.items():
        flat |= (
            flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return flat


def portable(value):
    """Returns JSON values without host names and with absolute paths cut to their last part,
    also in `--flag=/path`.
    """
    if isinstance(value, dict):
        return {key: portable(part) for key, part in value.items() if key != "host"}
    if isinstance(value, list):
        return [portable(part) for part in value]
    if not isinstance(value, str):
        return value
    flag, equals, path = value.rpartition("=") if value.startswith("--") else ("", "", value)
    return flag + equals + PurePath(path).name if PurePath(path).is_absolute() else value


def shown(path: Path) -> str:
    """Returns a path relative to the checkout, or the whole path if it is outside."""
    path = path.resolve()
    return (path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path).as_posix()


def _require_same(runs: Sequence[Run], key: Callable[[Run], str], what: str, quantity: str) -> None:
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(str(run.path))
    if len(groups) > 1:
        kinds = " / ".join(
            f"{value!r} in {', '.join(paths[:3])}{' ...' * (len(paths) > 3)}"
            for value, paths in groups.items()
        )
        raise UserError(
            f"{what} differ in their {quantity}, so they cannot share a column: {kinds}. Report "
            "them separately."
        )
