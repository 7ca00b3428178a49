# SPDX-License-Identifier: Apache-2.0
"""This program as a peer: its own step, batches and ranking behind the protocol of the others.

A batch has as many tokens as `batch_users` users have on average. Like the hand-written rival, it leaves out dropout
on attention weights.
"""

from bert4rec_jax import __version__
from bert4rec_jax.allocator import keep_freed_memory

keep_freed_memory()  # as the commands do, before NumPy starts threads

import functools
import tempfile
from pathlib import Path

from protocol import PeerConfig, PeerData, StepCount, ndcg_at_10, parse_arguments, serve, take_stdout

arguments = parse_arguments(__doc__.splitlines()[0])
answers = take_stdout()
peer = PeerConfig.load(arguments.config)

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert4rec_jax.config import base, resolve
from bert4rec_jax.data import prefetch
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.ranking import Cases, Ranker


def experiment(data: PeerData, folder: str) -> Experiment:
    """Returns the experiment of the peers' configuration on their data."""
    users = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
    table = pa.table({"user": users, "item": data.items, "timestamp": np.arange(len(data.items))})
    pq.write_table(table, Path(folder) / "interactions.parquet")
    config = base()
    config.seed = arguments.seed
    config.data.update(source="table", path=folder, cache_dir=folder)
    config.model.update(
        width=peer.width, layers=peer.layers, heads=peer.heads, ffn_width=peer.ffn_width, max_length=peer.max_length,
        dropout=peer.dropout, attention_dropout=0.0)
    config.masking.probability = peer.mask_probability
    config.optimizer.learning_rate = peer.learning_rate
    lengths = np.diff(data.offsets) - 2
    tokens = peer.batch_users * np.minimum(lengths[lengths >= 2], peer.max_length).mean()
    config.train.batch_rows = max(round(tokens / peer.max_length), 1)
    return Experiment(resolve(config))


class Trainer:
    """The state of a run and the batches that come ahead of it."""

    def __init__(self, run: Experiment, batches):
        self.run, self.batches, self.state = run, batches, run.initial_state()

    def step(self) -> StepCount:
        """Trains one step and waits for its end, as the peers do."""
        batch = next(self.batches)
        self.state, metrics = self.run.step(self.state, batch, self.run.root)
        jax.block_until_ready(metrics)
        real = np.asarray(batch.segments) > 0
        users = int(((np.asarray(batch.from_left) == 0) & real).sum())
        return StepCount(int(real.sum()), real.size, users)


@functools.lru_cache
def ranker(run: Experiment, count: int) -> Ranker:
    """Returns what ranks the test item of the first `count` users."""
    cases = Cases(*(x[:count] for x in run.cases("test")))
    return Ranker(run.config, run.dataset, cases, run.layout)


def main() -> None:
    """Serves the driver."""
    with tempfile.TemporaryDirectory() as folder:
        run = experiment(PeerData.load(arguments.data), folder)
        with prefetch(run.batch, 0, 10**9) as batches:
            trainer = Trainer(run, batches)

            def evaluate(count: int) -> dict:
                ranking = ranker(run, count).rank(trainer.state.params)
                ranks = ranking.ranks("pessimistic")
                return {"users": len(ranks), "ndcg@10": ndcg_at_10(ranks)}

            about = {
                "peer": "ours",
                "parameters": sum(x.size for x in jax.tree.leaves(trainer.state.params)),
                "version": f"bert4rec_jax {__version__}, jax {jax.__version__}",
            }
            serve(answers, arguments, trainer.step, evaluate, about)


if __name__ == "__main__":
    main()
