# SPDX-License-Identifier: Apache-2.0
"""A script for devices/test_layout.py: the same few steps on eight simulated devices in every layout.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/eight_devices.py OUTPUT.pickle quick|rest
"""

import dataclasses
import pickle
import sys

import jax
import numpy as np
import optax

from bert4rec_jax import config as config_lib
from bert4rec_jax.devices.layout import Layout
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.ranking.ranker import Ranker

LAYOUTS = {
    "one": {"parallel.data": 1},
    "8 pmap": {"parallel.mode": "pmap"},
    "8 jit": {},
    "4x2": {"parallel.item_shards": 2},
    "2x4": {"parallel.item_shards": 4},
}
ACCUMULATE_2, ACCUMULATE_4 = {"train.accumulate": 2}, {"train.accumulate": 4}
SAMPLED, GBCE = (
    {"loss.name": "sampled_softmax", "loss.negatives": 24},
    {"loss.name": "gbce", "loss.negatives": 24},
)
NEXT = {"masking.next_item_share": 1.0, "model.predict_from": "last_item"}
BF16, REMAT = {"model.dtype": "bfloat16"}, {"model.remat": True}
FEATURES = {"data.features": "genres,title"}
DROPOUT = {"model.dropout": 0.3, "model.attention_dropout": 0.3}
RECIPE = {
    "model.positions": "rotary",
    "model.head": "tied",
    "loss.chunk_items": 50,
    "masking.next_item_share": 0.25,
    "masking.random_token": 0.1,
    "masking.keep_token": 0.1,
    "masking.last_item_only": 0.2,
    "optimizer.name": "adamw",
    "optimizer.weight_decay": 0.1,
}
# The step of a TPU without its kernels: rows of both tasks together, layers in a loop.
TPU = {
    "model.layers": 3,
    "model.attention": "dense",
    "loss.chunk_items": 50,
    "masking.next_item_share": 0.5,
}
QUICK = {
    **LAYOUTS,
    "8 jit, accumulated 4": ACCUMULATE_4,
    "sampled: one": LAYOUTS["one"] | SAMPLED,
    "sampled: 2x4, accumulated 2": LAYOUTS["2x4"] | ACCUMULATE_2 | SAMPLED,
    "gbce: one": LAYOUTS["one"] | GBCE,
    "gbce: 4x2": LAYOUTS["4x2"] | GBCE,
    "dropout: one": LAYOUTS["one"] | DROPOUT,
    "dropout: 4x2, accumulated 2": LAYOUTS["4x2"] | ACCUMULATE_2 | DROPOUT,
    "features: one": LAYOUTS["one"] | FEATURES,
    "features: 2x4, accumulated 2": LAYOUTS["2x4"] | ACCUMULATE_2 | FEATURES,
    "features: 8 pmap": LAYOUTS["8 pmap"] | FEATURES,
}
REST = {
    "one": LAYOUTS["one"],
    "one, accumulated 2": LAYOUTS["one"] | ACCUMULATE_2,
    "2x4, accumulated 2": LAYOUTS["2x4"] | ACCUMULATE_2,
    "one, remat": LAYOUTS["one"] | REMAT,
    "sampled: one": LAYOUTS["one"] | SAMPLED,
    "sampled: 8 pmap": LAYOUTS["8 pmap"] | SAMPLED,
    "gbce: one": LAYOUTS["one"] | GBCE,
    "gbce: 8 jit, accumulated 2": ACCUMULATE_2 | GBCE,
    "recipe: one": LAYOUTS["one"] | RECIPE,
    "recipe: 4x2": LAYOUTS["4x2"] | RECIPE,
    "recipe: 8 pmap": LAYOUTS["8 pmap"] | RECIPE,
    "next: one": LAYOUTS["one"] | NEXT,
    "next: 2x4": LAYOUTS["2x4"] | NEXT,
    "bf16: one": LAYOUTS["one"] | BF16,
    "bf16: 4x2": LAYOUTS["4x2"] | BF16,
    "tpu: one": LAYOUTS["one"] | TPU | DROPOUT,
    "tpu: 8 pmap": LAYOUTS["8 pmap"] | TPU | DROPOUT,
    "tpu: 2x4, accumulated 2": LAYOUTS["2x4"] | ACCUMULATE_2 | TPU | DROPOUT,
    "dropout: one": LAYOUTS["one"] | DROPOUT,
    "dropout: 8 pmap": LAYOUTS["8 pmap"] | DROPOUT,
    "dropout: 8 jit": DROPOUT,
}
STEPS = 4


