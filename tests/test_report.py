# SPDX-License-Identifier: Apache-2.0
"""Reports from hand-made run directories; the statistics against SciPy."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bert4rec_jax.config import Config
from bert4rec_jax.ranking.metrics import from_ranks, per_user
from experiments.reporting import statistics

CHECKOUT = Path(__file__).parent.parent
USERS = 300


def make_run(
    folder: Path,
    strength: float = 0.0,
    seed: int = 0,
    data: str = "ml-tiny",
    fingerprint: str = "f00",
    protocol: str = "leave one out; full catalogue",
    **fields,
) -> Path:
    """Writes the record of a run whose ranks get better with `strength`."""
    shared = np.random.default_rng(7)
    item_popularity, history = shared.integers(1, 500, USERS), shared.integers(3, 200, USERS)
    base = shared.integers(1, 100, USERS)
    noise = np.random.default_rng([seed, int(strength * 100)]).uniform(0.7, 1.4, USERS)
    rank = np.maximum(1, (base * noise * (1 - strength)).astype(int))
    ranks = {"rank": rank, "popular_rank": base + 5, "popular_recent_rank": base + 2}
    config = Config().to_dict() | {"seed": seed}
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
    )
    metrics = {name: from_ranks(values) for name, values in ranks.items()}
    lines = [
        {"step": s, "split": "valid", "seconds": s / 10, "ndcg@10": metrics["rank"]["ndcg@10"] * s / 100}
        for s in (25, 50, 100)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(
        json.dumps(
            {
                "versions": {"jax": "0.9"},
                "devices": ["TFRT_CPU_0"],
                "device_count": 1,
                "git_commit": "abc1234",
                "command": [
                    "/home/me/main.py",
                    "--config",
                    "configs/x.py",
                    f"--config.seed={seed}",
                    "--config.data.path=/secret/ml",
                    "--workdir",
                    "/secret/run",
                ],
                "data_fingerprint": fingerprint,
                "host": "secret-host",
                "started": "2026-01-01T00:00:00",
            }
        )
    )
    (folder / "results.json").write_text(
        json.dumps(
            {
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
                "parameters": 10,
                "model": "BERT4Rec",
                "baselines": {name: {"test": metrics[f"{name}_rank"]} for name in ("popular", "popular_recent")},
            }
        )
    )
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Three widths with three seeds each; width 64 is much better than 32, width 33 hardly."""
    root = tmp_path / "sweep"
    for seed in range(3):
        for width, strength in ((32, 0.0), (33, 0.02), (64, 0.5)):
            make_run(
                root / f"{len(list(root.glob('*'))) if root.exists() else 0:03d}",
                strength,
                seed,
                model__width=width,
            )
    return root


def report(*words) -> tuple[int, str, str]:
    process = subprocess.run(
        [sys.executable, "-m", "experiments.report", *map(str, words)],
        cwd=CHECKOUT,
        text=True,
        capture_output=True,
    )
    assert "Traceback" not in process.stderr, process.stderr
    return process.returncode, process.stdout, process.stderr


def ranks_of(root: Path, indices) -> list[np.ndarray]:
    return [np.load(root / f"{i:03d}/ranks_test.npz")["rank"] for i in indices]


