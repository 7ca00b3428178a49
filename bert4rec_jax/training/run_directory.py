# SPDX-License-Identifier: Apache-2.0
"""Writes a run directory: locks it, checks that it belongs to this run, and saves the results."""

import contextlib
import fcntl
import os
from typing import IO, Any

import jax
import numpy as np

from bert4rec_jax.config import NOT_IDENTITY, Config
from bert4rec_jax.data import Dataset
from bert4rec_jax.errors import UserError
from bert4rec_jax.files import replacing, write_json
from bert4rec_jax.run_files import LOCK, RunFiles
from bert4rec_jax.terminal import say
from bert4rec_jax.training.environment import describe_start, numeric_settings

# Fields in which a run may differ from the run whose model it evaluates: they change neither the
# training nor the choice of the best step.
_PROTOCOL_FIELDS = (
    "eval.protocol",
    "eval.ties",
    "eval.filter_seen",
    "eval.seen_targets",
    "eval.negatives_seed",
)
_ITEM_COLUMNS = ("item", "title", "year", "genres")


class RunDirectory:
    """A run directory that this process writes; a context manager that holds its lock.

    Attributes:
      files: the paths and readers of the directory.
      writes: whether this is the process of the job that writes files and prints messages.
    """

    def __init__(self, workdir: str, config: Config):
        """Takes the path and the configuration; entering the context creates the directory."""
        self.files = RunFiles(os.path.abspath(workdir))
        self.writes = jax.process_index() == 0
        self._workdir = str(self.files.folder)
        self._config = config
        self._lock: IO | None = None
        self._is_new = False

    def __enter__(self) -> "RunDirectory":
        """Creates and locks the directory.

        Raises:
          UserError: it cannot be written, or another process uses it.
        """
        self._is_new = not self.files.folder.exists()
        try:
            os.makedirs(self._workdir, exist_ok=True)
            if self.writes:
                self._lock = open(self.files.lock_path, "w")
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process uses {self._workdir}; wait until it ends, or choose another "
                "--workdir."
            ) from None
        except OSError as error:
            raise UserError(
                f"{self._workdir} cannot be written ({error.strerror}); choose another --workdir."
            ) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._lock:
            return
        self._lock.close()
        if kind is not None and self._is_new and os.listdir(self._workdir) == [LOCK]:
            # The run was rejected before it wrote anything.
            with contextlib.suppress(OSError):
                os.unlink(self.files.lock_path)
                os.rmdir(self._workdir)

    def claim(
        self, dataset: Dataset, popularity: np.ndarray, mode: str, trained_from: str = ""
    ) -> None:
        """Checks that the directory is new or belongs to this run, and records this start.

        Args:
          dataset: the data.
          popularity: int64[num_items + 1], training interactions of each item id.
          mode: train or evaluate.
          trained_from: run directory whose model is evaluated here; "": this one.

        Raises:
          UserError: it belongs to another configuration or other data; names the difference.
        """
        self._check_config(NOT_IDENTITY)
        self._check_data(dataset, popularity)
        if mode == "train":
            self._check_settings()
        if not self.writes:
            return
        environment = self.files.environment() or {}
        starts = [*environment.get("starts", []), describe_start(mode)]
        write_json(self.files.config_path, self._config.to_dict())
        write_json(
            self.files.environment_path,
            {
                **_fingerprints(dataset),
                "trained_from": trained_from,
                "jax_settings": numeric_settings(),
                "starts": starts,
            },
        )
        self._write_items(dataset, popularity)

    def check_trained(self, dataset: Dataset, popularity: np.ndarray) -> None:
        """Checks that this is a finished run whose model may be evaluated on these data.

        Its configuration may differ from ours in the evaluation protocol only.

        Args:
          dataset: the data.
          popularity: int64[num_items + 1], training interactions of each item id.

        Raises:
          UserError: the run is not finished, or differs; names the difference.
        """
        if self.files.results() is None:
            raise UserError(
                f"{self._workdir} is not a finished run; name a run that has been trained and "
                "evaluated."
            )
        self._check_config((*NOT_IDENTITY, *_PROTOCOL_FIELDS))
        self._check_data(dataset, popularity)

    def check_fresh_start(self) -> None:
        """Checks that no checkpoint was lost; call it if the directory contains none.

        Raises:
          UserError: results or metrics show that there were checkpoints.
        """
        lines = self.files.metrics()
        newest = max((line["step"] for line in lines if line["split"] != "test"), default=0)
        train = self._config.train
        saved_before = [
            step
            for step in range(1, newest)
            if step % train.checkpoint_every == 0 or step % train.eval_every == 0
        ]
        # A save starts only after the save before it is complete.
        has_results = newest > 0 and self.files.results_path.exists()
        if has_results or len(saved_before) > 1:
            raise UserError(
                f"{self.files.checkpoints_path} contains no checkpoint, although this run reached "
                f"step {newest}; restore that folder, or choose another --workdir to train again."
            )
        if newest and self.writes:
            say(
                f"note: {self.files.checkpoints_path} does not contain a checkpoint, and the "
                f"earlier run reached step {newest}; training starts again from step 0."
            )

    def write_results(self, results: dict, ranks: dict[str, Any]) -> None:
        """Writes ranks_test.npz, then results.json, which marks the run as trained and ranked."""
        if not self.writes:
            return
        with replacing(self.files.ranks_path, "wb") as file:
            np.savez_compressed(file, **ranks)
        write_json(self.files.results_path, results)

    def _check_data(self, dataset: Dataset, popularity: np.ndarray) -> None:
        if not self._contains_work():
            return
        environment = self.files.environment()
        if environment:
            for name, fingerprint in _fingerprints(dataset).items():
                before = environment.get(name)
                if before != fingerprint:
                    raise UserError(
                        f"{self._workdir} belongs to other {name.removesuffix('_fingerprint')} "
                        f"(fingerprint {before}, not {fingerprint}); choose another --workdir or "
                        "restore the data."
                    )
        if not self.files.items_path.exists():
            return
        # Another version of this package may split the same data differently.
        counts = self.files.items(["training_interactions"])["training_interactions"].to_numpy()
        if not np.array_equal(counts, popularity[1:]):
            raise UserError(
                f"{self._workdir} was trained on {counts.sum():,} events, but this version would "
                f"train on {popularity[1:].sum():,} events of the same data; choose another "
                "--workdir and train again."
            )

    def _check_settings(self) -> None:
        """Raises a UserError if JAX would compute other numbers than in the earlier start."""
        environment = self.files.environment()
        if not environment or not self._contains_work():
            return
        before = environment.get("jax_settings", {})
        for name, value in numeric_settings().items():
            if name in before and before[name] != value:
                raise UserError(
                    f"{self._workdir} was trained with the JAX setting {name} = "
                    f"{before[name]!r}. It is now {value!r}, which changes the results; restore "
                    "it, or choose another --workdir."
                )

    def _check_config(self, free: tuple[str, ...]) -> None:
        """Raises a UserError if a field outside `free` differs from the recorded configuration."""
        recorded = self.files.config()
        if recorded is None or not self._contains_work():
            return
        # A field that was added after the run had its default then.
        old = _flatten(Config().to_dict()) | _flatten(recorded)
        new = _flatten(self._config.to_dict())
        differing = [
            name
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and not name.startswith(free)
        ]
        if not differing:
            return
        constant = new["optimizer.schedule"] == "constant"
        if differing == ["train.steps"] and constant and self._warms_up_before(old, new):
            # A longer run has the same learning rates, and so has a shorter one.
            self._check_steps(new["train.steps"])
            return
        name = differing[0]
        more = f" ({len(differing) - 1} more fields differ)" if differing[1:] else ""
        raise UserError(
            f"{self._workdir} belongs to another run: config.{name} was {old.get(name)!r} and is "
            f"now {new.get(name)!r}{more}; choose another --workdir."
        )

    def _warms_up_before(self, *runs: dict[str, Any]) -> bool:
        """Returns whether no run is too short for its warm-up, which would be shortened."""
        return all(run["optimizer.warmup_steps"] < run["train.steps"] for run in runs)

    def _check_steps(self, steps: int) -> None:
        newest = max(self.files.checkpoint_steps(), default=0)
        if steps < newest:
            raise UserError(
                f"{self._workdir} has a checkpoint of step {newest}, and config.train.steps is now "
                f"{steps}; give {newest} or more, or choose another --workdir."
            )

    def _contains_work(self) -> bool:
        """Returns whether there is a checkpoint or a result that another run would spoil."""
        return bool(self.files.checkpoint_steps()) or self.files.results_path.exists()

    def _write_items(self, dataset: Dataset, popularity: np.ndarray) -> None:
        """Saves the item table, so that recommending needs only the run directory."""
        if self.files.items_path.exists() and self._contains_work():
            return
        table = dataset.item_table()
        table = table[[name for name in _ITEM_COLUMNS if name in table.columns]]
        table["training_interactions"] = popularity[1:]
        if dataset.features is not None:
            table["features"] = dataset.features.lists(dataset.num_items)
        with replacing(self.files.items_path, "wb") as file:
            table.to_parquet(file)


def _fingerprints(dataset: Dataset) -> dict[str, str]:
    fingerprints = {"data_fingerprint": dataset.fingerprint}
    if dataset.features is not None:
        fingerprints["features_fingerprint"] = dataset.features.fingerprint
    return fingerprints


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as dotted name -> value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