def config_of(changes: dict) -> config_lib.Config:
    values = config_lib.base()
    values.data.source = "synthetic"
    values.data.synthetic.update(users=160, num_items=200, genres=5, mean_length=10)
    values.model.update(
        width=16, layers=1, ffn_width=32, max_length=16, dropout=0.0, attention_dropout=0.0
    )
    values.optimizer.update(learning_rate=5e-3, clip_norm=0.05)
    values.train.update(batch_rows=32, steps=STEPS)
    values.eval.batch_rows = 16
    values.update_from_flattened_dict(changes)
    return config_lib.resolve(values)


def train(name: str, changes: dict) -> tuple[dict, dict]:
    """Returns the compared values, and the parameters as NumPy arrays."""
    config = config_of(changes)
    layout = Layout(config.parallel)
    if name.startswith("tpu:"):
        layout.placement = dataclasses.replace(layout.placement, platform="tpu")
    experiment = Experiment(config, layout)
    state, losses, norms, targets, moments = experiment.initial_state(), [], [], [], []
    for step in range(STEPS):
        batch = experiment.batch(step)
        state, metrics = experiment.step(state, batch, experiment.root)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
        targets.append(float(metrics["targets"]))
        # Adam's first moment is a sum of gradients. Its quotient with the second, which moves the parameters, is as
        # large for a gradient that is all rounding as for any other, so parameters say little.
        moments.append(
            {
                jax.tree_util.keystr(path): np.asarray(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(
                    optax.tree.get(state.opt_state, "mu")
                )
            }
        )
    params = jax.tree.map(np.asarray, state.params)
    dtypes = {str(x.dtype) for x in jax.tree.leaves((state.params, state.opt_state)) if x.ndim}
    return {
        "moments": moments,
        "losses": losses,
        "norms": norms,
        "targets": targets,
        "dtypes": dtypes,
    }, params


def rank(params: dict, changes: dict) -> dict:
    """Returns the ranks of the test users with the same parameters in one layout."""
    config = config_of(changes)
    layout = Layout(config.parallel)
    experiment = Experiment(config)
    results = {}
    for protocol in ("full", "uni100"):
        protocol_config = dataclasses.replace(
            config, eval=dataclasses.replace(config.eval, protocol=protocol)
        )
        ranker = Ranker(
            protocol_config,
            experiment.dataset,
            experiment.cases("test"),
            layout,
            experiment.popularity,
        )
        ranking = ranker.rank(layout.put_state(params), with_top=protocol == "full")
        results[protocol] = {
            name: value for name, value in vars(ranking).items() if value is not None
        }
    return results


def folded(params: dict, changes: dict) -> np.ndarray:
    """Returns the item table with the features of items, as rankers take it in one layout."""
    experiment = Experiment(config_of(changes))
    return np.asarray(experiment.folded(experiment.layout.put_state(params))["items"]["embedding"])


def most_and_fewest_histories() -> tuple[int, int]:
    """Returns the numbers of histories on the fullest and the emptiest device; each has targets of its own."""
    segments = np.asarray(Experiment(config_of(LAYOUTS["one"])).batch(0).segments)
    counts = [int(part.max(axis=1).sum()) for part in np.split(segments, 8)]
    return max(counts), min(counts)


def main(path: str, which: str) -> None:
    assert jax.device_count() == 8, jax.devices()
    cases = {"quick": QUICK, "rest": REST}[which]
    trained, ranks, tables = {}, {}, {}
    for name, changes in cases.items():
        trained[name], params = train(name, changes)
        if which == "quick" and name == "one":
            ranks = {layout: rank(params, changes) for layout, changes in LAYOUTS.items()}
        if name == "features: one":
            tables = {
                layout: folded(params, changes | FEATURES) for layout, changes in LAYOUTS.items()
            }
    with open(path, "wb") as file:
        pickle.dump(
            {
                "trained": trained,
                "ranks": ranks,
                "tables": tables,
                "histories": most_and_fewest_histories(),
            },
            file,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