def test_table_holds_means_deviations_places_and_paired_tests(sweep, tmp_path):
    code, _, err = report(
        sweep,
        "--baseline",
        "width=32",
        "--out",
        tmp_path / "out",
        "--format",
        "csv",
        "--nofigures",
        "--metrics",
        "ndcg@10,mrr",
    )
    assert code == 0, err
    lines = {(r["model"], r["metric"]): r for r in csv.DictReader((tmp_path / "out/ml-tiny.csv").open())}
    assert {m for m, _ in lines} == {
        "popular",
        "popular_recent",
        *(f"BERT4Rec, width={w}" for w in (32, 33, 64)),
    }
    wide, narrow = ranks_of(sweep, (2, 5, 8)), ranks_of(sweep, (0, 3, 6))
    row = lines["BERT4Rec, width=64", "ndcg@10"]
    per_seed = [per_user("ndcg@10", ranks).mean() for ranks in wide]
    assert float(row["mean"]) == pytest.approx(np.mean(per_seed))
    assert float(row["sd"]) == pytest.approx(np.std(per_seed, ddof=1))
    assert float(row["se"]) == pytest.approx(stats.sem(per_seed))
    assert (row["place"], lines["BERT4Rec, width=32", "ndcg@10"]["place"]) == ("1", "")
    assert float(row["device_hours"]) == pytest.approx(3 * 1.1)

    # Every p-value by SciPy, from the ranks, then Holm by hand.
    users = lambda ranks, metric: np.mean([per_user(metric, r) for r in ranks], axis=0)  # noqa: E731
    groups = {"BERT4Rec, width=33": ranks_of(sweep, (1, 4, 7)), "BERT4Rec, width=64": wide}
    for name in ("popular", "popular_recent"):
        groups[name] = [np.load(sweep / "000/ranks_test.npz")[f"{name}_rank"]]
    p = {
        (name, metric): stats.ttest_rel(users(ranks, metric), users(narrow, metric)).pvalue
        for name, ranks in groups.items()
        for metric in ("ndcg@10", "mrr")
    }
    largest = 0.0
    for position, key in enumerate(sorted(p, key=p.get)):
        largest = max(largest, (len(p) - position) * p[key])
        assert float(lines[key]["p_t"]) == pytest.approx(min(1.0, largest), rel=1e-9)
    difference = users(wide, "mrr") - users(narrow, "mrr")
    row = lines["BERT4Rec, width=64", "mrr"]
    assert float(row["difference"]) == pytest.approx(difference.mean())
    interval = stats.bootstrap((difference,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    width = interval.high - interval.low
    assert float(row["low"]) == pytest.approx(interval.low, abs=0.05 * width)
    assert float(row["high"]) == pytest.approx(interval.high, abs=0.05 * width)


def test_bootstrap_p_values_are_calibrated_and_holm_is_known():
    generator = np.random.default_rng(0)
    null = generator.normal(size=(80, 400)) ** 3  # no difference, heavy tails
    p = statistics.paired_bootstrap(null, 400, seed=1)[2]
    assert 0.02 < np.mean(p < 0.05) < 0.09
    shifted = generator.normal(0.25, 1, size=(200, 1))
    p_t, p_b = statistics.paired_t(shifted[:, 0]), statistics.paired_bootstrap(shifted, 20_000)[2][0]
    assert p_t == pytest.approx(stats.ttest_rel(shifted[:, 0], np.zeros(200)).pvalue)
    assert p_b == pytest.approx(p_t, abs=0.005)
    assert statistics.paired_bootstrap(np.zeros((9, 1)), 100)[2][0] == 1.0 == statistics.paired_t(np.zeros(9))
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's textbook case


def test_markdown_marks_and_check_catches_a_changed_digit(sweep, tmp_path):
    out = tmp_path / "out"
    assert report(sweep, "--baseline", "width=32", "--out", out, "--format", "markdown", "--nofigures")[0] == 0
    table = out / "ml-tiny.md"
    text = table.read_text()
    best = next(line for line in text.splitlines() if "width=64" in line)
    assert re.search(r"\| 3 \| \*\*0\.\d{4}\*\* ± 0\.\d{4} † \|", best)
    assert "<u>" in next(line for line in text.splitlines() if "width=33" in line)
    assert "secret" not in text and "device-hours: `9.900 in 9 runs`" in text
    assert report("--check", table)[0] == 0  # finds the records by itself
    assert report("--check", table, sweep)[0] == 0

    cell = re.search(r"\*\*(0\.\d{4})\*\*", text)[1]
    forged = cell[:-1] + str((int(cell[-1]) + 1) % 10)
    table.write_text(text.replace(cell, forged, 1))
    code, _, err = report("--check", table)
    assert code == 1 and "row 'BERT4Rec, width=64', column 'ndcg@10'" in err and forged in err and cell in err
    table.write_text(text.replace("abc1234", "abc1235"))
    assert report("--check", table)[0] == 1

    table.write_text(text)
    results = sweep / "002/results.json"  # a forged record gives itself away by its ranks
    values = json.loads(results.read_text())
    values["test"]["ndcg@10"] += 0.01
    results.write_text(json.dumps(values))
    code, _, err = report("--check", table)
    assert code == 2 and "002" in err and "ranks_test.npz gives" in err


def test_protocols_and_data_are_not_mixed(tmp_path):
    a = make_run(tmp_path / "a", seed=0)
    b = make_run(tmp_path / "b", seed=1, protocol="leave one out; 100 sampled negatives")
    code, out, err = report(a, b)
    assert code == 2 and not out and err.count("\n") == 1
    assert "protocol" in err and str(a) in err and str(b) in err
    c = make_run(tmp_path / "c", seed=1, fingerprint="bad")
    code, _, err = report(a, c)
    assert code == 2 and "data fingerprint" in err and str(c) in err
    code, out, _ = report(a, make_run(tmp_path / "d", data="other"))
    assert code == 0 and "### ml-tiny" in out and "### other" in out  # a table each
    code, _, err = report(a, make_run(tmp_path / "e"))
    assert code == 2 and "same setting with the same seed" in err
    code, _, err = report(a, "--baseline", "nobody")
    assert code == 2 and "the rows are: popular" in err
    assert report(tmp_path / "nowhere")[0] == 2 and report()[0] == 2


def test_everything_is_written_and_records_are_enough(sweep, tmp_path):
    (sweep / "004/checkpoints").mkdir()
    (sweep / "004/checkpoints/big").write_text("x")
    kept = tmp_path / "kept"
    assert report(sweep, "--records", kept)[0] == 0
    assert "secret" not in "".join(p.read_text() for p in kept.rglob("*.json*"))
    assert not list(kept.rglob("big")) and len(list(kept.iterdir())) == 9
    for source, out in ((sweep, tmp_path / "from_runs"), (kept, tmp_path / "from_records")):
        figures = "--figures" if source == kept else "--nofigures"
        code, _, err = report(source, "--baseline", "popular", "--out", out, figures)
        assert code == 0, err
    for kind in ("tex", "csv"):
        assert (tmp_path / f"from_runs/ml-tiny.{kind}").read_text() == (out / f"ml-tiny.{kind}").read_text()
    shutil.rmtree(sweep)
    assert report("--check", out / "ml-tiny.md")[0] == 0
    for name in ("curves", "parameters", "history_length", "item_popularity"):
        assert (out / f"ml-tiny-{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"ml-tiny-{name}.png").stat().st_size > 5000
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "BERT4Rec, width=64" in page
    assert not re.findall(r"(?:src|href)=.?https?:", page)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles_in_a_minimal_article(sweep, tmp_path):
    make_run(tmp_path / "sweep/extra", 0.1, 0, data="Beauty & Care_100%", protocol="50% of {users} #1 ~ x^2 \\ $")
    assert (
        report(
            tmp_path / "sweep",
            "--baseline",
            "popular_recent",
            "--out",
            tmp_path,
            "--format",
            "latex",
            "--nofigures",
        )[0]
        == 0
    )
    inputs = "".join(f"\\input{{{name}}}\n" for name in ("ml-tiny", "beauty-care-100"))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        + inputs
        + "See Table~\\ref{tab:ml-tiny}.\\end{document}\n"
    )
    for _ in range(2):
        process = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stdout[-2000:]
    assert "undefined" not in process.stdout and "Overfull" not in process.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
