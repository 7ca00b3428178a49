# SPDX-License-Identifier: Apache-2.0
"""RecBole's BERT4Rec with its own data set (one row per prefix), loaders, trainer and evaluator.

Training is `Trainer._train_epoch` over RecBole's own loader, stopped after a time limit; evaluation
is `Trainer.evaluate` over its full-sort loader for the first users (RecBole does not remove seen
items for sequential models, so this ranks over a slightly larger set). Importing RecBole's
sequential models turns PyTorch's anomaly detection on for the whole process, and thus for every
user of RecBole; `--no_anomaly` turns it off again. Lists are made by RecBole's own
`full_sort_topk`, in batches of users.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

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


def add_flags(parser):
    """Add this peer's own flags."""
    parser.add_argument(
        "--no_anomaly", action="store_true", help="turn PyTorch's anomaly detection off"
    )
    parser.add_argument("--eval_batch", type=int, default=256, help="users ranked at a time")


arguments = parse_arguments(__doc__.splitlines()[0], add_flags)
answers = take_answers()
config = PeerConfig.load(arguments.config)
data = PeerData.load(arguments.data)
set_threads(config.threads)
sys.argv = sys.argv[:1]  # RecBole also reads the command line
# RecBole writes logs to the current folder.
folder = tempfile.TemporaryDirectory(prefix="recbole_")
os.chdir(folder.name)

import logging

import numpy as np
import pandas as pd
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from recbole.utils.case_study import full_sort_topk

torch.set_num_threads(config.threads)


class Clocked:
    """RecBole's training loader, repeated, counted, and stopped after a time limit."""

    def __init__(self, loader, field: str):
        self.loader, self.field = loader, field
        self.iterator = iter(loader)
        self.begin, self.seconds, self.counts = 0.0, 0.0, []

    def window(self, seconds: float) -> "Clocked":
        """Start the clock."""
        self.begin, self.seconds, self.counts = time.perf_counter(), seconds, []
        return self

    def __iter__(self):
        """Yield batches until the time limit, at least one."""
        while True:
            steps = len(self.counts)
            elapsed = time.perf_counter() - self.begin
            if steps and elapsed + 0.5 * elapsed / steps >= self.seconds:
                return
            try:
                batch = next(self.iterator)
            except StopIteration:
                self.iterator = iter(self.loader)
                batch = next(self.iterator)
            self.counts.append(count_tokens(batch[self.field]))
            yield batch


def write_atomic_file(path: Path) -> None:
    """Write RecBole's own file format: user, item and time in three columns;
    and all items in a file of their own.
    """
    path.mkdir(parents=True)
    # RecBole creates a row for every event. For users without a list it needs only their items.
    users = arguments.list_users or data.num_users
    events = data.offsets[users]
    lengths = np.diff(data.offsets[: users + 1])
    within = np.arange(events) - np.repeat(data.offsets[:users], lengths)
    pd.DataFrame(
        {
            "user_id:token": np.repeat(np.arange(1, users + 1), lengths),
            "item_id:token": data.items[:events],
            "timestamp:float": within.astype(float),
        }
    ).to_csv(path / f"{path.name}.inter", sep="\t", index=False)
    if arguments.list_users:
        pd.DataFrame({"item_id:token": np.arange(1, data.num_items + 1)}).to_csv(
            path / f"{path.name}.item", sep="\t", index=False
        )


