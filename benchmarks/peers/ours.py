# SPDX-License-Identifier: Apache-2.0
"""This package as a peer: its own step, batches and ranking with the protocol of the others.

A batch has as many tokens as `batch_users` users have on average. Like the hand-written step, it
does not apply dropout to attention weights.
"""

from bert4rec_jax import __version__
from bert4rec_jax.allocator import keep_freed_memory

keep_freed_memory()  # as the commands do, before NumPy starts threads

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

from protocol import (
    LIST_LENGTH,
    PeerConfig,
    PeerData,
    StepCount,
    ndcg_at_10,
    parse_arguments,
    serve,
    serve_lists,
    take_stdout,
)


def add_flags(parser):
    """Add this peer's own flags."""
    parser.add_argument(
        "--recommended",
        action="store_true",
        help="recommended recipe instead of the Cloze task: three rows in four learn "
        "the next item, and a history is ranked from two hidden states",
    )


arguments = parse_arguments(__doc__.splitlines()[0], add_flags)
answers = take_stdout()
peer = PeerConfig.load(arguments.config)

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bert4rec_jax.config import Config, base, recommended, resolve
from bert4rec_jax.data import load_dataset, prefetch
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.model import init_params
from bert4rec_jax.ranking import Cases, Ranker
from bert4rec_jax.serving import TitleIndex
from bert4rec_jax.serving.lists import ListOptions, write_lists


def experiment_config(data: PeerData, folder: str) -> Config:
    """Returns the peers' configuration on their data, which are written into `folder`."""
    users = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
    table = pa.table({"user": users, "item": data.items, "timestamp": np.arange(len(data.items))})
    pq.write_table(table, Path(folder) / "interactions.parquet")
    config = recommended() if arguments.recommended else base()
    config.seed = arguments.seed
    config.data.update(source="table", path=folder, cache_dir=folder)
    config.model.update(
        width=peer.width,
        layers=peer.layers,
        heads=peer.heads,
        ffn_width=peer.ffn_width,
        max_length=peer.max_length,
        dropout=peer.dropout,
        attention_dropout=0.0,
    )
    config.masking.probability = peer.mask_probability
    config.optimizer.learning_rate = peer.learning_rate
    lengths = np.diff(data.offsets) - 2
    tokens = peer.batch_users * np.minimum(lengths[lengths >= 2], peer.max_length).mean()
    multiple = (
        4 if arguments.recommended else 1
    )  # three quarters of the rows must be a whole number
    config.train.batch_rows = max(round(tokens / peer.max_length / multiple), 1) * multiple
    return resolve(config)


class Trainer:
    """The state of a run and its prefetched batches."""

    def __init__(self, run: Experiment, batches):
        self.run, self.batches, self.state = run, batches, run.initial_state()

    def step(self) -> StepCount:
        """Trains one step and waits for its end, like the peers."""
        batch = next(self.batches)
        self.state, metrics = self.run.step(self.state, batch, self.run.root)
        jax.block_until_ready(metrics)
        real = np.asarray(batch.segments) > 0
        users = int(((np.asarray(batch.from_left) == 0) & real).sum())
        return StepCount(int(real.sum()), real.size, users)


@functools.lru_cache
def ranker(run: Experiment, count: int) -> Ranker:
    """Returns a function that ranks the test item of the first `count` users."""
    cases = Cases(*(x[:count] for x in run.cases("test")))
    return Ranker(run.config, run.dataset, cases, run.layout)


@dataclass(frozen=True)
class Untrained:
    """The parts of a `Recommender` that `write_lists` uses, with random weights."""

    config: Config
    items_table: pd.DataFrame
    popularity: np.ndarray
    titles: TitleIndex
    num_items: int
    params: dict
    step: int = 0


def lists() -> None:
    """Serves the driver with the lists that `recommend --users FILE` writes."""
    with tempfile.TemporaryDirectory() as folder:
        # A second start reuses the compilation cache, as in normal use.
        jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "compiled"))
        config = experiment_config(PeerData.load(arguments.data), folder)
        dataset = load_dataset(config.data)
        catalogue = dataset.item_table()
        catalogue.index = range(1, len(catalogue) + 1)
        params = init_params(config.model, dataset.num_items, jax.random.key(arguments.seed))
        titles = TitleIndex(catalogue)
        popularity = np.ones(dataset.num_items, np.int64)
        model = Untrained(config, catalogue, popularity, titles, dataset.num_items, params)
        users = Path(folder) / "users.txt"
        users.write_text("\n".join(map(str, range(arguments.list_users))))

        def make() -> int:
            out = Path(folder) / "lists.parquet"
            out.unlink(missing_ok=True)
            return write_lists(model, str(out), ListOptions(LIST_LENGTH, str(users)))["users"]

        serve_lists(
            answers,
            make,
            {
                "peer": "ours",
                "parameters": sum(x.size for x in jax.tree.leaves(params)),
                "items": dataset.num_items,
                "version": f"bert4rec_jax {__version__}, jax {jax.__version__}",
            },
        )


def main() -> None:
    """Serves the driver."""
    if arguments.list_users:
        lists()
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Experiment(experiment_config(PeerData.load(arguments.data), folder))
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
