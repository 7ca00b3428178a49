# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec in JAX: trains on sequences of items and ranks the items that come next.

  import bert4rec_jax

  config = bert4rec_jax.config.recommended()
  config.data.source = "ml-1m"
  results = bert4rec_jax.train(config, "runs/ml_1m")
  recommender = bert4rec_jax.load("runs/ml_1m")
  recommender.recommend(["Toy Story (1995)", "Heat (1995)"], k=10)

Array names end in their axes: B rows of a batch, L columns of a row, K target slots of a row, M all
target slots of a batch, N ids or histories, Q queries, H heads, E width of a head, D width, C one
chunk of items or of keys, J sampled negatives or candidates, P pairs of an item or history and
another item or feature, F features, R rows of any table, S shards, V rows of the item table.
"""

import importlib
from typing import TYPE_CHECKING, Any, TypeAlias, Union

if TYPE_CHECKING:
    import ml_collections

    from bert4rec_jax import config as config
    from bert4rec_jax.config import Config
    from bert4rec_jax.serving import Recommender

__version__ = "0.3.0"
__all__ = ["Config", "Recommender", "config", "evaluate", "load", "train"]

ConfigLike: TypeAlias = Union["Config", "ml_collections.ConfigDict", dict[str, Any]]


def train(config: ConfigLike, workdir: str) -> dict[str, Any]:
    """Trains a model and ranks the test users with its best checkpoint.

    If `workdir` contains checkpoints of the same run, training continues from the newest one.

    Args:
      config: from `config.base()`, `config.recommended()` or `config.load(file)`, with the fields
        that you changed. Nested dicts and a resolved `Config` also work.
      workdir: folder of the run, created if missing. It receives checkpoints, metrics and results.

    Returns:
      The content of results.json: test and validation metrics, the protocol, and statistics of the
      data and the run.

    Raises:
      KeyboardInterrupt: Ctrl-C or another stop signal. The state is saved; the same call continues.
      UserError: something that you can fix, such as a wrong field. The message states the remedy.
    """
    from bert4rec_jax.experiment import train_and_evaluate

    return train_and_evaluate(_resolved(config), workdir)


def evaluate(config: ConfigLike, workdir: str, trained_from: str = "") -> dict[str, Any]:
    """Ranks the test users with the best checkpoint of a trained run.

    Args:
      config: the config of the run. With `trained_from`, the fields of `config.eval` may differ,
        for example `eval.protocol`.
      workdir: folder that receives the results.
      trained_from: folder of the trained run (default: `workdir`).

    Returns:
      The content of results.json, as `train` returns it.

    Raises:
      KeyboardInterrupt: Ctrl-C or another stop signal.
      UserError: the checkpoint is missing, or it belongs to another configuration or other data.
    """
    from bert4rec_jax import experiment

    return experiment.evaluate(_resolved(config), workdir, trained_from)


def load(workdir: str) -> "Recommender":
    """Returns a `Recommender` with the best model of a trained run and its item titles.

    Args:
      workdir: folder of the run.

    Raises:
      UserError: the folder contains no trained model.
    """
    from bert4rec_jax.serving import Recommender

    return Recommender(workdir)


def _resolved(values: ConfigLike) -> "Config":
    from bert4rec_jax.config import Config, resolve

    return values if isinstance(values, Config) else resolve(values)


def __getattr__(name: str) -> Any:
    """Imports `config`, `Config` and `Recommender` when they are first used.

    A command imports this module before it can handle Ctrl-C, so it has to be imported quickly.
    """
    modules = {"config": "config", "Config": "config", "Recommender": "serving"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"bert4rec_jax.{modules[name]}")
    return module if name == "config" else getattr(module, name)
