# SPDX-License-Identifier: Apache-2.0
"""Finished runs on disk: reading them, the command that makes one again, and copies to commit."""

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np

from bert4rec_jax.command_line import flag
from bert4rec_jax.config import Config
from bert4rec_jax.errors import UserError

FILES = ("config.json", "environment.json", "metrics.jsonl", "results.json", "ranks_test.npz")
CHECKOUT = Path(__file__).resolve().parents[2]


class Run:
    """The record of a finished run; large parts are read when first used."""

    def __init__(self, path: Path):
        """Reads the record in `path`.

        Raises:
          UserError: a file is missing or damaged.
        """
        self.path = path
        self.config, self.environment, self.results = (
            self._json(name) for name in FILES if name.endswith(".json")
        )

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
        """Every start of the program in this run, the first one first.

        Raises:
          UserError: the record keeps no history.
        """
        starts = self.environment.get("starts")
        if not starts:
            raise UserError(
                f"{self.path}/environment.json keeps no history of starts, so the run was made by an older program; "
                "make it again."
            )
        return starts

    @property
    def commits(self) -> str:
        """The commits of all starts, each once; `+` behind one says that files were changed since."""
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
        """The config as dotted name -> value; a field that came later than the record has its default."""
        return flatten(Config().to_dict()) | flatten(self.config)

    @cached_property
    def curve(self) -> list[dict]:
        """The lines of metrics.jsonl; of steps that a resumed run repeated, the last."""
        try:
            lines = [
                json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()
            ]
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}/metrics.jsonl cannot be read: {error}") from None
        return list({(line["split"], line["step"]): line for line in lines}.values())

    @property
    def validations(self) -> list[int]:
        """The steps after which it was validated, ascending."""
        return sorted(line["step"] for line in self.curve if line["split"] == "valid")

    @property
    def interrupted(self) -> bool:
        """Whether it was ranked before its last step was validated, though its patience had not ended."""
        valid = self.validations
        if (
            not valid or valid[-1] >= self.fields["train.steps"]
        ):  # without a validation, another run was ranked
            return False
        patience = self.fields["train.patience"]
        return patience == 0 or sum(step > self.results["best_step"] for step in valid) < patience

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """The arrays of ranks_test.npz."""
        try:
            with np.load(self.path / "ranks_test.npz") as arrays:
                return dict(arrays)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}/ranks_test.npz cannot be read: {error}") from None

    @property
    def cases_digest(self) -> str:
        """A digest of what was ranked: each case's user and target, and its candidates where they were sampled.

        Raises:
          UserError: the run does not say.
        """
        if "cases_digest" not in self.results:
            raise UserError(
                f"{self.path}/results.json has no cases_digest, so nobody can tell whether two runs ranked the same; "
                "it was made by an older program: make the run again."
            )
        return self.results["cases_digest"]

    def command(self) -> str:
        """Returns the command that makes the run again: its own config.json is the config."""
        words = ["python", "-m", "bert4rec_jax.main", "--config", f"{shown(self.path)}/config.json"]
        for field in ("data.path", "data.items_path"):
            if path := self.fields[field]:
                words.append(f"--config.{field}={PurePath(path).name}")
        if trained := flag(self.starts[-1]["command"], "trained"):
            words += ["--mode", "evaluate", "--trained", f"runs/{PurePath(trained).name}"]
        return shlex.join([*words, "--workdir", f"runs/{self.path.name}"])

    def _json(self, name: str) -> dict:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path}/{name} cannot be read: {error}; is it a run directory?"
            ) from None


def find(paths: Sequence[str]) -> tuple[list[Run], list[Path]]:
    """Finds the runs in folders: run directories, or folders that hold some, such as a sweep's root.

    Returns:
      The finished runs, and the folders of runs that have not finished.

    Raises:
      UserError: a folder does not exist, or there is no finished run.
    """
    folders: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"there is no folder {path}.")
        folders += sorted(config.parent for config in path.rglob("config.json"))
    folders = list(dict.fromkeys(folders))
    runs = [Run(folder) for folder in folders if (folder / "results.json").exists()]
    if not runs:
        raise UserError(f"no finished run (a folder with results.json) in {', '.join(paths)}.")
    return runs, [folder for folder in folders if not (folder / "results.json").exists()]


def by_dataset(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Sorts runs by the name of their data, and refuses to let different numbers stand in one column.

    Raises:
      UserError: runs on data of one name differ in the data itself or in the protocol; names them.
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
    """Copies the records of runs, without checkpoints and data, under `destination`; returns the new folders.

    Host names and the leading part of absolute paths stay behind: they say nothing about the numbers. So does the item
    that each user met: it is data, and the terms of most data sets forbid to pass it on. results.json has a digest.
    """
    made = []
    for run in runs:
        parent = run.path.resolve().parent.name
        folder = destination / (
            f"{parent}-{run.path.name}" if run.path.name.isdigit() else run.path.name
        )
        if folder in made or folder.resolve() == run.path.resolve():
            raise UserError(
                f"the record of {run.path} would overwrite another in {folder}; give another folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if name.endswith(".json"):
                values = portable(run._json(name))
                if (
                    name == "config.json"
                ):  # a place on the machine it ran on; half of it would be a place on others
                    values["data"] |= {"cache_dir": ""}
                (folder / name).write_text(json.dumps(values, indent=1) + "\n")
            elif name.endswith(".npz"):
                kept = {k: v for k, v in run.ranks.items() if k != "item"}
                np.savez_compressed(folder / name, **kept)
            else:
                shutil.copyfile(run.path / name, folder / name)
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
    """Returns JSON values without host names and with absolute paths cut to their last part, also in `--flag=/path`."""
    if isinstance(value, dict):
        return {key: portable(part) for key, part in value.items() if key != "host"}
    if isinstance(value, list):
        return [portable(part) for part in value]
    if not isinstance(value, str):
        return value
    flag, equals, path = value.rpartition("=") if value.startswith("--") else ("", "", value)
    return flag + equals + PurePath(path).name if PurePath(path).is_absolute() else value


def shown(path: Path) -> str:
    """Returns a path as the checkout's root sees it, or whole where it lies elsewhere."""
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
            f"{what} differ in their {quantity}, so they cannot share a column: {kinds}. Report them separately."
        )
