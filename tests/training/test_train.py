# SPDX-License-Identifier: Apache-2.0
import dataclasses
import importlib.util
import json
import pathlib

import jax
import numpy as np
import optax
import pytest
from bayes_oracle import bayes_optimal_ranks
from conftest import small_config

from bert4rec_jax import config as config_lib
from bert4rec_jax.errors import UserError
from bert4rec_jax.experiment import Experiment, evaluate, train_and_evaluate
from bert4rec_jax.ranking import from_ranks
from bert4rec_jax.training import optimizer

CONFIGS = sorted((pathlib.Path(__file__).parent.parent.parent / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_trains_evaluates_and_resumes(path, cache, tmp_path):
    config = load(path)
    config.data.update(
        source="synthetic",
        cache_dir=str(cache),
        path="",
        items_path="",
        where="",
    )
    config.filter.update(user_core=0, item_core=0)
    config.split.update(
        kind="leave_one_out",
        period_target="first",
        test_seconds=0,
        valid_seconds=0,
        gap_seconds=0,
    )
    config.data.synthetic.update(users=120, num_items=400, genres=4, mean_length=12)
    config.model.update(width=16, layers=1, heads=2, ffn_width=32, max_length=12)
    config.train.update(steps=4, batch_rows=8, eval_every=2, checkpoint_every=2, log_every=2)
    config.eval.update(batch_rows=8)
    # Half of it, and from there on, which a constant rate allows.
    config.optimizer.update(schedule="constant", warmup_steps=1)
    resolved = config_lib.resolve(config)
    half = dataclasses.replace(resolved, train=dataclasses.replace(resolved.train, steps=2))
    assert train_and_evaluate(half, str(tmp_path))["steps"] == 2
    results = train_and_evaluate(resolved, str(tmp_path))
    assert np.isfinite(list(results["test"].values())).all()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(x["step"], x["split"]) for x in lines if x["split"] != "test"] == [
        (2, "train"),
        (2, "valid"),
        (4, "train"),
        (4, "valid"),
    ]
    assert results["protocol"] and results["dataset"]["fingerprint"]
    ranks = np.load(tmp_path / "ranks_test.npz")
    assert from_ranks(ranks["rank"])["ndcg@10"] == pytest.approx(results["test"]["ndcg@10"])
    if path.stem == "quickstart":
        assert evaluate(resolved, str(tmp_path))["test"] == results["test"]
        config.eval.protocol = "uni100"
        sampled = evaluate(config_lib.resolve(config), str(tmp_path / "uni100"), str(tmp_path))
        assert (
            "100 negatives" in sampled["protocol"]
            and sampled["test"]["ndcg@10"] > results["test"]["ndcg@10"]
        )
        config.data.synthetic.seed = 1
        with pytest.raises(UserError, match="synthetic.seed"):
            evaluate(config_lib.resolve(config), str(tmp_path / "other"), str(tmp_path))
        config.model.width = 8
        with pytest.raises(UserError, match="synthetic.seed|model.width"):
            evaluate(config_lib.resolve(config), str(tmp_path / "narrow"), str(tmp_path))


def test_a_trained_model_comes_close_to_the_best_possible(cache, tmp_path):
    # More users than it can learn by heart, and histories that fit into its window.
    config = small_config(
        cache,
        **{
            "data.synthetic.users": 6000,
            "data.synthetic.num_items": 100,
            "data.synthetic.genres": 5,
            "data.synthetic.mean_length": 10,
            "model.width": 32,
            "model.ffn_width": 64,
            "model.norm": "pre",
            "model.head": "tied",
            "model.positions": "right",
            "masking.next_item_share": 0.5,
            "optimizer.learning_rate": 4e-3,
            "train.steps": 600,
            "train.batch_rows": 32,
            "train.eval_every": 600,
            "train.checkpoint_every": 600,
            "train.log_every": 600,
            "optimizer.schedule": "cosine",
            "eval.batch_rows": 128,
        },
    )
    results = train_and_evaluate(config, str(tmp_path))
    experiment = Experiment(config)
    cases = experiment.cases("test")
    best = from_ranks(bayes_optimal_ranks(experiment.dataset, cases.users, cases.targets))
    popular = results["baselines"]["popular"]["test"]["ndcg@10"]
    reached = (results["test"]["ndcg@10"] - popular) / (best["ndcg@10"] - popular)
    # Without positions it is .40, with labels of the item before .19.
    assert 0.85 < reached < 1.02, (results["test"]["ndcg@10"], popular, best["ndcg@10"])


def test_the_best_checkpoint_is_that_of_the_best_validation(cache, tmp_path, monkeypatch):
    # Real validations, except for the metric: its best value is at step 3, long before the end.
    chosen = iter([0.1, 0.2, 0.9, *[0.3] * 9])
    metric = "mrr@5"
    validate = Experiment.validate

    def validate_with_fake_metric(experiment, stop, params):
        return validate(experiment, stop, params) | {metric: next(chosen)}

    monkeypatch.setattr(Experiment, "validate", validate_with_fake_metric)
    config = small_config(
        cache,
        **{
            "optimizer.learning_rate": 0.03,
            "train.steps": 12,
            "train.eval_every": 1,
            "train.checkpoint_every": 12,
            "eval.metric": metric,
            "model.layers": 1,
        },
    )
    results = train_and_evaluate(config, str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    valid = {line["step"]: line["ndcg@10"] for line in lines if line["split"] == "valid"}
    assert results["best_step"] == 3 and results["steps"] == 12 == len(valid)
    assert results["valid"]["ndcg@10"] == pytest.approx(valid[3]) != valid[12]


@pytest.mark.parametrize("limit", [0.0, 0.01])
def test_the_gradient_is_clipped_to_its_norm(cache, limit):
    experiment = Experiment(small_config(cache, **{"optimizer.clip_norm": limit}))
    state, metrics = experiment.step(
        experiment.initial_state(), experiment.batch(0), experiment.root
    )
    # After one step, Adam's first moment is the gradient times 1 - beta1.
    moment = optax.tree.norm(optax.tree.get(state.opt_state, "mu")) / (
        1 - experiment.config.optimizer.beta1
    )
    assert metrics["grad_norm"] > 0.02
    assert float(moment) == pytest.approx(limit or float(metrics["grad_norm"]), rel=1e-4)


def test_the_step_compiles_once(cache):
    experiment = Experiment(small_config(cache))
    state = experiment.initial_state()
    for step in range(3):
        state, _ = experiment.step(state, experiment.batch(step), experiment.root)
    assert experiment.step._cache_size() == 1


def test_learning_rate_warms_up_and_decays():
    config = config_lib.OptimizerConfig(
        learning_rate=1.0, warmup_steps=4, schedule="linear", final_fraction=0.1
    )
    rates = [float(optimizer.learning_rate(config, 14)(step)) for step in range(15)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose(rates[9], 0.55)
    np.testing.assert_allclose(rates[14], 0.1)


def test_a_warmup_that_is_too_long_takes_half_of_the_run():
    config = config_lib.OptimizerConfig(learning_rate=1.0, warmup_steps=200)
    rate = optimizer.learning_rate(config, 8)
    assert [float(rate(step)) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert float(optimizer.learning_rate(config, 1)(0)) == 1.0


@pytest.mark.parametrize(
    "schedule, middle", [("linear", 1.05), ("cosine", 1.05), ("constant", 2.0)]
)
def test_the_rate_ends_at_a_fraction_of_its_peak(schedule, middle):
    config = config_lib.OptimizerConfig(
        learning_rate=2.0, warmup_steps=4, schedule=schedule, final_fraction=0.05
    )
    rate = optimizer.learning_rate(config, 24)
    assert [float(rate(step)) for step in (3, 14, 24)] == pytest.approx(
        [2.0, middle, 2.0 if schedule == "constant" else 0.1]
    )


def test_weight_decay_spares_vectors(cache):
    config = config_lib.OptimizerConfig(name="adamw", learning_rate=1.0, weight_decay=0.1)
    params = {"kernel": np.ones((2, 2)), "bias": np.ones(2)}
    transform = optimizer.make_optimizer(config, 1)
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = transform.update(zero, transform.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1)
    np.testing.assert_allclose(updates["bias"], 0)


@pytest.mark.parametrize(
    "field, value, named",
    [
        ("model.dropout", 1.5, "model.dropout"),
        ("model.heads", 3, "model.heads"),
        ("model.widht", 8, "widht"),
        ("eval.metric", "ndgc@10", "eval.metric"),
        ("model.norm", "middle", "model.norm"),
        ("optimizer.weight_decay", 0.1, "weight_decay"),
        ("data.source", "netflix", "data.source"),
        ("masking.probability", 0.0, "masking.probability"),
    ],
)
def test_wrong_fields_are_named(cache, field, value, named):
    with pytest.raises(UserError, match=named):
        small_config(cache, **{field: value})


def test_wrong_types_are_named():
    with pytest.raises(UserError, match=r"train\.steps must be of type int, not 'many'"):
        config_lib.resolve({"train": {"steps": "many"}})
    with pytest.raises(UserError, match=r"config\.train must be a group"):
        config_lib.resolve({"train": 3})
