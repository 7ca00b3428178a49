# SPDX-License-Identifier: Apache-2.0
import copy
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from conftest import small_config

import bert4rec_jax
from bert4rec_jax.errors import UserError
from bert4rec_jax.experiment import Experiment
from bert4rec_jax.recommend import answer_all
from bert4rec_jax.serving import read_histories
from bert4rec_jax.serving.titles import TitleIndex

CATALOGUE = pd.DataFrame(
    {
        "item": ["10", "11", "12", "13", "14", "15", "16"],
        "title": [
            "Matrix, The",
            "Toy Story",
            "Sabrina",
            "Sabrina",
            "Seven (a.k.a. Se7en)",
            "Amélie (Fabuleux destin)",
            "Rock & Roll's Kid",
        ],
        "year": pd.array([1999, 1995, 1954, 1995, 1995, 2001, None], dtype="Int64"),
    },
    index=range(1, 8),
)


@pytest.mark.parametrize(
    "typed, item",
    [
        ("The Matrix", 1),
        ("matrix, the", 1),
        ("MATRIX (1999)", 1),
        ("the matrix (1999)", 1),
        ("toy story", 2),
        ("Sabrina (1954)", 3),
        ("Sabrina (1995)", 4),
        ("Se7en", 5),
        ("seven (1995)", 5),
        ("Seven (a.k.a. Se7en) (1995)", 5),
        ("amelie", 6),
        ("rock and rolls kid", 7),
        ("12", 3),
    ],
)
def test_titles_are_found_as_people_type_them(typed, item):
    assert TitleIndex(CATALOGUE).find(typed) == item


def test_ids_and_titles_are_told_apart():
    catalogue = pd.DataFrame(
        {
            "item": ["187", "9", "5", "6"],
            "title": ["Casino", "187", "Twins", "Twins"],
            "year": pd.array([1995, 1997, 1988, 1988], dtype="Int64"),
        },
        index=range(1, 5),
    )
    index = TitleIndex(catalogue)
    with pytest.raises(
        UserError,
        match=r"'187' is the id of 'Casino \(1995\)' and the title of '187 \(1997\)'; write 'id:187'",
    ):
        index.find("187")
    assert (
        index.find("id:187") == 1 and index.find("title:187") == 2 and index.find("187 (1997)") == 2
    )
    with pytest.raises(
        UserError, match="'Twins' is the title of 2 items; write the id of one: id:5, id:6"
    ):
        index.find("Twins")
    with pytest.raises(UserError, match="not contain an item with the id '188'.*'187'"):
        index.find("id:188")
    with pytest.raises(UserError) as raised:
        index.find("x" * 10_000)
    assert len(str(raised.value)) < 300


def test_the_nearest_titles_hold_the_word_and_the_best_known_come_first():
    catalogue = pd.DataFrame(
        {
            "item": list("abcd"),
            "title": ["Stag", "Stalker", "Star Wars", "Star Trek"],
            "training_interactions": [5, 9, 500, 300],
        },
        index=range(1, 5),
    )
    with pytest.raises(UserError, match="the nearest are 'Star Wars', 'Star Trek', 'Stag'"):
        TitleIndex(catalogue).find("star")


def test_unknown_and_ambiguous_titles_are_refused_with_choices():
    index = TitleIndex(CATALOGUE)
    with pytest.raises(UserError, match=r"Sabrina \(1954\).*Sabrina \(1995\)"):
        index.find("sabrina")
    with pytest.raises(UserError, match="no 'Toy Stroy' .*'Toy Story \\(1995\\)'"):
        index.find("Toy Stroy")
    with pytest.raises(UserError, match="no 'Toy Story \\(2010\\)'"):
        index.find("Toy Story (2010)")


