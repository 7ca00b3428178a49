# SPDX-License-Identifier: Apache-2.0
"""--check with a forged table, a forged record, and a record that this version cannot reproduce."""

import json
import re

import numpy as np
import pytest
from hand_made_runs import USERS, change_json, make_run, report

from bert4rec_jax import config as config_lib
from bert4rec_jax.ranking.metrics import from_ranks
from experiments.reporting import checking, records


@pytest.fixture
def table(sweep, tmp_path):
    """A report on the sweep, in Markdown, LaTeX and CSV."""
    out = tmp_path / "out"
    flags = (
        "--baseline",
        "width=32",
        "--out",
        out,
        "--format",
        "markdown,latex,csv",
        "--nofigures",
        "--resamples",
        1000,
    )
    assert report(sweep, *flags)[0] == 0
    return out / "ml-tiny.md"


def test_a_changed_digit_is_named(table, sweep):
    code, out, _ = report("--check", table)  # finds the records by itself
    assert code == 0 and "this version can reproduce them" in out
    assert not checking.check(table, [str(sweep)])

    text = table.read_text()
    cell = re.search(r"\*\*(0\.\d{4})\*\*", text)[1]
    forged = cell[:-1] + str((int(cell[-1]) + 1) % 10)
    table.write_text(text.replace(cell, forged, 1))
    code, _, err = report("--check", table)
    assert (
        code == 1
        and "row 'BERT4Rec (Cloze), width=64', column 'ndcg@10'" in err
        and forged in err
        and cell in err
    )
    for old, new in (
        ("abc1234abc12", "abc1235abc12"),
        ("| better |", "| equal |"),
        ("seed 2: `python", "seed 3: `python"),
    ):
        assert old in text
        table.write_text(text.replace(old, new))
        assert len(checking.check(table, [])) >= 1, old
    table.write_text(text + "\n\nmore\n")
    assert not checking.check(table, [])  # --check ignores text outside the table

    for suffix, old, new in (
        (".tex", cell.lstrip("0"), forged.lstrip("0")),
        (".csv", ",3.3\n", ",3.4\n"),
    ):
        beside = table.with_suffix(suffix)
        kept = beside.read_text()
        beside.write_text(kept.replace(old, new, 1))
        problems = checking.check(table, [])
        assert problems and all(problem.startswith(beside.name) for problem in problems)
        beside.write_text(kept)
    assert not checking.check(table, [])


@pytest.mark.parametrize(
    ("file", "keys", "value", "said"),
    [
        (
            "results.json",
            ("test", "ndcg@10"),
            0.5,
            "results.json has test ndcg@10 = 0.500000, but ranks_test.npz yields",
        ),
        (
            "results.json",
            ("baselines", "markov", "test", "mrr"),
            0.5,
            "results.json has markov mrr = 0.500000",
        ),
        ("results.json", ("seed",), 7, "results.json has seed 7, config.json has seed 0"),
        ("config.json", ("train", "steps"), 99, "results.json has 100 steps, config.json has 99"),
        (
            "results.json",
            ("model",),
            "BERT4Rec",
            "results.json has the model name 'BERT4Rec', this version 'BERT4Rec (Cloze)'",
        ),
        (
            "results.json",
            ("parameters",),
            77,
            "results.json has 77 parameters, the config's model has",
        ),
        ("config.json", ("model", "width"), 32, "parameters, the config's model has"),
        (
            "results.json",
            ("best_step",),
            50,
            "results.json has best step 50, metrics.jsonl has 100",
        ),
        (
            "results.json",
            ("valid", "ndcg@10"),
            0.5,
            "results.json has valid ndcg@10 = 0.500000, metrics.jsonl has",
        ),
        (
            "results.json",
            ("train_seconds",),
            3601.0,
            "results.json has 3601.00 s of training, metrics.jsonl has 3600.00",
        ),
        (
            "config.json",
            ("model", "width"),
            None,
            "lacks config.model.width, which is 64 in this version",
        ),
        (
            "config.json",
            ("model", "width"),
            "wide",
            "rejects its config.json: config.model.width must be of type int",
        ),
        (
            "config.json",
            ("model", "old_field"),
            1,
            "rejects its config.json: unknown config field config.model.old_field",
        ),
        ("environment.json", ("starts",), None, "contains no history of starts"),
        (
            "environment.json",
            ("starts", 0, "git_dirty"),
            True,
            "with files that were not committed",
        ),
        ("environment.json", ("starts", 0, "git_commit"), None, "started"),
    ],
)
def test_a_record_that_this_version_cannot_reproduce_is_reported(tmp_path, file, keys, value, said):
    run = make_run(tmp_path / "a")
    assert not checking.check_records(records.find([str(run)])[0])
    if keys[:2] == ("starts", 0):
        content = json.loads((run / file).read_text())
        content["starts"][0][keys[2]] = value
        (run / file).write_text(json.dumps(content))
    else:
        change_json(run / file, *keys, value=value)
    problems = checking.check_records(records.find([str(run)])[0])
    assert problems and all(problem.startswith(str(run)) for problem in problems)
    assert any(said in problem for problem in problems), problems


