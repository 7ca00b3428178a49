# SPDX-License-Identifier: Apache-2.0
"""Finished runs on disk, grouped into the rows of a table: one row per setting, one value per seed."""

import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.errors import UserError
from bert4rec_jax.ranking.metrics import per_user

FILES = ("config.json", "environment.json", "metrics.jsonl", "results.json", "ranks_test.npz")
BASELINES = ("popular", "popular_recent")

# Beginnings of fields that name places, decide what is printed or how work is laid out, and do not change what is
# computed; runs that differ only here are the same experiment.
_INCIDENTAL = (
    "seed",
    "data.path",
    "data.items_path",
    "data.cache_dir",
    "train.writers",
    "train.log_every",
    "train.checkpoint_every",
    "parallel.",
    "model.remat",
    "eval.batch_rows",
)


class Run:
    """The record of a finished run; large parts are read when first used."""

    def __init__(self, path: Path):
        """Reads the record in `path`.

        Raises:
          UserError: a file is missing or damaged.
        """
        self.path = path
        self.config, self.environment, self.results = (self._json(name) for name in FILES if name.endswith(".json"))

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.results["seed"]

    @property
    def dataset(self) -> dict:
        """Name, fingerprint and counts of the data."""
        return self.results["dataset"]

    @property
    def device_hours(self) -> float:
        """Hours of training and evaluation times devices."""
        seconds = self.results["train_seconds"] + self.results["eval_seconds"]
        return seconds * self.environment["device_count"] / 3600

    @cached_property
    def fields(self) -> dict:
        """The config as dotted name -> value; a field that came later than the record has its default."""
        return flatten(Config().to_dict()) | flatten(self.config)

    @cached_property
    def curve(self) -> list[dict]:
        """The lines of metrics.jsonl; of steps that a resumed run repeated, the last."""
        try:
            lines = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}/metrics.jsonl cannot be read: {error}") from None
        return list({(line["split"], line["step"]): line for line in lines}.values())

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """The arrays of ranks_test.npz."""
        try:
            with np.load(self.path / "ranks_test.npz") as arrays:
                return dict(arrays)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}/ranks_test.npz cannot be read: {error}") from None

    def command(self) -> str:
        """Returns the command that made the run, without folders of the machine it ran on."""
        words = self.environment["command"]
        first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
        kept, skip = [], False
        for word in words[first:]:
            if not skip and word != "--workdir" and not word.startswith("--workdir="):
                kept.append(portable(word))
            skip = word == "--workdir"
        return " ".join(["python -m bert4rec_jax.main", *kept])

    def _json(self, name: str) -> dict:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}/{name} cannot be read: {error}; is it a run directory?") from None


@dataclass(frozen=True)
class Row:
    """A model in one setting, or a baseline.

    Attributes:
      name: as shown.
      runs: one per seed.
      baseline: empty, or which of the runs' baselines this is.
      changes: dotted fields that tell the row from others of its model.
    """

    name: str
    runs: tuple[Run, ...]
    baseline: str
    changes: dict

    def values(self, metric: str, split: str) -> np.ndarray:
        """Returns float64[runs], one metric of each seed; nan where a baseline does not have it.

        Raises:
          UserError: a run has no such metric.
        """
        if self.baseline:
            parts = [run.results["baselines"][self.baseline].get(split, {}) for run in self.runs]
            return np.array([part.get(metric, np.nan) for part in parts], np.float64)
        for run in self.runs:
            if metric not in (known := run.results[split]):
                raise UserError(f"{run.path} has no {split} {metric}; it has {', '.join(known)}.")
        return np.array([run.results[split][metric] for run in self.runs], np.float64)

    def ranks(self, run: Run) -> np.ndarray:
        """Returns [cases], the ranks of this row's model in one of its runs."""
        return run.ranks[f"{self.baseline}_rank" if self.baseline else "rank"]

    def per_case(self, metric: str) -> np.ndarray:
        """Returns float64[cases], the metric of each test case as a mean over seeds."""
        return np.mean([per_user(metric, self.ranks(run)) for run in self.runs], axis=0)


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
        _require_same(group, lambda run: run.dataset["fingerprint"], f"data called {name}", "data fingerprint")
        _require_same(group, lambda run: run.results["protocol"], f"runs on {name}", "protocol")
    return groups


