# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import small_config

from bert4rec_jax import experiment as train
from bert4rec_jax.errors import UserError
from bert4rec_jax.recommend import Recommender
from bert4rec_jax.serving.titles import TitleIndex

CATALOGUE = pd.DataFrame({
    "item": ["10", "11", "12", "13", "14", "15", "16"],
    "title": ["Matrix, The", "Toy Story", "Sabrina", "Sabrina", "Seven (a.k.a. Se7en)", "Amélie (Fabuleux destin)",
              "Rock & Roll's Kid"],
    "year": pd.array([1999, 1995, 1954, 1995, 1995, 2001, None], dtype="Int64"),
}, index=range(1, 8))


@pytest.mark.parametrize("typed, item", [
    ("The Matrix", 1), ("matrix, the", 1), ("MATRIX (1999)", 1), ("the matrix (1999)", 1), ("toy story", 2),
    ("Sabrina (1954)", 3), ("Sabrina (1995)", 4), ("Se7en", 5), ("seven (1995)", 5), ("Seven (a.k.a. Se7en) (1995)", 5),
    ("amelie", 6), ("rock and rolls kid", 7), ("12", 3),
])
def test_titles_are_found_as_people_type_them(typed, item):
    assert TitleIndex(CATALOGUE).find(typed) == item


def test_unknown_and_ambiguous_titles_are_refused_with_choices():
    index = TitleIndex(CATALOGUE)
    with pytest.raises(UserError, match=r"Sabrina \(1954\).*Sabrina \(1995\)"):
        index.find("sabrina")
    with pytest.raises(UserError, match="no 'Toy Stroy' .*'Toy Story \\(1995\\)'"):
        index.find("Toy Stroy")
    with pytest.raises(UserError, match="no 'Toy Story \\(2010\\)'"):
        index.find("Toy Story (2010)")


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    results = train.train_and_evaluate(small_config(cache), str(workdir / "original"))
    # From the run directory alone, wherever it went.
    shutil.move(workdir / "original", workdir / "moved")
    return workdir / "moved", results


def test_seen_items_are_never_recommended_and_only_the_newest_count(run):
    recommender = Recommender(str(run[0]))
    history = np.random.default_rng(0).permutation(60)[:40] + 1
    recommended = recommender.recommend(history.tolist(), 60)
    assert len(recommended) == 20
    assert not {item for item, _ in recommended} & set(history.tolist())
    probabilities = [p for _, p in recommended]
    assert probabilities == sorted(probabilities, reverse=True)
    older = recommender.recommend([*history[:25][::-1].tolist(), *history[25:].tolist()], 60)
    assert older == recommended


def test_recommending_agrees_with_the_ranking_of_the_test_users(run, cache):
    recommender = Recommender(str(run[0]))
    experiment = train.Experiment(small_config(cache))
    cases, ranks = experiment.cases("test"), np.load(run[0] / "ranks_test.npz")["rank"]
    for case in range(0, len(cases.users), 10):
        history = experiment.dataset.items[cases.starts[case]:cases.targets[case]].tolist()
        order = [item for item, _ in recommender.recommend(history, 60)]
        assert abs(order.index(experiment.dataset.items[cases.targets[case]]) + 1 - ranks[case]) <= 1


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "bert4rec_jax.recommend", *arguments],
                          capture_output=True, text=True, check=False)


def test_the_command_prints_json_and_one_line_for_what_is_wrong(run):
    title = "Genre 1, item 1"
    answer = command("--workdir", str(run[0]), "--history", title, "--k", "3", "--json")
    assert answer.returncode == 0, answer.stderr
    assert len(json.loads(answer.stdout)["recommended"]) == 3
    for arguments in (["--workdir", str(run[0]), "--history", "Gerne 1, itme 1"], ["--workdir", "nowhere", "--history", "x"],
                      ["--workdir", str(run[0])]):
        failed = command(*arguments)
        assert failed.returncode == 2
        assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
