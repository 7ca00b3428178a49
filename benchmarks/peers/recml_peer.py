# SPDX-License-Identifier: Apache-2.0
"""RecML's BERT4Rec layer (Keras) on the JAX backend, in a minimal training loop of its own.

RecML provides only the layer, so the benchmark adds data, loss, loop and ranking: rows padded to
`max_length`, a fixed number of masked slots a row (`round(mask_probability * length)` of them
count, at least one), the layer's own head at these slots, Adam from Optax, one jitted and donated
step. The package's `__init__` imports its trainer and with it packages for clusters and TPUs that
the layer does not need, so the layer's module is loaded without it.
"""

import os
import sys
import types
from importlib.metadata import version
from importlib.util import find_spec

from protocol import (
    PeerConfig,
    PeerData,
    StepCount,
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
# XLA uses one thread per processor of the process.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: config.threads])
os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

bare = types.ModuleType("recml")
bare.__path__ = list(find_spec("recml").submodule_search_locations)
sys.modules["recml"] = bare

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from recml.layers.keras.bert4rec import BERT4Rec

EVAL_ROWS = 256


class Peer:
    """The layer, its optimizer, the batches and the ranking."""

    def __init__(self, data: PeerData):
        keras.utils.set_random_seed(arguments.seed)
        self.data = data
        self.rng = np.random.default_rng(arguments.seed)
        self.slots = max(1, round(config.mask_probability * config.max_length))
        self.model = BERT4Rec(
            vocab_size=data.num_items + 2,
            max_positions=config.max_length,
            model_dim=config.width,
            mlp_dim=config.ffn_width,
            num_heads=config.heads,
            num_layers=config.layers,
            dropout=config.dropout,
        )
        self.model.build((config.batch_users, config.max_length))
        self.parameters = [jnp.asarray(v.value) for v in self.model.trainable_variables]
        self.others = [jnp.asarray(v.value) for v in self.model.non_trainable_variables]
        self.optimizer = optax.adam(config.learning_rate)
        self.state = self.optimizer.init(self.parameters)
        self.train_step = jax.jit(self._train_step, donate_argnums=(0, 1, 2))
        self.rank = jax.jit(self._rank)
        ends = data.offsets[1:] - 2
        self.lengths = np.clip(ends - data.offsets[:-1], 0, config.max_length)
        self.starts = ends - self.lengths
        self.users = np.flatnonzero(self.lengths > 0)
        self.queue = np.empty(0, np.int64)

    def _train_step(self, parameters, others, state, ids, slots, targets, weights):
        def loss(parameters):
            logits, new_others = self.model.stateless_call(
                parameters, others, ids, padding_mask=ids > 0, mask_positions=slots, training=True
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return (losses * weights).sum() / weights.sum(), new_others

        (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, state = self.optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), others, state, value

    def _rank(self, parameters, others, ids, slots, targets, seen):
        logits, _ = self.model.stateless_call(
            parameters, others, ids, padding_mask=ids > 0, mask_positions=slots, training=False
        )
        scores = logits[:, 0, : self.data.num_items + 1]
        own = jnp.take_along_axis(scores, targets[:, None], 1)
        # Item 0 stands for padding in `seen`, too.
        scores = scores.at[jnp.arange(len(ids))[:, None], seen].set(-jnp.inf)
        return (scores >= own).sum(1)

    def pad(self, starts: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
        """Return histories as int32 [rows, width], padded on the right."""
        column = np.arange(width)
        places = np.minimum(starts[:, None] + column, len(self.data.items) - 1)
        return np.where(column < lengths[:, None], self.data.items[places], 0).astype(np.int32)

    def step(self) -> StepCount:
        """Train one step and wait for it."""
        if len(self.queue) < config.batch_users:
            # Users that remain from one epoch come first in the next.
            self.queue = np.concatenate([self.queue, self.rng.permutation(self.users)])
        users, self.queue = self.queue[: config.batch_users], self.queue[config.batch_users :]
        lengths = self.lengths[users]
        ids = self.pad(self.starts[users], lengths, config.max_length)
        chance = self.rng.random(ids.shape, np.float32)
        chance[ids == 0] = 2.0
        slots = np.argpartition(chance, self.slots - 1, axis=1)[:, : self.slots]
        order = np.argsort(np.take_along_axis(chance, slots, 1), axis=1)
        slots = np.take_along_axis(slots, order, 1).astype(np.int32)
        counts = np.clip(np.rint(config.mask_probability * lengths), 1, self.slots)
        weights = (np.arange(self.slots) < counts[:, None]).astype(np.float32)
        slots = np.where(weights > 0, slots, slots[:, :1])
        targets = np.take_along_axis(ids, slots, 1)
        np.put_along_axis(ids, slots, self.data.num_items + 1, 1)
        self.parameters, self.others, self.state, value = self.train_step(
            self.parameters, self.others, self.state, ids, slots, targets, weights
        )
        value.block_until_ready()
        return StepCount(int(lengths.sum()), ids.size, len(users))

    def evaluate(self, count: int) -> dict:
        """Rank the test items of the first `count` users;
        the last batch is padded with its first user.
        """
        data = self.data
        begins, ends = data.offsets[:-1][:count], data.offsets[1:][:count] - 1
        lengths = np.clip(ends - begins, 0, config.max_length - 1)
        longest = int((np.diff(data.offsets) - 1).max())
        ranks = []
        for first in range(0, len(ends), EVAL_ROWS):
            users = np.arange(first, first + EVAL_ROWS)
            users[users >= len(ends)] = first
            ids = self.pad(ends[users] - lengths[users], lengths[users], config.max_length)
            ids[np.arange(EVAL_ROWS), lengths[users]] = data.num_items + 1
            seen = self.pad(begins[users], ends[users] - begins[users], longest)
            slots = lengths[users][:, None].astype(np.int32)
            targets = data.items[ends[users]]
            ranks.append(
                np.asarray(self.rank(self.parameters, self.others, ids, slots, targets, seen))
            )
        return {"users": len(ends), "ndcg@10": ndcg_at_10(np.concatenate(ranks)[: len(ends)])}


def main() -> None:
    """Serve the benchmark's driver."""
    peer = Peer(PeerData.load(arguments.data))
    about = {
        "peer": "recml",
        "parameters": sum(int(np.prod(p.shape)) for p in peer.parameters),
        "version": f"recml {version('recml')}, keras {keras.__version__}, jax {jax.__version__}",
    }
    step, evaluate = peer.step, peer.evaluate
    serve(answers, arguments, step, evaluate, about, before_ready=lambda: evaluate(1))


if __name__ == "__main__":
    main()