def rows(runs: Sequence[Run]) -> tuple[list[Row], dict]:
    """Groups runs of one dataset into rows; the baselines that were ranked beside them come first.

    Within a model, up to two varying fields are all named; with more, a row names what differs from the most
    common value.

    Returns:
      The rows, and per model the most common values that its rows do not name (empty where all are named).

    Raises:
      UserError: two runs of one setting have the same seed.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        setting = {k: v for k, v in run.fields.items() if not k.startswith(_INCIDENTAL)}
        groups.setdefault((run.results["model"], json.dumps(setting, sort_keys=True)), []).append(run)
    found, commons = _baseline_rows(runs), {}
    for model in dict.fromkeys(key[0] for key in groups):
        own = [sorted(group, key=lambda run: run.seed) for key, group in groups.items() if key[0] == model]
        varying = [
            name
            for name in own[0][0].fields
            if not name.startswith(_INCIDENTAL) and len({repr(group[0].fields.get(name)) for group in own}) > 1
        ]
        common = {}
        if len(varying) > 2:
            # Where values are equally common, the first run's wins: an ablation begins with its base.
            common = {n: Counter(g[0].fields[n] for g in own).most_common(1)[0][0] for n in varying}
            commons[model] = common
        for group in own:
            _require_distinct_seeds(group)
            changes = {n: group[0].fields[n] for n in varying if n not in common or group[0].fields[n] != common[n]}
            found.append(Row(", ".join([model, *describe(changes, varying)]), tuple(group), "", changes))
    return found, commons


def describe(changes: dict, among: Sequence[str]) -> list[str]:
    """Returns fields as `width=64`, with the group's name only where `among` has two fields of that name."""
    leaves = Counter(name.rpartition(".")[2] for name in among)
    return [
        f"{name if leaves[name.rpartition('.')[2]] > 1 else name.rpartition('.')[2]}={value}"
        for name, value in changes.items()
    ]


def flatten(values: dict, prefix: str = "") -> dict:
    """Returns nested dicts as dotted name -> value."""
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def export(runs: Sequence[Run], destination: Path) -> list[Path]:
    """Copies the records of runs, without checkpoints and data, under `destination`; returns the new folders.

    Host names and the leading part of absolute paths stay behind: they say nothing about the numbers. So does the item
    that each user met: it is data, and the terms of most data sets forbid to pass it on. A digest takes its place.
    """
    made = []
    for run in runs:
        parent = run.path.resolve().parent.name
        folder = destination / (f"{parent}-{run.path.name}" if run.path.name.isdigit() else run.path.name)
        if folder in made or folder.resolve() == run.path.resolve():
            raise UserError(f"the record of {run.path} would overwrite another in {folder}; give another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if name.endswith(".json"):
                values = portable(run._json(name))
                values.pop("host", None)
                (folder / name).write_text(json.dumps(values, indent=1) + "\n")
            elif name.endswith(".npz"):
                kept = {k: v for k, v in run.ranks.items() if k != "item"}
                np.savez_compressed(folder / name, **kept | {"item_digest": item_digest(run.ranks)})
            else:
                shutil.copyfile(run.path / name, folder / name)
        made.append(folder)
    return made


def item_digest(ranks: dict[str, np.ndarray]) -> np.ndarray:
    """Returns uint8[32], the SHA-256 of the cases' items, from a run's ranks or from a record's."""
    if "item_digest" in ranks:
        return ranks["item_digest"]
    return np.frombuffer(hashlib.sha256(ranks["item"].astype("<i4").tobytes()).digest(), np.uint8)


def portable(value):
    """Returns JSON values with every absolute path cut to its last part, also in `--flag=/path`."""
    if isinstance(value, dict):
        return {key: portable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [portable(part) for part in value]
    if not isinstance(value, str):
        return value
    flag, equals, path = value.rpartition("=") if value.startswith("--") else ("", "", value)
    return flag + equals + PurePath(path).name if PurePath(path).is_absolute() else value


def _baseline_rows(runs: Sequence[Run]) -> list[Row]:
    found = []
    for name in BASELINES:
        # Baselines do not depend on the model beside them: one run per seed says all.
        seeds = {run.seed: run for run in reversed(runs) if name in run.results.get("baselines", {})}
        if seeds:
            found.append(Row(name, tuple(seeds[seed] for seed in sorted(seeds)), name, {}))
    return found


def _require_same(runs: Sequence[Run], key, what: str, quantity: str) -> None:
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(str(run.path))
    if len(groups) > 1:
        kinds = " / ".join(
            f"{value!r} in {', '.join(paths[:3])}{' ...' * (len(paths) > 3)}" for value, paths in groups.items()
        )
        raise UserError(
            f"{what} differ in their {quantity}, so they cannot share a column: {kinds}. Report them separately."
        )


def _require_distinct_seeds(runs: Sequence[Run]) -> None:
    for first, second in itertools.pairwise(runs):
        if first.seed == second.seed:
            raise UserError(
                f"{first.path} and {second.path} are the same setting with the same seed; "
                "leave one out, it would count twice."
            )
