# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec in JAX: sequences in, ranked catalogues out.

  results = bert4rec_jax.train(config, "runs/mine")     # what `python -m bert4rec_jax.main` does
  run = bert4rec_jax.load("runs/mine")                  # a `serving.Recommender`
  run.recommend(["Toy Story (1995)", "Heat (1995)"], k=10)

Array names carry their axes: B rows of a batch, L positions of a row, K target slots of a row, M all target slots of a
batch, N histories or ids, Q queries, H heads, E width of a head, D width, C sampled candidates or one chunk of items,
P (history, item) pairs, V rows of the item table.
"""

__version__ = "0.3.0"
__all__ = ["load", "train"]


def load(workdir: str):
    """Returns the `serving.Recommender` of a run: its best model with the titles that it knows.

    Raises:
      UserError: `workdir` holds no trained model.
    """
    from bert4rec_jax.serving import Recommender

    return Recommender(workdir)


def train(config, workdir: str) -> dict | None:
    """Trains in `workdir`, or goes on training there, and ranks the test users with the best checkpoint.

    Args:
      config: a ConfigDict such as `bert4rec_jax.config.recommended()` with fields changed, nested dicts, or a
        resolved `Config`.
      workdir: directory of the run.

    Returns:
      What results.json holds; None when a signal stopped the run, which the same call continues.

    Raises:
      UserError: for anything the user can put right.
    """
    from bert4rec_jax.config import Config, resolve
    from bert4rec_jax.experiment import train_and_evaluate

    return train_and_evaluate(config if isinstance(config, Config) else resolve(config), workdir)
