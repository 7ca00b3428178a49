# SPDX-License-Identifier: Apache-2.0
"""Run directories made by hand, and the report on them as a command."""

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
from absl import flags
from absl.testing import flagsaver

from bert4rec_jax.config import Config, ModelConfig
from bert4rec_jax.errors import UserError
from bert4rec_jax.ranking.metrics import from_ranks
from experiments import report as command
from experiments.reporting.checking import parameters

CHECKOUT = Path(__file__).parents[1]
USERS = 300
BASELINES = {"popular": 5, "popular_recent": 2, "markov": 1}  # by how much they rank worse


def make_run(
    folder: Path,
    strength: float = 0.0,
    seed: int = 0,
    data: str = "ml-tiny",
    fingerprint: str = "f00",
    protocol: str = "leave one out; full catalogue",
    model: str | None = None,
    starts: tuple[dict, ...] = ({},),
    trained_from: str = "",
    results: dict | None = None,
    arrays: dict | None = None,
    **fields,
) -> Path:
    """Writes the record of a run whose ranks get better with `strength` and vary with `seed`.

    `starts` change the history of starts, `results` and `arrays` add to results.json and ranks_test.npz, other
    keywords such as model__width are fields of the config.
    """
    shared = np.random.default_rng(7)
    item_popularity, history = shared.integers(1, 500, USERS), shared.integers(3, 200, USERS)
    base = shared.integers(1, 100, USERS)
    noise = np.random.default_rng([seed, int(strength * 100)]).uniform(0.7, 1.4, USERS)
    rank = np.maximum(1, (base * noise * (1 - strength)).astype(int))
    ranks = {"rank": rank} | {f"{name}_rank": base + worse for name, worse in BASELINES.items()}
    config = Config().to_dict() | {"seed": seed}
    config["data"] = config["data"] | {"source": "table", "path": "/secret/place/ml"}
    config["train"] = config["train"] | {"steps": 100}
    for name, value in fields.items():
        group, leaf = name.split("__")
        config[group] = config[group] | {leaf: value}
    folder.mkdir(parents=True)
    np.savez(
        folder / "ranks_test.npz",
        user=np.arange(USERS),
        item=shared.integers(1, 99, USERS),
        candidates=np.full(USERS, 400),
        history_length=history,
        item_popularity=item_popularity,
        **ranks,
        **(arrays or {}),
    )
    metrics = {name: from_ranks(values) for name, values in ranks.items()}
    lines = [
        {
            "step": s,
            "split": "valid",
            "seconds": s / 10,
            "ndcg@10": metrics["rank"]["ndcg@10"] * s / 100,
        }
        for s in (25, 50, 100)
    ]
    lines += [
        {
            "step": 100,
            "split": "train",
            "seconds": (results or {}).get("train_seconds", 3600.0),
            "loss": 1.0,
        }
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps(config))
    start = {
        "mode": "train",
        "command": [
            "/home/me/main.py",
            "--config",
            "configs/x.py",
            "--workdir",
            "/secret/place/run",
        ],
        "started": "2026-01-01T00:00:00",
        "git_commit": "abc1234abc1234abc1234",
        "git_dirty": False,
        "versions": {"jax": "0.9"},
        "devices": ["TFRT_CPU_0"],
        "device_count": 1,
        "host": "secret-host",
    }
    environment = {
        "data_fingerprint": fingerprint,
        "trained_from": trained_from,
        "starts": [start | change for change in starts],
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    content = {
        "test": metrics["rank"] | {"coverage@10": 0.5},
        "valid": metrics["rank"],
        "best_step": 100,
        "steps": 100,
        "train_seconds": 3600.0,
        "eval_seconds": 360.0,
        "users_per_second": 1.0,
        "protocol": protocol,
        "seed": seed,
        "dataset": {
            "name": data,
            "users": USERS,
            "items": 400,
            "interactions": 9000,
            "fingerprint": fingerprint,
        },
        "parameters": parameters(ModelConfig(**config["model"]), 400),
        "model": model or "BERT4Rec (Cloze)",
        "cases_digest": "0123456789abcdef",
        "baselines": {name: {"test": metrics[f"{name}_rank"]} for name in BASELINES},
    }
    (folder / "results.json").write_text(json.dumps(content | (results or {})))
    return folder


def change_json(path: Path, *keys: str, value) -> None:
    """Sets one value of a JSON file; None deletes it."""
    content = json.loads(path.read_text())
    group = content
    for key in keys[:-1]:
        group = group[key]
    if value is None:
        del group[keys[-1]]
    else:
        group[keys[-1]] = value
    path.write_text(json.dumps(content))


def report(*words) -> tuple[int, str, str]:
    """Runs the command within this process, as JAX takes seconds to start; returns exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        arguments = flags.FLAGS(["report", *map(str, words)])
        try:
            code = command.main(arguments)
        except UserError as error:
            code = 2
            print(error, file=sys.stderr)
    return code, out.getvalue(), err.getvalue()
