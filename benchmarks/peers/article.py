# SPDX-License-Identifier: Apache-2.0
"""The seed article's recommender, re-created from its public description; not its authors' code.

The system is "recommender_transformer" (CVxTz on GitHub): PyTorch's `nn.TransformerEncoder` over
item and position embeddings, attention that also sees padding, and a linear layer with logits over
all items at every position, including padding. A training row is a window of a user's history that
ends at a random place, padded to full length on the left or the right by a coin; every item is
masked with probability `mask_probability`; the loss is the mean over the masked positions, and the
accuracy there is computed in every step. Plain Adam.

Sizes come from the configuration (the original: width 128, 6 layers, 4 heads, feed-forward 2048,
dropout 0.3, learning rate 1e-4, length 120, batch 32). Unlike the original, which groups a data
frame for each row in worker processes, rows are cut from arrays here, so its data pipeline costs
less than it did. The original does not rank; this one scores the full catalogue with the model's
forward pass and ranks by counting.
"""

import random

from protocol import (
    PeerConfig,
    PeerData,
    StepCount,
    count_tokens,
    ndcg_at_10,
    parse_arguments,
    serve,
    set_threads,
)
from protocol import take_stdout as take_answers

arguments = parse_arguments(__doc__.splitlines()[0])
answers = take_answers()
config = PeerConfig.load(arguments.config)
set_threads(config.threads)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(config.threads)

PAD, MASK, FIRST = 0, 1, 2  # an item's id is its number plus FIRST - 1
HELD_OUT = 5  # last items of a history that are not trained on
SHORTEST = 10  # earliest end of a window
EVAL_ROWS = 64


def to_length(ids: list[int], left: bool) -> list[int]:
    """Pad to full length."""
    padding = [PAD] * (config.max_length - len(ids))
    return padding + ids if left else ids + padding


class Rows(Dataset):
    """One random window for each user."""

    def __init__(self, data: PeerData):
        self.data = data

    def __len__(self) -> int:
        """Count the users."""
        return self.data.num_users

    def __getitem__(self, user: int) -> tuple[Tensor, Tensor]:
        """Return the masked and the true items of a new window."""
        history = self.data.full(user)
        # Short histories, which the original excludes, keep at least the training part of
        # leave-one-out.
        last = max(len(history) - HELD_OUT, min(SHORTEST, len(history) - 2), 1)
        end = random.randint(min(SHORTEST, last), last)
        true = [int(item) + FIRST - 1 for item in history[max(0, end - config.max_length) : end]]
        masked = [MASK if random.random() < config.mask_probability else item for item in true]
        left = random.random() < 0.5
        return torch.tensor(to_length(masked, left)), torch.tensor(to_length(true, left))


class Recommender(nn.Module):
    """Embeddings, encoder, and a linear layer to all items."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.items = nn.Embedding(vocabulary, config.width)
        self.positions = nn.Embedding(512, config.width)
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, dim_feedforward=config.ffn_width, dropout=config.dropout
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers)
        self.out = nn.Linear(config.width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits [B, L, vocabulary]."""
        h = self.items(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.out(self.encoder(h.transpose(0, 1)).transpose(0, 1))


class Peer:
    """Model, optimizer, loader and ranking."""

    def __init__(self, data: PeerData):
        random.seed(arguments.seed)
        torch.manual_seed(arguments.seed)
        self.data = data
        self.model = Recommender(data.num_items + FIRST)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        self.loader = DataLoader(Rows(data), config.batch_users, shuffle=True)
        self.batches = iter(self.loader)

    def step(self) -> StepCount:
        """Train one step."""
        try:
            masked, true = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            masked, true = next(self.batches)
        self.model.train()
        logits = self.model(masked)
        logits, labels, hidden = (
            logits.view(-1, logits.shape[2]),
            true.view(-1),
            masked.view(-1) == MASK,
        )
        loss = (F.cross_entropy(logits, labels, reduction="none") * hidden).sum() / (
            hidden.sum() + 1e-8
        )
        (logits.argmax(1)[hidden] == labels[hidden]).double().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return count_tokens(masked, PAD)

    @torch.inference_mode()
    def evaluate(self, count: int) -> dict:
        """Rank the test items of the first `count` users, without seen items."""
        self.model.eval()
        users = range(min(count, self.data.num_users))
        ranks = []
        for first in range(0, len(users), EVAL_ROWS):
            some = users[first : first + EVAL_ROWS]
            histories = [self.data.history(user).astype(np.int64) + FIRST - 1 for user in some]
            cut = [history[-config.max_length + 1 :].tolist() + [MASK] for history in histories]
            scores = self.model(torch.tensor([to_length(ids, left=True) for ids in cut]))[:, -1]
            targets = torch.tensor([self.data.target(user) + FIRST - 1 for user in some])[:, None]
            own = scores.gather(1, targets)
            scores[:, :FIRST] = -torch.inf
            for row, history in enumerate(histories):
                scores[row, torch.from_numpy(history)] = -torch.inf
            ranks.append((scores >= own).sum(1).numpy())
        return {"users": len(users), "ndcg@10": ndcg_at_10(np.concatenate(ranks))}


def main() -> None:
    """Serve the benchmark's driver."""
    peer = Peer(PeerData.load(arguments.data))
    about = {
        "peer": "article (re-created)",
        "parameters": sum(parameter.numel() for parameter in peer.model.parameters()),
        "version": f"torch {torch.__version__}",
    }
    serve(answers, arguments, peer.step, peer.evaluate, about)


if __name__ == "__main__":
    main()
