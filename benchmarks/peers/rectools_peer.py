# SPDX-License-Identifier: Apache-2.0
"""RecTools' BERT4Rec: its data preparator, its Lightning module and trainer,
its `recommend` and metrics.

Training is `Trainer.fit` of PyTorch Lightning with RecTools' settings, stopped after a time limit;
evaluation is `recommend` with viewed items filtered, and NDCG@10 by `calc_metrics`. RecTools'
blocks are pre-norm, its item table lacks a bias, its loss takes logits at every position, and its
catalogue contains the items that occur in the histories after truncation to `max_length`.
"""

import os
import tempfile
import time

from protocol import (
    LIST_LENGTH,
    PeerConfig,
    PeerData,
    StepCount,
    count_tokens,
    parse_arguments,
    serve,
    serve_lists,
    set_threads,
)
from protocol import take_stdout as take_answers

arguments = parse_arguments(__doc__.splitlines()[0])
answers = take_answers()
config = PeerConfig.load(arguments.config)
data = PeerData.load(arguments.data)
set_threads(config.threads)
folder = tempfile.TemporaryDirectory(prefix="rectools_")
os.chdir(folder.name)  # Lightning may write to the current folder

import logging
import warnings

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import rectools
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG, calc_metrics
from rectools.models import BERT4RecModel

torch.set_num_threads(config.threads)
warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)


class Clock(pl.Callback):
    """Counts steps and stops the trainer after the time limit."""

    def __init__(self, seconds: float):
        self.seconds, self.counts = seconds, []
        self.begin = self.elapsed = 0.0

    def on_train_start(self, trainer, module):
        """Start the clock."""
        self.begin = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        """Count the batch and check the time."""
        self.counts.append(count_tokens(batch["x"]))
        self.elapsed = time.perf_counter() - self.begin
        if self.elapsed + 0.5 * self.elapsed / len(self.counts) >= self.seconds:
            trainer.should_stop = True


def table(users: np.ndarray, drop_last: int) -> pd.DataFrame:
    """Return the interactions of `users` without the last `drop_last` of each,
    in RecTools' columns.
    """
    begins, ends = data.offsets[users], data.offsets[users + 1] - drop_last
    lengths = ends - begins
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return pd.DataFrame(
        {
            Columns.User: np.repeat(users, lengths),
            Columns.Item: data.items[np.repeat(begins, lengths) + within],
            Columns.Weight: 1,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(within, unit="s"),
        }
    )


class Peer:
    """RecTools' model, created as in its `fit` makes it."""

    def __init__(self):
        pl.seed_everything(arguments.seed)
        everyone = np.arange(data.num_users)
        self.model = BERT4RecModel(
            n_blocks=config.layers,
            n_heads=config.heads,
            n_factors=config.width,
            dropout_rate=config.dropout,
            mask_prob=config.mask_probability,
            session_max_len=config.max_length,
            loss="softmax",
            lr=config.learning_rate,
            batch_size=config.batch_users,
            transformer_layers_kwargs={"ff_factors_multiplier": config.ffn_width // config.width},
            recommend_torch_device="cpu",
        )
        # Lists use the whole catalogue, so the last items of users are not held out.
        self.model._build_model_from_dataset(
            Dataset.construct(table(everyone, 0 if arguments.list_users else 2))
        )
        self.loader = self.model.data_preparator.get_dataloader_train()
        self.module = self.model.lightning_model
        self.known = Dataset.construct(table(everyone, 0 if arguments.list_users else 1))

    def train(self, seconds: float) -> dict:
        """Run the trainer until the time limit."""
        clock = Clock(seconds)
        trainer = pl.Trainer(
            max_epochs=1_000_000,
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[clock],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        self.module.train()
        trainer.fit(self.module, self.loader)
        # RecTools keeps its optimizer between fits, so the first step of a window is like any
        # other.
        self.model.fit_trainer, self.model.is_fitted = trainer, True
        self.counts = clock.counts
        return {
            "steps": len(clock.counts),
            "seconds": clock.elapsed,
            "real_tokens": sum(count.real_tokens for count in clock.counts),
            "padded_tokens": sum(count.padded_tokens for count in clock.counts),
            "users": sum(count.users for count in clock.counts),
        }

    def step(self) -> StepCount:
        """Train one step."""
        self.train(0.0)
        return self.counts[0]

    def evaluate(self, count: int) -> dict:
        """Recommend to the first `count` users and compute NDCG@10."""
        users = np.arange(min(count, data.num_users))
        truth = pd.DataFrame(
            {Columns.User: users, Columns.Item: data.items[data.offsets[users + 1] - 1]}
        )
        lists = self.model.recommend(users=users, dataset=self.known, k=10, filter_viewed=True)
        value = calc_metrics({"ndcg": NDCG(k=10, divide_by_achievable=True)}, lists, truth)["ndcg"]
        return {"users": len(users), "ndcg@10": float(value)}

    def lists(self) -> int:
        """Make the lists of all users with RecTools' `recommend`."""
        users = np.arange(arguments.list_users)
        lists = self.model.recommend(
            users=users, dataset=self.known, k=LIST_LENGTH, filter_viewed=True
        )
        return lists[Columns.User].nunique()


def main() -> None:
    """Serve the benchmark's driver."""
    peer = Peer()
    about = {
        "peer": "rectools",
        "parameters": sum(parameter.numel() for parameter in peer.module.torch_model.parameters()),
        "version": f"rectools {rectools.__version__}, torch {torch.__version__}",
    }
    if arguments.list_users:
        peer.model.is_fitted = True
        serve_lists(
            answers, peer.lists, about | {"items": peer.model.data_preparator.item_id_map.size}
        )
        return
    serve(answers, arguments, peer.step, peer.evaluate, about, train_window=peer.train)


if __name__ == "__main__":
    main()