def test_labels_of_all_are_the_label_of_each():
    table = pd.DataFrame(
        {
            "item": [7, 8, 9, 10],
            "title": ["A", None, "C, The (x)", ""],
            "year": [1999, 2000, None, 1],
        },
        index=range(1, 5),
    )
    for columns in (["item"], ["item", "title"], ["item", "title", "year"]):
        index = TitleIndex(table[columns])
        assert index.labels() == [index.label(number) for number in range(1, 5)]
    assert index.labels() == ["A (1999)", "8", "C, The (x)", " (1)"]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def run(request, cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = small_config(cache, **{"model.dtype": request.param})
    results = bert4rec_jax.train(config, str(workdir / "original"))
    # From the run directory alone, wherever it went.
    shutil.move(workdir / "original", workdir / "moved")
    return workdir / "moved", results


def test_a_library_says_nothing_where_nothing_is_wrong(run, caplog):
    bert4rec_jax.load(str(run[0]))
    assert not caplog.records


def test_seen_items_are_never_recommended_and_only_the_newest_count(run):
    recommender = bert4rec_jax.load(str(run[0]))
    history = np.random.default_rng(0).permutation(60)[:40] + 1
    recommended = recommender.recommend_numbers([history.tolist()], 60)[0]
    assert len(recommended) == 20
    assert not {r.number for r in recommended} & set(history.tolist())
    probabilities = [r.probability for r in recommended]
    assert probabilities == sorted(probabilities, reverse=True)
    older = recommender.recommend_numbers([[*history[:25][::-1], *history[25:]]], 60)[0]
    assert older == recommended
    everything = recommender.recommend_numbers([history.tolist()], 60, include_seen=True)[0]
    assert len(everything) == 60 and sum(r.probability for r in everything) == pytest.approx(
        1, abs=1e-4
    )


def test_titles_ids_and_item_numbers_give_the_same_lists(run):
    recommender = bert4rec_jax.load(str(run[0]))
    label = recommender.titles.label
    numbers = [[3, 17, 5], [8, 1]]
    titles = [[label(number) for number in history] for history in numbers]
    ids = [[int(recommender.items_table.at[n, "item"]) for n in history] for history in numbers]
    expected = recommender.recommend_numbers(numbers, 5)
    assert recommender.recommend_many(titles, 5) == expected
    assert recommender.recommend_many(ids, 5) == expected
    assert [entry.number for entry in recommender.recommend(titles[0], 5)] == [
        entry.number for entry in expected[0]
    ]
    first = expected[0][0]
    scores = recommender.score(titles, [first.item, label(60)])
    assert scores.shape == (2, 2) and scores[0, 0] == pytest.approx(first.score, rel=1e-2)
    np.testing.assert_array_equal(scores[:, 1], recommender.score_numbers(numbers)[:, 59])
    assert recommender.embeddings.shape == (60, 16)
    assert recommender.results == json.loads(json.dumps(run[1]))


def test_integers_are_ids_of_the_data_and_not_item_numbers(recommender):
    shifted = copy.copy(recommender)
    shifted.items_table = recommender.items_table.assign(
        item=[str(number + 1000) for number in recommender.items_table.index]
    )
    shifted.titles = TitleIndex(shifted.items_table)
    assert shifted.item_numbers([1003, np.int64(1017), "1005"]) == [3, 17, 5]
    with pytest.raises(UserError, match="not contain an item with the id '3'"):
        shifted.item_numbers([3])


@pytest.mark.parametrize(
    "history, message",
    [
        ([], "this one is empty"),
        ([99999], "not contain an item with the id '99999'"),
        ([True], "True is neither"),
        ([1.5], "1.5 is neither"),
        ([None], "None is neither"),
        ([["1"]], r"\['1'\] is neither"),
        (["Nothing like it"], "no 'Nothing"),
        ("Genre 1, item 1", "a single text"),
        (None, "this one is NoneType"),
        ({"1": 2}, "this one is dict"),
        (1.5, "this one is float"),
    ],
)
def test_other_histories_are_rejected(recommender, history, message):
    with pytest.raises(UserError, match=message):
        recommender.recommend(history)
    with pytest.raises(UserError, match=message):
        recommender.recommend_many([["1"], history])


def test_a_run_loaded_before_a_fork_is_rejected(recommender, monkeypatch):
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(UserError, match="loaded before a fork.*spawn"):
        recommender.recommend_numbers([[1, 2]])


def test_another_k_and_another_history_need_no_compilation(recommender, caplog):
    recommender.recommend_numbers([[1, 2, 3]], 10)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        recommender.recommend_numbers([[4, 5]], 3)
        recommender.recommend_numbers([[*range(1, 40)]], 16)
        assert not [record for record in caplog.records if "_list_step" in record.getMessage()]
        recommender.recommend_numbers([[1, 2, 3]], 40)
        assert [record for record in caplog.records if "_list_step" in record.getMessage()]


def test_scores_are_those_of_the_ranker_to_the_last_bit(run, cache):
    recommender = bert4rec_jax.load(str(run[0]))
    experiment = Experiment(recommender.config)
    cases, ranks = experiment.cases("test"), np.load(run[0] / "ranks_test.npz")["rank"]
    items = experiment.dataset.items
    histories = [items[start:target].tolist() for start, target in zip(cases.starts, cases.targets)]
    scores = recommender.score_numbers(histories)
    for case, history in enumerate(histories):
        target = items[cases.targets[case]]
        others = np.setdiff1d(np.arange(1, 61), [*history, target])
        assert 1 + (scores[case, others - 1] >= scores[case, target - 1]).sum() == ranks[case]


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bert4rec_jax.recommend", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def said_nothing_but_progress(done) -> bool:
    """Whether stderr is empty, except for the progress of long phases on a slow machine."""
    return all(line.endswith(" s so far") for line in done.stderr.splitlines())


@pytest.fixture(scope="module")
def recommender(run):
    return bert4rec_jax.load(str(run[0]))


TITLE = "Genre 1, item 1"
HISTORIES = [  # content of the file, and a word of the error; None: it succeeds
    ({"a": [TITLE], "b": ["nothing like it"], "c": []}, None),
    ([[TITLE], [TITLE, TITLE]], None),
    ({"a": [1, 2, 3]}, None),
    ({"a": [1.0]}, None),
    ({"a": [10**30]}, None),
    ({"a": ["x" * 10_000]}, None),
    ({"a": ["id:1", "title:1"]}, None),
    ({"": [TITLE]}, None),
    ({"a": [""]}, None),
    ({"a": [" "]}, None),
    ({"a": [TITLE] * 500}, None),
    ({"a": ["\0"]}, None),
    ({"é 中": [TITLE]}, None),
    ({"a": ["id:"]}, None),
    ({"a": [-1, 0, 1.5]}, None),
    ([], "no histories"),
    ({}, "no histories"),
    ("text", "no histories"),
    (3, "no histories"),
    (None, "no histories"),
    (True, "no histories"),
    ([TITLE], "must be a list"),
    ({"a": TITLE}, "must be a list"),
    ({"a": {"b": 1}}, "must be a list"),
    ({"a": None}, "must be a list"),
    ({"a": 3}, "must be a list"),
    ({"a": [None]}, "neither a title nor an id"),
    ({"a": [True]}, "neither a title nor an id"),
    ({"a": [[1]]}, "neither a title nor an id"),
    ({"a": [{"item": 1}]}, "neither a title nor an id"),
    ({"a": [float("nan")]}, "neither a title nor an id"),
    ({"a": [TITLE], "b": 1}, "'b' must be a list"),
    ([[TITLE], None], "'2' must be a list"),
    ({"a": ["half \ud800"]}, "unpaired surrogate"),
    ({"half \udfff": [TITLE]}, "unpaired surrogate"),
    ({"a": ["\U0001f600"]}, None),
]
RAW = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[1,]", "not JSON"),
    (b"{'a': []}", "not JSON"),
    (b"user,item\n1,2\n", "not JSON"),
    (b"\0\0\0", "not JSON"),
    (b"[" * 100_000, "too deeply"),
    (b'{"a":' * 50_000, "too deeply"),
    (b'{"a": [' + b"[" * 900 + b"]" * 900 + b"]}", "too deeply|neither a title"),
    (b'{"a": ["x"], "a": ["y"]}', "the key 'a' appears twice"),
    (b'\xef\xbb\xbf[["x"]]', None),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "content, named", [(json.dumps(c).encode(), n) for c, n in HISTORIES] + RAW
)
def test_files_of_histories_end_in_an_answer_or_in_one_line(recommender, tmp_path, content, named):
    path = tmp_path / "histories.json"
    path.write_bytes(content)
    if named is not None:
        with pytest.raises(UserError, match=named) as raised:
            read_histories(str(path))
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
        return
    histories = read_histories(str(path))
    answers = answer_all(recommender, histories, 3, skip_unknown=True)
    assert json.dumps(histories, ensure_ascii=False).encode(), "something that cannot be printed"
    assert answers.keys() == histories.keys()
    for name, answer in answers.items():
        assert len(answer.recommended) == 3
        assert answer.is_popular == (not answer.history)
        assert len(answer.history) + len(answer.unknown) == len(histories[name])


