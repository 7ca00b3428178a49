# SPDX-License-Identifier: Apache-2.0
"""Models with item features: their gradients, their use after training, and cold items."""

import json

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from conftest import small_config

import bert4rec_jax
from bert4rec_jax.aot import estimate
from bert4rec_jax.devices import Layout, Placement
from bert4rec_jax.errors import UserError
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.model import init_params
from bert4rec_jax.training import Checkpoints, init_state, step

FEATURES = {"data.features": "genres,title"}


def test_features_leave_all_other_parameters_as_they_were(cache):
    config = small_config(cache).model
    plain, rich = (init_params(config, 60, jax.random.key(3), count) for count in (0, 9))
    assert rich.pop("features").shape == (9, 16)
    jax.tree.map(np.testing.assert_array_equal, plain, rich)


def test_a_model_without_features_is_what_it_was(cache):
    # As the text of the program that is compiled: `fold_features` and its gradient leave no trace.
    experiment = Experiment(small_config(cache))
    assert set(experiment.template.params) == {"items", "encoder"}
    lowered = experiment.step.lower(
        experiment.template, experiment.batch(0), experiment.root
    ).as_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "fold_features", lambda params, **_: params)
        patch.setattr(step.jax, "vjp", lambda f, x: (x, lambda g: (g,)))
        again = Experiment(small_config(cache))
        assert lowered == again.step.lower(again.template, again.batch(0), again.root).as_text()


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_follows_the_gradient_through_the_features(cache, parts):
    experiment = Experiment(
        small_config(cache, **FEATURES, **{"train.accumulate": parts, "optimizer.beta1": 0.5})
    )
    c, bags = experiment.config, experiment.features
    state, metrics = experiment.step(
        experiment.initial_state(), experiment.batch(0), experiment.root
    )
    before, packed = (
        init_state(c, experiment.num_items, len(bags.names)),
        experiment.batches.batch(0),
    )

    def mean_loss(params):
        # The table by a product with a matrix of shares, not by sums of rows.
        shares = np.zeros((len(params["items"]["bias"]), len(bags.names)), np.float32)
        shares[bags.items, bags.features] = 1
        shares /= np.maximum(shares.sum(1, keepdims=True), 1)
        table = params["items"]["embedding"] + shares @ params["features"]
        plain = {"items": params["items"] | {"embedding": table}, "encoder": params["encoder"]}
        total, targets = step.batch_loss(
            step.StepSpec(c, experiment.num_items, experiment.num_slots),
            plain,
            packed,
            np.arange(len(packed.tokens)),
            step.step_keys(experiment.root, before.step),
            Placement("cpu"),
        )
        return total / targets

    loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(before.params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-4)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(gradient))
    jax.tree.map(
        lambda mu, g: np.testing.assert_allclose(mu, 0.5 * g, rtol=1e-4, atol=1e-5 * largest),
        optax.tree.get(state.opt_state, "mu"),
        gradient,
    )


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """The directory of a finished run with features."""
    folder = tmp_path_factory.mktemp("features") / "run"
    bert4rec_jax.train(small_config(cache, **FEATURES), str(folder))
    return folder


def test_the_recommender_has_the_item_table_of_the_evaluation(run, cache):
    recommender = bert4rec_jax.load(str(run))
    experiment = Experiment(recommender.config)
    bags, results = experiment.features, json.loads((run / "results.json").read_text())
    with Checkpoints(str(run / "checkpoints"), read_only=True) as checkpoints:
        _, params = checkpoints.restore_params(results["best_step"], experiment.template.params)
    table = np.array(params["items"]["embedding"], np.float64)
    for item in range(1, experiment.num_items + 1):
        table[item] += np.asarray(params["features"], np.float64)[
            bags.features[bags.items == item]
        ].mean(axis=0)
    np.testing.assert_allclose(
        recommender.embeddings, table[1 : experiment.num_items + 1], atol=1e-6
    )
    assert results["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    assert results["dataset"]["features"] == len(bags.names) and results["model"].endswith(
        ", item features"
    )
    ranks = np.load(run / "ranks_test.npz")
    offsets, items = experiment.dataset.offsets, experiment.dataset.items
    histories = [items[offsets[user] : offsets[user + 1] - 1].tolist() for user in ranks["user"]]
    scores = recommender.score_numbers(histories)
    for row, (history, target) in enumerate(zip(histories, ranks["item"])):
        candidates = np.setdiff1d(np.arange(1, experiment.num_items + 1), history)
        if target not in history:
            assert (
                ranks["rank"][row] == (scores[row, candidates - 1] >= scores[row, target - 1]).sum()
            )