def test_a_config_that_its_command_no_longer_yields_is_reported(tmp_path, monkeypatch):
    command = [
        "main.py",
        "--config",
        "quickstart.py",
        "--workdir",
        "x",
        "--config.seed=3",
        "--config.data.source=table",
        "--config.data.path=ml",
        "--config.data.user_column=1",
    ]
    made = config_lib.load(config_lib.shipped()["quickstart"]).to_dict()
    made["data"] |= {"source": "table", "path": "elsewhere/ml", "user_column": "1"}
    run = make_run(
        tmp_path / "a",
        seed=3,
        model="BERT4Rec + next item",
        starts=({"command": command},),
        **{
            f"{group}__{name}": value
            for group in made
            if group != "seed"
            for name, value in made[group].items()
        },
    )
    assert not checking.check_records(records.find([str(run)])[0])
    change_json(run / "config.json", "optimizer", "beta2", value=0.97)
    (problem,) = checking.check_records(records.find([str(run)])[0])
    assert (
        "with today's configs/quickstart.py sets config.optimizer.beta2 = 0.98, its config.json has 0.97"
        in problem
    )
    change_json(run / "config.json", "optimizer", "beta2", value=0.98)
    recommended = config_lib.recommended
    monkeypatch.setattr(
        config_lib, "recommended", lambda: changed(recommended())
    )  # as if its file had been changed
    (problem,) = checking.check_records(records.find([str(run)])[0])
    assert "sets config.optimizer.clip_norm = 5.0, its config.json has 0.0" in problem


def changed(config):
    config.optimizer.clip_norm = 5.0
    return config


def test_metrics_of_tied_targets_follow_from_the_ranks(tmp_path):
    tied = np.arange(USERS) < 20
    ranks = np.load(make_run(tmp_path / "a") / "ranks_test.npz")["rank"]
    apart = {
        "test_tied": {"users": 20, **from_ranks(ranks[tied])},
        "test_untied": {"users": 280, **from_ranks(ranks[~tied])},
    }
    run = make_run(tmp_path / "b", results=apart, arrays={"tied": tied})
    assert not checking.check_records(records.find([str(run)])[0])
    change_json(run / "results.json", "test_untied", "mrr", value=0.9)
    (problem,) = checking.check_records(records.find([str(run)])[0])
    assert "results.json has test_untied mrr = 0.900000" in problem


def test_what_changes_nothing_may_be_missing_from_a_config(tmp_path):
    run = make_run(tmp_path / "a")
    change_json(run / "config.json", "parallel", "item_shards", value=None)
    change_json(run / "config.json", "data", "cache_dir", value=None)
    assert not checking.check_records(records.find([str(run)])[0])


def test_a_table_without_its_records_or_of_another_program_is_an_answer(table, tmp_path):
    text = table.read_text()
    code, _, err = report("--check", table, tmp_path / "nowhere")
    assert code == 2 and err.count("\n") == 1
    table.write_text(text.replace('"margin"', '"latitude"'))
    assert any("cannot be derived" in problem for problem in checking.check(table, []))
    table.write_text("nothing\n")
    assert report("--check", table)[0] == 2
