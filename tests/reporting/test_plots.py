# SPDX-License-Identifier: Apache-2.0
"""Figures label their bars, and the bars are the table's numbers."""

import re

import numpy as np
import pytest
from hand_made_runs import BASELINES, report
from matplotlib import pyplot
from scipy import stats

from experiments.reporting import records
from experiments.reporting.rows import rows

plots = pytest.importorskip("experiments.reporting.plots")


@pytest.fixture
def drawn(sweep):
    found, _ = rows(records.find([str(sweep)])[0])
    return found, plots.draw_all("ml-tiny", found, "ndcg@10", "popular", "se")


def test_no_figure_stays_open(drawn):
    # Figures made with pyplot stay open until the process ends, and matplotlib warns at the twenty-first.
    assert pyplot.get_fignums() == []


def bars(axis) -> dict[str, list[tuple[float, float]]]:
    """Returns (height, half of the bar) of each point, by the label of its line."""
    found = {}
    for container in axis.containers:
        segments = container.lines[2][0].get_segments()
        found[container.get_label()] = [
            (float(y[:, 1].mean()), float(np.ptp(y[:, 1]) / 2)) for y in segments
        ]
    return found


def test_bars_over_seeds_are_those_of_the_table(drawn, sweep):
    found, all_drawn = drawn
    (points,) = bars(all_drawn["parameters"].figure.axes[0]).values()
    values = [
        row.values("ndcg@10", "test") for row in found if not row.baseline
    ]  # widths 32, 33, 64
    assert points == [pytest.approx((v.mean(), stats.sem(v))) for v in values]
    assert "standard error of the mean over seeds" in all_drawn["parameters"].caption
    sd = plots.draw_all("ml-tiny", found, "ndcg@10", "popular", "sd")["parameters"]
    assert (
        "± standard error of the mean over seeds" in all_drawn["parameters"].figure.get_suptitle()
    )
    (points,) = bars(sd.figure.axes[0]).values()
    assert points == [pytest.approx((v.mean(), np.std(v, ddof=1))) for v in values]
    assert "standard deviation over seeds" in sd.caption


def test_bars_over_cases_are_95_percent_intervals_and_say_so(drawn):
    found, all_drawn = drawn
    row = next(row for row in found if row.baseline == "popular")
    case, key = row.per_case("ndcg@10")[:, 0], row.runs[0].ranks["history_length"]
    height, half = bars(all_drawn["history_length"].figure.axes[0])["popular"][0]
    group = case[key <= np.quantile(key, 0.2, method="nearest") - 1]
    assert height == pytest.approx(group.mean())
    assert half == pytest.approx(
        group.mean() - stats.t.interval(0.95, len(group) - 1, group.mean(), stats.sem(group))[0]
    )
    assert "95 % intervals over the cases" in all_drawn["history_length"].caption


def test_every_figure_has_a_title_and_curves_show_all_baselines(drawn):
    _, all_drawn = drawn
    assert set(all_drawn) == {"curves", "parameters", "history_length", "item_popularity"}
    for name, one in all_drawn.items():
        assert one.figure.get_suptitle() == f"{one.title}\n{one.spread}" and one.spread, name
        assert one.title.startswith("ml-tiny: ") and one.caption, name
    labels = all_drawn["curves"].figure.axes[0].get_legend_handles_labels()[1]
    assert {f"{name} (test)" for name in BASELINES} < set(labels)


def test_report_writes_figures_and_a_page_with_captions(sweep, tmp_path):
    out = tmp_path / "out"
    code, _, err = report(sweep, "--baseline", "popular", "--out", out, "--resamples", 500)
    assert code == 0, err
    for name in ("curves", "parameters", "history_length", "item_popularity"):
        assert (out / f"ml-tiny-{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"ml-tiny-{name}.png").stat().st_size > 5000
    page = (out / "report.html").read_text()
    assert (
        page.count("data:image/png;base64,") == 4 == page.count("<figcaption>")
        and "width=64" in page
    )
    assert "<figcaption>ml-tiny: validation ndcg@10 during training. Mean over seeds" in page
    assert not re.findall(r"(?:src|href)=.?https?:", page)
