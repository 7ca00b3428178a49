# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bert4rec_jax.portrait import html_report, measures


def test_every_case_is_in_one_bin_and_equal_values_share_a_bin():
    values = np.array([1] * 10 + [2] * 3 + [5] * 7 + [9])
    ranks = np.arange(1, 22).astype(float)
    bins = measures.ndcg_in_bins(values, ranks, 4)
    assert sum(entry.cases for entry in bins) == 21
    assert (np.diff([(entry.low, entry.high) for entry in bins], axis=0) > 0).all()
    first = bins[0]
    assert (first.low, first.high, first.cases) == (1, 1, 10)
    assert first.ndcg == pytest.approx(np.mean(1 / np.log2(np.arange(2, 12))))
    assert bins[-1].ndcg == 0
    assert measures.ndcg_in_bins(np.full(5, 3), np.ones(5)) == [(3, 3, 5, 1)]


def test_principal_axes_agree_with_the_singular_value_decomposition():
    embeddings = np.random.default_rng(0).normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1]
    places, shares = measures.principal_axes(embeddings)
    centred = embeddings - embeddings.mean(axis=0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(places), np.abs(centred @ vectors[:2].T), atol=1e-8)
    np.testing.assert_allclose(shares, values[:2] ** 2 / (values**2).sum())


def test_nearest_items_are_sorted_by_angle_without_the_item_itself():
    embeddings = np.array([[1.0, 0], [9, 1], [0, 1], [-1, 0], [0, 0]])
    assert [number for number, _ in measures.nearest_items(embeddings, 1, 3)] == [2, 3, 5]
    assert measures.nearest_items(embeddings, 1, 1)[0][1] == pytest.approx(9 / np.sqrt(82))
    assert len(measures.nearest_items(embeddings, 1, 99)) == 4


def test_concentration_ignores_the_ends_of_short_lists():
    popularity = np.array([100, *[1] * 19])
    found = measures.concentration(np.array([[1, 2, 0], [1, 3, 4]]), popularity)
    assert found.coverage == 4 / 20
    assert found.popular_places == pytest.approx(3 / 5)
    assert found.popular_events == pytest.approx(101 / 119)


def test_report_escapes_all_texts():
    hostile = "<script>alert(1)</script>\n&"
    cell = html_report.text(hostile)
    section = html_report.section(
        hostile, html_report.note(hostile), html_report.table([hostile], [[cell]])
    )
    page = html_report.page(hostile, [section])
    assert "<script>" not in page and page.count("&lt;script&gt;") == 6
    assert "<br>&amp;" in cell


def test_command_writes_a_page_without_external_files(small_run, tmp_path):
    run_portrait("--workdir", str(small_run), "--out", str(tmp_path))
    page = (tmp_path / "portrait.html").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {
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
    results["dataset"]["fingerprint"] = "0123456789abcdef"  # as if the log had changed
    (run / "results.json").write_text(json.dumps(results))
    run_portrait("--workdir", str(run))
    page = (run / "portrait" / "portrait.html").read_text()
    assert "No user is shown" in page and "not 0123456789abcdef" in page
    assert "Best cases" not in page


def run_portrait(*arguments):
    command = [sys.executable, "-m", "bert4rec_jax.portrait", *arguments]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
