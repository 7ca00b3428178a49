# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bert4rec_jax.portrait import measures, sheet


def test_bins_hold_every_case_once_and_equal_values_together():
    values = np.array([1] * 10 + [2] * 3 + [5] * 7 + [9])
    ranks = np.arange(1, 22).astype(float)
    bins = measures.binned(values, ranks, 4)
    assert sum(b.cases for b in bins) == 21
    assert (np.diff([(b.low, b.high) for b in bins], axis=0) > 0).all()
    first = bins[0]
    assert (first.low, first.high, first.cases, first.hr) == (1, 1, 10, 1)
    assert first.ndcg == pytest.approx(np.mean(1 / np.log2(np.arange(2, 12))))
    assert bins[-1].hr == 0
    (one,) = measures.binned(np.full(5, 3), np.ones(5))
    assert (one.low, one.high, one.cases, one.ndcg) == (3, 3, 5, 1)


def test_principal_axes_are_those_of_the_singular_values():
    embeddings = np.random.default_rng(0).normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1]
    places, shares = measures.principal_axes(embeddings)
    centred = embeddings - embeddings.mean(axis=0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(places), np.abs(centred @ vectors[:2].T), atol=1e-8)
    np.testing.assert_allclose(shares, values[:2] ** 2 / (values**2).sum())


def test_neighbours_are_by_angle_and_never_the_item_itself():
    embeddings = np.array([[1.0, 0], [9, 1], [0, 1], [-1, 0], [0, 0]])
    assert [n for n, _ in measures.neighbours(embeddings, 1, 3)] == [2, 3, 5]
    assert measures.neighbours(embeddings, 1, 1)[0][1] == pytest.approx(9 / np.sqrt(82))
    assert len(measures.neighbours(embeddings, 1, 99)) == 4


def test_concentration_counts_places_and_leaves_out_gaps():
    popularity = np.array([100, *[1] * 19])
    told = measures.concentration(np.array([[1, 2, 0], [1, 3, 4]]), popularity)
    assert told["coverage"] == 4 / 20 and told["head"] == pytest.approx(3 / 5)
    assert told["head_events"] == pytest.approx(101 / 119)


def test_titles_are_escaped():
    text = sheet.table(["<b>"], [["<script>alert(1)</script>\n&"]])
    assert "<script>" not in text and "&lt;script&gt;" in text and "<br>&amp;" in text


def test_the_command_writes_a_page_that_stands_alone(small_run, tmp_path):
    command = [
        sys.executable,
        "-m",
        "bert4rec_jax.portrait",
        "--workdir",
        str(small_run),
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "portrait.html").read_text()
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "item_map.png",
        "by_history_length.png",
        "by_item_popularity.png",
        "popularity.png",
    }
    assert page.count("<img") == 4 and "http" not in page.replace("http-equiv", "")
    for title in ("Item map", "Nearest items", "Best cases", "Worst cases", "leave-one-out"):
        assert title in page


def test_users_of_other_data_are_not_shown(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["dataset"]["fingerprint"] = "0123456789abcdef"  # as if the log had been changed since
    (run / "results.json").write_text(json.dumps(results))
    done = subprocess.run(
        [sys.executable, "-m", "bert4rec_jax.portrait", "--workdir", str(run)],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    page = (run / "portrait" / "portrait.html").read_text()
    assert (
        "The data of the run are not here" in page
        and "not 0123456789abcdef" in page
        and "Best cases" not in page
    )
