# SPDX-License-Identifier: Apache-2.0
"""Catalogues of a few items and users with a few events, from the log to the list."""

import json

import numpy as np
import pandas as pd
import pytest
from hand_made_runs import report

import bert4rec_jax
from bert4rec_jax import config as config_lib
from bert4rec_jax.errors import UserError
from bert4rec_jax.experiment import evaluate

pytestmark = pytest.mark.timeout(300)  # seconds per test


NO_NEXT_ITEM = "two training events"  # the message about users with too few events


def configure(folder, log: pd.DataFrame, **changes):
    """Returns the configuration of a small run on a log."""
    folder.mkdir(exist_ok=True)
    log.to_csv(folder / "log.csv", index=False)
    values = config_lib.base()
    values.data.update(
        source="table", path=str(folder / "log.csv"), cache_dir=str(folder / "cache")
    )
    values.model.update(width=8, layers=1, heads=1, ffn_width=8, max_length=8)
    values.train.update(steps=2, batch_rows=2, eval_every=1, checkpoint_every=1, log_every=1)
    values.eval.update(batch_rows=2)
    values.update_from_flattened_dict(changes)
    return config_lib.resolve(values)


def shop(users: int, items: int, events: int, seed: int = 0) -> pd.DataFrame:
    """Returns a log in which every user has `events` events."""
    random = np.random.default_rng(seed)
    rows = [
        (user, f"item {item}", time)
        for user in range(users)
        for time, item in enumerate(np.resize(random.permutation(items), events))
    ]
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


@pytest.mark.parametrize(
    "items, predict_from",
    [
        (1, "mask"),
        (1, "last_item"),
        (1, "both"),
        (2, "mask"),
        (3, "both"),
        (5, "last_item"),
        (8, "mask"),
        (12, "both"),
    ],
)
def test_catalogues_of_a_few_items(tmp_path, items, predict_from):
    next_item = {"mask": 0.0, "last_item": 1.0, "both": 0.5}[predict_from]
    changes = {"masking.next_item_share": next_item, "model.predict_from": predict_from}
    config = configure(tmp_path, shop(5, items, max(items, 4)), **changes)
    results = bert4rec_jax.train(config, str(tmp_path / "run"))
    assert 0 <= results["test"]["ndcg@10"] <= 1
    assert 0 <= results["test"]["coverage@10"] <= 1
    json.dumps(results, allow_nan=False)
    assert evaluate(config, str(tmp_path / "run"))["test"] == results["test"]
    run = bert4rec_jax.load(str(tmp_path / "run"))
    assert len(run.recommend_numbers([[1]], 10)[0]) == min(items - 1, 10)
    assert len(run.recommend_numbers([[1]], 10, include_seen=True)[0]) == min(items, 10)
    assert run.recommend_numbers([list(range(1, items + 1))], 10) == [[]]


def test_a_user_with_most_of_the_catalogue(tmp_path):
    log = pd.concat([shop(6, 60, 8), shop(1, 60, 55).assign(user=99)])
    results = bert4rec_jax.train(configure(tmp_path, log), str(tmp_path / "run"))
    ranks = np.load(tmp_path / "run" / "ranks_test.npz")
    assert ranks["candidates"].min() == results["dataset"]["items"] - 54
    assert results["test"]["coverage@10"] > 0


@pytest.mark.parametrize("events", [1, 2, 3])
@pytest.mark.parametrize("users", [1, 3])
def test_users_with_a_few_events(tmp_path, users, events):
    config = configure(tmp_path, shop(users, 6, events))
    # With three events, only one is left for training: its next item is a target.
    message = "has no validation targets" if events < 3 else NO_NEXT_ITEM
    with pytest.raises(UserError, match=message):
        bert4rec_jax.train(config, str(tmp_path / "run"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("users, items, seeds", [(4, 3, (0, 1)), (3, 1, (0,)), (1, 12, (0,))])
def test_reports_of_tiny_runs(tmp_path, users, items, seeds):
    for seed in seeds:
        config = configure(tmp_path, shop(users, items, max(items, 4)), seed=seed)
        bert4rec_jax.train(config, str(tmp_path / f"run{seed}"))
    runs = [tmp_path / f"run{seed}" for seed in seeds]
    code, _, errors = report(*runs, "--baseline", "popular", "--out", tmp_path / "report")
    assert code == 0, errors
    assert "nan" not in (tmp_path / "report" / "log.md").read_text()


def test_seen_items_are_recommended_if_they_are_candidates(tmp_path):
    config = configure(tmp_path, shop(5, 6, 6), **{"eval.filter_seen": False})
    bert4rec_jax.train(config, str(tmp_path / "run"))
    run = bert4rec_jax.load(str(tmp_path / "run"))
    (with_seen,) = run.recommend_numbers([[1, 2]], 10)
    (without_seen,) = run.recommend_numbers([[1, 2]], 10, include_seen=False)
    assert {entry.number for entry in with_seen} == set(range(1, 7))
    assert {entry.number for entry in without_seen} == set(range(3, 7))
