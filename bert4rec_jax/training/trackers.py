# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers: TensorBoard, Weights & Biases, MLflow."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bert4rec_jax.errors import UserError


class Tracker(Protocol):
    """Receives the metrics of a run."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Records values such as `valid/ndcg@10` at a step."""

    def close(self) -> None:
        """Ends the run in the tracker."""


def open_trackers(names: str, folder: Path) -> list[Tracker]:
    """Returns the trackers of a run.

    Args:
      names: comma-separated names, as in `config.train.writers`.
      folder: absolute path of the run directory.

    Raises:
      UserError: the package of a tracker is not installed.
    """
    return [_open(name.strip(), folder) for name in names.split(",") if name.strip()]


def _open(name: str, folder: Path) -> Tracker:
    kinds: dict[str, Callable[[Path], Tracker]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WandB,
        "mlflow": _MLflow,
    }
    try:
        return kinds[name](folder)
    except ImportError:
        raise UserError(
            f"config.train.writers = {name!r} needs a package: pip install 'bert4rec_jax[{name}]'."
        ) from None


class _TensorBoard:
    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, folder: Path):
        import wandb

        # The trials of all sweeps are named 000, 001, ...; their paths distinguish them.
        identity = hashlib.sha256(f"{folder}/".encode()).hexdigest()[:16]
        self._run = wandb.init(
            project="bert4rec_jax", name=folder.name, id=identity, resume="allow", dir=str(folder)
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, folder: Path):
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment("bert4rec_jax")
        mlflow.start_run(run_name=folder.name)

    def log(self, step: int, values: dict[str, float]) -> None:
        # MLflow rejects metric names with an @.
        renamed = {name.replace("@", "_at_"): value for name, value in values.items()}
        self._mlflow.log_metrics(renamed, step=step)

    def close(self) -> None:
        self._mlflow.end_run()