def test_the_exported_model_has_the_same_table(run, tmp_path):
    pytest.importorskip("onnx", reason="the extra bert4rec_jax[onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="the extra bert4rec_jax[onnx] is not installed")
    from bert4rec_jax.export import check, onnx_model

    recommender = bert4rec_jax.load(str(run))
    path = str(tmp_path / "model.onnx")
    onnx_model.write(path, recommender.config.model, recommender.num_items, recommender.params)
    found = check.compare(path, recommender, 200)
    assert (found.same_top, found.same_items) == (1, 1) and found.largest < 1e-5


def write_log(folder, genres=5, warm=8, cold=2):
    """Writes users who stay in one genre; every second one ends with a cold item."""
    random, rows = np.random.default_rng(0), []
    for user in range(240):
        genre = user % genres
        items = [f"{genre}-{item}" for item in random.permutation(warm)[:6]]
        if user % 2:
            items.append(f"{genre}-{warm + user // 2 % cold}")
        rows += [(user, item, time) for time, item in enumerate(items)]
    pd.DataFrame(rows, columns=["user", "item", "timestamp"]).to_parquet(
        folder / "interactions.parquet"
    )
    names = [f"{genre}-{item}" for genre in range(genres) for item in range(warm + cold)]
    pd.DataFrame({"item": names, "genres": [f"G{name[0]}" for name in names]}).to_parquet(
        folder / "items.parquet"
    )


def test_scoring_rejects_parameters_whose_features_are_not_folded(cache):
    experiment = Experiment(small_config(cache, **FEATURES))
    params = experiment.initial_state().params
    with pytest.raises(ValueError, match="pass them through fold_features"):
        experiment.ranker("valid").rank(params)


def test_cold_items_are_ranked_by_their_features(tmp_path):
    write_log(tmp_path)
    medians = {}
    for features in ("", "genres"):
        config = small_config(
            tmp_path,
            **{
                "data.source": "table",
                "data.path": str(tmp_path),
                "data.features": features,
                "train.steps": 150,
                "train.eval_every": 150,
                "train.checkpoint_every": 150,
                "optimizer.learning_rate": 5e-3,
            },
        )
        folder = tmp_path / f"run{features}"
        bert4rec_jax.train(config, str(folder))
        ranks = np.load(folder / "ranks_test.npz")
        new = ranks["item_popularity"] == 0
        assert new.sum() == 120
        medians[features] = np.median(ranks["rank"][new] / ranks["candidates"][new])
    # 0.5 is chance. Without features, the loss pushes cold items below all others.
    assert medians["genres"] < 0.4 and medians[""] > 0.5, medians


def test_sizes_without_data_know_no_features(cache):
    config = small_config(cache, **FEATURES)
    with pytest.raises(
        UserError, match="config.data.features needs the item table, which --items does not read"
    ):
        estimate.assumed_sizes(config, Layout(config.parallel), 60)


def test_a_run_does_not_continue_with_other_features(run, cache):
    with pytest.raises(UserError, match="config.data.features was 'genres,title' and is now ''"):
        bert4rec_jax.train(small_config(cache), str(run))
    environment = json.loads((run / "environment.json").read_text())
    assert (
        environment["features_fingerprint"]
        == Experiment(small_config(cache, **FEATURES)).features.fingerprint
    )
