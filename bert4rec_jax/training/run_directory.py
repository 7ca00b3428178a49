# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: who owns it, what it is a run of, and the files it ends with."""

import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from bert4rec_jax import __version__
from bert4rec_jax.config import NOT_IDENTITY, Config
from bert4rec_jax.data import Dataset
from bert4rec_jax.errors import UserError
from bert4rec_jax.files import replacing, write_json

# What may differ between a run and one that ranks with its model: they do not change what is trained or chosen.
_PROTOCOL = (
    "eval.protocol",
    "eval.ties",
    "eval.filter_seen",
    "eval.seen_targets",
    "eval.negatives_seed",
)
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas")


class RunDirectory:
    """Holds a workdir for one process; a context manager."""

    def __init__(self, workdir: str, config: Config):
        """Notes where and what; nothing is touched before the context is entered."""
        self._workdir, self._config, self._lock = os.path.abspath(workdir), config, None
        self.writes = jax.process_index() == 0

    def path(self, name: str) -> str:
        """Returns the path of a file of the run."""
        return os.path.join(self._workdir, name)

    def __enter__(self) -> "RunDirectory":
        """Makes and locks the directory.

        Raises:
          UserError: it cannot be written, or another process is at work in it.
        """
        try:
            os.makedirs(self._workdir, exist_ok=True)
            if self.writes:
                self._lock = open(self.path(".lock"), "w")
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is at work in {self._workdir}; wait for it or choose another "
                "--workdir."
            ) from None
        except OSError as error:
            raise UserError(
                f"{self._workdir} cannot be written ({error.strerror}); choose another --workdir."
            ) from None
        return self

    def __exit__(self, *_) -> None:
        if self._lock:
            self._lock.close()

    def claim(self, dataset: Dataset, popularity: np.ndarray, mode: str) -> None:
        """Makes this the directory of the configuration and data, or checks that it already is; notes the start.

        Args:
          dataset: the data.
          popularity: int64[num_items + 1], training interactions of each item id.
          mode: what the start is for: train or evaluate.

        Raises:
          UserError: it belongs to another configuration or other data; names what differs.
        """
        self._check_config(NOT_IDENTITY)
        self._check_data(dataset, popularity)
        if self.writes:
            write_json(self.path("config.json"), self._config.to_dict())
            starts = (self.read("environment.json") or {"starts": []})["starts"]
            write_json(
                self.path("environment.json"),
                _fingerprints(dataset) | {"starts": [*starts, _start(mode)]},
            )
            self._write_catalogue(dataset, popularity)

    def check_trained(self, dataset: Dataset, popularity: np.ndarray) -> None:
        """Checks that this is a finished run on the same data whose configuration differs in the protocol at most.

        Args:
          dataset: the data.
          popularity: int64[num_items + 1], training interactions of each item id.

        Raises:
          UserError: it is not one; names what differs.
        """
        if self.read("results.json") is None:
            raise UserError(
                f"{self._workdir} is no finished run; name one that has been trained and ranked."
            )
        self._check_config((*NOT_IDENTITY, *_PROTOCOL))
        self._check_data(dataset, popularity)

    def _check_data(self, dataset: Dataset, popularity: np.ndarray) -> None:
        environment = self.read("environment.json")
        for name, fingerprint in _fingerprints(dataset).items():
            before = environment and environment.get(name)
            if before != fingerprint and environment and self._holds_something():
                raise UserError(
                    f"{self._workdir} belongs to other {name.removesuffix('_fingerprint')} (fingerprint "
                    f"{before}, not {fingerprint}); choose another --workdir or restore the data."
                )
        # Another version of the program may split the same data otherwise.
        counts = self._trained_on() if self._holds_something() else None
        if counts is not None and not np.array_equal(counts, popularity[1:]):
            raise UserError(
                f"{self._workdir} was trained on {counts.sum():,} events, and the present program would train on "
                f"{popularity[1:].sum():,} of these data; choose another --workdir and train again."
            )

    def _trained_on(self) -> np.ndarray | None:
        """Returns int64[num_items], the training interactions that the run has noted, None where it has not."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self.path("catalogue.parquet"), columns=["training_interactions"])
        except (OSError, pa.ArrowInvalid):  # whoever needs it says so
            return None
        return table["training_interactions"].to_numpy()

    def _check_config(self, free: tuple[str, ...]) -> None:
        before = self.read("config.json")
        if before is None:
            return
        # A field that is younger than the run had its default then.
        old, new = _flatten(Config().to_dict()) | _flatten(before), _flatten(self._config.to_dict())
        differing = [
            k
            for k in sorted(old.keys() | new.keys())
            if old.get(k) != new.get(k) and not k.startswith(free)
        ]
        if differing == ["train.steps"] and new["optimizer.schedule"] == "constant":
            # A longer run of the same curve, or a shorter one as far as it has not been run yet.
            if new["train.steps"] < (newest := max(self._checkpoint_steps(), default=0)):
                raise UserError(
                    f"{self._workdir} has a checkpoint of step {newest}, and config.train.steps is now "
                    f"{new['train.steps']}; give {newest} or more, or choose another --workdir."
                )
            return
        if differing and self._holds_something():
            name = differing[0]
            raise UserError(
                f"{self._workdir} belongs to another run: config.{name} was {old.get(name)!r} and is now "
                f"{new.get(name)!r}"
                + (f" ({len(differing) - 1} more fields differ)" if differing[1:] else "")
                + "; choose another --workdir."
            )

    def _holds_something(self) -> bool:
        """Whether there is a checkpoint or a result that another configuration would spoil."""
        return bool(self._checkpoint_steps()) or os.path.exists(self.path("results.json"))

    def _checkpoint_steps(self) -> list[int]:
        folder = self.path("checkpoints")
        return (
            [int(name) for name in os.listdir(folder) if name.isdigit()]
            if os.path.isdir(folder)
            else []
        )

    def _write_catalogue(self, dataset: Dataset, popularity: np.ndarray) -> None:
        """Keeps what recommending needs, so that a run directory can be moved to another machine."""
        path = self.path("catalogue.parquet")
        if not os.path.exists(path) or not self._holds_something():
            table = dataset.item_table()
            table = table[[c for c in ("item", "title", "year", "genres") if c in table.columns]]
            table["training_interactions"] = popularity[1:]
            if dataset.features is not None:
                table["features"] = dataset.features.lists(dataset.num_items)
            with replacing(path, "wb") as file:
                table.to_parquet(file)

    def read(self, name: str) -> Any | None:
        """Returns the content of a JSON file of the run, or None where there is no such file."""
        try:
            with open(self.path(name), encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return None
        except ValueError:
            raise UserError(
                f"{self.path(name)} is not valid JSON; it was not written by this program: choose another "
                "--workdir."
            ) from None

    def write_results(self, results: dict, ranks: dict[str, np.ndarray]) -> None:
        """Writes ranks_test.npz, then results.json, whose presence means that the model is trained and ranked."""
        if not self.writes:
            return
        with replacing(self.path("ranks_test.npz"), "wb") as file:
            np.savez_compressed(file, **ranks)
        write_json(self.path("results.json"), results)


def _fingerprints(dataset: Dataset) -> dict[str, str]:
    features = (
        {} if dataset.features is None else {"features_fingerprint": dataset.features.fingerprint}
    )
    return {"data_fingerprint": dataset.fingerprint, **features}


def _flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _start(mode: str) -> dict:
    """Returns what there is to know about this start of the program."""
    commit = _git("rev-parse", "HEAD")
    return {
        "mode": mode,
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": commit,
        # Untracked files count too: one that is imported changes the program.
        "git_dirty": None
        if commit is None
        else bool(_git("status", "--porcelain", "--", _PACKAGE)),
        "versions": {
            "bert4rec_jax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "devices": [str(device) for device in jax.devices()],
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "host": platform.node(),
    }


def _git(*arguments: str) -> str | None:
    """Returns what git says of the program's checkout, None where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", _PACKAGE, *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