def test_the_command_prints_json_and_one_line_for_what_is_wrong(run, tmp_path):
    answer = command("--workdir", run[0], "--history", TITLE, "--k", "3", "--json")
    assert answer.returncode == 0, answer.stderr
    assert len(json.loads(answer.stdout)["recommended"]) == 3 and said_nothing_but_progress(answer)
    (tmp_path / "h.json").write_text(json.dumps({"known": [TITLE], "unknown": ["Nothing"]}))
    answer = command("--workdir", run[0], "--histories", tmp_path / "h.json")
    assert answer.returncode == 0, answer.stderr
    assert (
        f"history: {TITLE} [id" in answer.stdout
        and "showing the most popular items" in answer.stdout
    )
    shell = f"{sys.executable} -m bert4rec_jax.recommend --workdir {run[0]} --history '{TITLE}' --k 60 | head -1"
    piped = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell], capture_output=True, text=True, check=False
    )
    assert piped.stdout.count("\n") == 1 and said_nothing_but_progress(piped)
    for arguments in (
        ["--workdir", run[0], "--history", "Gerne 1, itme 1"],
        ["--workdir", "nowhere", "--history", "x"],
        ["--workdir", run[0]],
        ["--workdir", run[0], "--history", TITLE, "--k", "0"],
        ["--workdir", run[0], "--histories", tmp_path / "missing.json"],
    ):
        failed = command(*arguments)
        assert failed.returncode == 2
        assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1, failed.stderr


def test_a_run_without_a_model_names_the_run_that_it_evaluated(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="contains no checkpoint yet; train first"):
        bert4rec_jax.load(str(run))
    environment = json.loads((run / "environment.json").read_text())
    environment["trained_from"] = "runs/other"
    (run / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(
        UserError, match="contains no model; it evaluated the model of runs/other. Use that run"
    ):
        bert4rec_jax.load(str(run))