class Peer:
    """RecBole's objects, created as in its `run_recbole` makes them."""

    def __init__(self):
        write_atomic_file(Path(folder.name) / "data" / "peers")
        settings = {
            "data_path": str(Path(folder.name) / "data"),
            "checkpoint_dir": str(Path(folder.name) / "saved"),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]}
            | ({"item": ["item_id"]} if arguments.list_users else {}),
            "MAX_ITEM_LIST_LENGTH": config.max_length,
            "n_layers": config.layers,
            "n_heads": config.heads,
            "hidden_size": config.width,
            "inner_size": config.ffn_width,
            "hidden_dropout_prob": config.dropout,
            "attn_dropout_prob": config.dropout,
            "hidden_act": "gelu",
            "mask_ratio": config.mask_probability,
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "train_batch_size": config.batch_users,
            "eval_batch_size": arguments.eval_batch,
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "order": "TO",
                "mode": "full",
                "group_by": "user",
            },
            "metrics": ["NDCG"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "learning_rate": config.learning_rate,
            "seed": arguments.seed,
            "use_gpu": False,
            "worker": 0,
            "show_progress": False,
        }
        logging.disable(logging.INFO)
        self.config = Config(model="BERT4Rec", dataset="peers", config_dict=settings)
        init_seed(self.config["seed"], self.config["reproducibility"])
        dataset = create_dataset(self.config)
        train, _, self.test = data_preparation(self.config, dataset)
        self.model = get_model("BERT4Rec")(self.config, train._dataset)
        if arguments.no_anomaly:
            torch.autograd.set_detect_anomaly(False)
        self.trainer = get_trainer(self.config["MODEL_TYPE"], "BERT4Rec")(self.config, self.model)
        self.trainer.eval_collector.data_collect(train)
        self.clocked = Clocked(train, self.config["MASK_ITEM_SEQ"])

    def train(self, seconds: float) -> dict:
        """Let RecBole's trainer run over the clocked loader."""
        self.trainer._train_epoch(self.clocked.window(seconds), 0)
        elapsed, counts = time.perf_counter() - self.clocked.begin, self.clocked.counts
        return {
            "steps": len(counts),
            "seconds": elapsed,
            "real_tokens": sum(count.real_tokens for count in counts),
            "padded_tokens": sum(count.padded_tokens for count in counts),
            "users": sum(count.users for count in counts),
        }

    def step(self) -> StepCount:
        """Train one step."""
        self.train(0.0)
        return self.clocked.counts[0]

    def evaluate(self, count: int) -> dict:
        """Let RecBole's trainer evaluate the first `count` users."""
        loader, users = self.test, 0
        whole = type(loader)

        class Some(whole):
            """The first batches of RecBole's loader, the last one cut to fit."""

            def __iter__(self):
                nonlocal users
                for interaction, history, positive_u, positive_i in whole.__iter__(self):
                    rows = min(len(interaction), count - users)
                    if rows <= 0:
                        return
                    users += rows
                    yield interaction[:rows], history, positive_u[:rows], positive_i[:rows]

        loader.__class__ = Some
        try:
            result = self.trainer.evaluate(loader, load_best_model=False)
        finally:
            loader.__class__ = whole
        return {"users": users, "ndcg@10": float(result["ndcg@10"])}

    def lists(self) -> int:
        """Make the lists of all users with RecBole's `full_sort_topk`,
        and restore the original ids.
        """
        dataset = self.test.dataset
        users = dataset.token2id(
            dataset.uid_field, [str(u) for u in range(1, arguments.list_users + 1)]
        )
        count = 0
        for first in range(0, len(users), arguments.eval_batch):
            _, items = full_sort_topk(
                users[first : first + arguments.eval_batch], self.model, self.test, LIST_LENGTH
            )
            count += len(dataset.id2token(dataset.iid_field, items))
        return count


def main() -> None:
    """Serve the benchmark's driver."""
    peer = Peer()
    about = {
        "peer": "recbole",
        "parameters": sum(parameter.numel() for parameter in peer.model.parameters()),
        "version": f"recbole {recbole.__version__}, torch {torch.__version__}",
        "anomaly_detection": torch.is_anomaly_enabled(),
        "seen_removed": False,
    }
    if arguments.list_users:
        serve_lists(answers, peer.lists, about)
        return
    serve(answers, arguments, peer.step, peer.evaluate, about, train_window=peer.train)


if __name__ == "__main__":
    main()
