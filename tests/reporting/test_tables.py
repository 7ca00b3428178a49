# SPDX-License-Identifier: Apache-2.0
"""Tables from hand-made run directories: rows, errors, comparisons, published numbers, and what is refused."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hand_made_runs import BASELINES, CHECKOUT, USERS, change_json, make_run, report
from scipy import stats

from bert4rec_jax.errors import UserError
from bert4rec_jax.ranking.metrics import per_user
from experiments.reporting import comparisons, records, statistics, tables, writing
from experiments.reporting.rows import describe


def build(*folders: Path, **options) -> tables.Table:
    runs = records.find([str(folder) for folder in folders])[0]
    return tables.build(
        runs[0].dataset["name"], runs, tables.Options(**{"resamples": 500} | options)
    )


def users_by_seed(root: Path, indices, metric: str) -> np.ndarray:
    return np.stack(
        [per_user(metric, np.load(root / f"{i:03d}/ranks_test.npz")["rank"]) for i in indices],
        axis=1,
    )


def test_runs_that_were_ranked_in_the_middle_of_training_are_named(tmp_path):
    # All have validations of the steps 25, 50 and 100.
    make_run(tmp_path / "whole")
    make_run(tmp_path / "cut", seed=1, train__steps=3000, results={"steps": 1000})
    make_run(
        tmp_path / "patient", seed=2, train__steps=3000, train__patience=2, results={"steps": 1000}
    )
    make_run(tmp_path / "unvalidated", seed=3, train__steps=3000, results={"steps": 3000})
    # Two validations after the best one: it ended by itself.
    make_run(
        tmp_path / "ended", seed=4, train__steps=3000, train__patience=2, results={"best_step": 25}
    )
    # It evaluated another run's model, so the curve is missing.
    ranked = make_run(tmp_path / "ranked", seed=5, train__steps=3000)
    (ranked / "metrics.jsonl").write_text('{"step": 100, "split": "test"}\n')
    note, name = "Ranked in the middle of training: ", tmp_path.name
    cut = [n for n in build(tmp_path).notes if note in n]
    until = "validated up to step 100 of 3,000"
    assert cut == [
        f"{note}{name}/cut, {until}, {name}/patient, {until}, {name}/unvalidated, {until}."
    ]
    assert not any(
        note in n for n in build(*(tmp_path / x for x in ("whole", "ended", "ranked"))).notes
    )


def test_a_table_has_means_both_errors_places_and_comparisons(sweep, tmp_path):
    flags = ("--format", "csv", "--nofigures", "--metrics", "ndcg@10,mrr")
    code, _, err = report(sweep, "--baseline", "width=32", "--out", tmp_path / "out", *flags)
    assert code == 0, err
    lines = {
        (r["model"], r["metric"]): r for r in csv.DictReader((tmp_path / "out/ml-tiny.csv").open())
    }
    assert {m for m, _ in lines} == {
        *BASELINES,
        *(f"BERT4Rec (Cloze), width={w}" for w in (32, 33, 64)),
    }
    row = lines["BERT4Rec (Cloze), width=64", "ndcg@10"]
    wide = users_by_seed(sweep, (2, 5, 8), "ndcg@10")
    assert float(row["mean"]) == pytest.approx(wide.mean(), rel=1e-5)
    assert float(row["sd"]) == pytest.approx(np.std(wide.mean(0), ddof=1), rel=1e-5)
    assert float(row["se"]) == pytest.approx(stats.sem(wide.mean(0)), rel=1e-5)
    assert float(row["users_se"]) == pytest.approx(np.sqrt(np.mean(stats.sem(wide) ** 2)), rel=1e-5)
    assert (row["place"], lines["BERT4Rec (Cloze), width=32", "ndcg@10"]["place"]) == ("1", "")
    assert float(row["device_hours"]) == pytest.approx(3 * 1.1)
    assert row["seeds"] == "0 1 2" and row["commit"] == "abc1234abc12 ; " * 2 + "abc1234abc12"
    popular = lines["popular", "ndcg@10"]
    assert (popular["seeds"], popular["sd"], popular["se"], popular["command"]) == (
        "",
        "",
        "",
        "",
    )  # it is one run
    assert float(popular["users_se"]) > 0

    # Comparisons: the statistics have tests of their own; here, that the right numbers go in.
    groups = {
        f"BERT4Rec (Cloze), width={w}": users_by_seed(sweep, i, "mrr")
        for w, i in ((33, (1, 4, 7)), (64, (2, 5, 8)))
    }
    for name in BASELINES:
        groups[name] = per_user("mrr", np.load(sweep / "000/ranks_test.npz")[f"{name}_rank"])[
            :, None
        ]
    narrow = users_by_seed(sweep, (0, 3, 6), "mrr")
    for name, values in groups.items():
        expected = statistics.compare(values, narrow, (name not in BASELINES, True))
        line = lines[name, "mrr"]
        assert float(line["difference"]) == pytest.approx(expected.mean, rel=1e-4)
        assert (float(line["low"]), float(line["high"])) == pytest.approx(
            expected.interval(), rel=1e-4
        )
        assert float(line["difference_se_users"]) == pytest.approx(expected.se_users, rel=1e-4)
        assert float(line["difference_se_seeds"]) == pytest.approx(expected.se_seeds, rel=1e-4)
        assert float(line["margin"]) == pytest.approx(0.05 * narrow.mean(), rel=1e-4)
        assert line["verdict"] == ("better" if name.endswith("64") else line["verdict"])
        assert float(line["p_t"]) >= expected.p_value() * (1 - 1e-4)


def test_rows_are_called_by_what_differs(tmp_path):
    settings = [{}, {"loss__name": "gbce"}, {"loss__name": "gbce", "loss__gbce_t": 0.5}]
    for i, fields in enumerate(settings):
        make_run(tmp_path / str(i), **fields)
    names = [
        f"BERT4Rec (Cloze), {change}"
        for change in (
            "loss=softmax, gbce_t=0.75",
            "loss=gbce, gbce_t=0.75",
            "loss=gbce, gbce_t=0.5",
        )
    ]
    assert [row.name for row in build(tmp_path).rows if not row.baseline] == names
    # Two fields with the same name are shown with their groups.
    assert describe({"train.batch_rows": 8}, ["train.batch_rows", "eval.batch_rows"]) == [
        "train.batch_rows=8"
    ]


def test_p_values_are_corrected_over_all_comparisons(sweep):
    table = build(sweep, baseline="width=32", metrics=("ndcg@10", "mrr"))
    base = {m: users_by_seed(sweep, (0, 3, 6), m) for m in ("ndcg@10", "mrr")}
    raw, equal = {}, {}
    for row in table.rows:
        for metric, narrow in base.items():
            if "width=32" not in row.name:
                d = statistics.compare(row.per_user(metric), narrow, (not row.baseline, True))
                raw[row.name, metric], equal[row.name, metric] = (
                    d.p_value(),
                    d.p_equivalent(0.05 * narrow.mean()),
                )
    found = {(c.row, c.metric): c for c in table.comparisons}
    assert found.keys() == raw.keys() and len(raw) == 10
    for p, kind in ((raw, "p_t"), (equal, "p_equivalent")):
        largest = 0.0
        for position, key in enumerate(sorted(p, key=p.get)):
            largest = max(largest, min(1.0, (len(p) - position) * p[key]))
            assert getattr(found[key], kind) == pytest.approx(largest)
    assert (
        found["BERT4Rec (Cloze), width=33", "mrr"].p_bootstrap > 0.05
    )  # from the base, not from another row
    # The smallest that 500 resamples can give, times ten comparisons.
    assert found["BERT4Rec (Cloze), width=64", "mrr"].p_bootstrap == pytest.approx(10 / 501)


def test_too_few_resamples_for_anything_to_be_significant_are_refused(sweep):
    code, _, err = report(sweep, "--baseline", "width=32", "--resamples", 299)
    assert (
        code == 2
        and "with --resamples=299 none of 15 comparisons could be significant at 0.05" in err
    )
    least = int(err.split("give --resamples=")[1].split()[0])
    table = build(sweep, baseline="width=32", resamples=least)
    assert least < 310 and "better" in {c.verdict for c in table.comparisons}
    assert report(sweep, "--baseline", "width=32", "--resamples", 299, "--metrics", "mrr")[0] == 0


def test_verdicts_need_both_tests_a_margin_and_several_seeds(sweep, tmp_path, monkeypatch):
    def verdict(table, row):
        return {c.row: c.verdict for c in table.comparisons if c.metric == "hr@10"}[
            f"BERT4Rec (Cloze), width={row}"
        ]

    table = build(sweep, baseline="width=32")
    assert (
        verdict(table, 64) == "better" and verdict(build(sweep, baseline="width=64"), 32) == "worse"
    )
    assert verdict(table, 33) == "undecided"
    assert verdict(build(sweep, baseline="width=32", margin=0.8), 33) == "equal"
    assert (
        verdict(build(sweep, baseline="width=32", margin=0.8), 64) == "better"
    )  # a difference is not hidden
    with monkeypatch.context() as patch:
        patch.setattr(
            statistics,
            "hierarchical_bootstrap",
            lambda columns, groups, pairs, _: np.full(len(pairs), 1 / 6),
        )
        assert verdict(build(sweep, baseline="width=32"), 64) == "undecided"  # 1/6 is no evidence
    cells = {
        (row.name, i): cell.significant
        for row, line in zip(table.rows, table.cells)
        for i, cell in enumerate(line)
    }
    assert cells["BERT4Rec (Cloze), width=64", 1] and not cells["BERT4Rec (Cloze), width=33", 1]

    one = build(
        sweep,
        make_run(tmp_path / "one", 0.9, 0, model__width=65, model__heads=1),
        baseline="width=32",
    )
    assert verdict(one, 65) == comparisons.ONE_SEED and verdict(one, 64) == "better"
    assert not [
        c
        for row, line in zip(one.rows, one.cells)
        for c in line
        if "65" in row.name and c.significant
    ]
    text = writing.markdown(one, one.rows[-1].runs, tmp_path)
    assert "says nothing about seeds" in text and "says nothing about seeds" not in writing.latex(
        table
    )


def test_verdicts_keep_to_alpha():
    up, down, alone = (
        statistics.Difference(m, 0.1, se, 9) for m, se in ((0.1, 0.1), (-0.1, 0.1), (0.1, np.nan))
    )
    for difference, p, equivalent, expected in (
        (up, 0.04, 0.9, "better"),
        (down, 0.04, 0.01, "worse"),
        (up, 0.05, 0.9, "undecided"),
        (up, 0.06, 0.04, "equal"),
        (up, 0.06, 0.05, "undecided"),
        (alone, 0.001, 0.001, "one seed"),
    ):
        assert comparisons._verdict(difference, p, equivalent, 0.05) == expected, (
            difference,
            p,
            equivalent,
        )


def test_a_row_lists_its_command_and_commits(tmp_path):
    resumed = ({}, {"git_commit": "fff5678fff5678fff", "git_dirty": True, "mode": "train"})
    make_run(tmp_path / "a", seed=0, starts=resumed)
    make_run(tmp_path / "c", 0.1, seed=2, data__items_path="/x/films.csv")
    evaluated = {"mode": "evaluate", "command": ["main.py"]}
    make_run(tmp_path / "b", seed=1, starts=({}, evaluated), trained_from="/secret/place/a b")
    facts = dict(build(tmp_path).reproducibility)
    place = tmp_path.resolve()
    assert facts["BERT4Rec (Cloze), seed 0"] == (
        f"python -m bert4rec_jax.main --config {place}/a/config.json --config.data.path=ml --workdir runs/a"
        "  # commit abc1234abc12 fff5678fff56+"
    )
    assert (
        "--mode evaluate --trained 'runs/a b' --workdir runs/b" in facts["BERT4Rec (Cloze), seed 1"]
    )
    assert (
        "--config.data.path=ml --config.data.items_path=films.csv "
        in facts["BERT4Rec (Cloze), seed 2"]
    )
    assert facts["device-hours"] == "3.300 in 3 runs"
    assert records.shown(CHECKOUT / "experiments/results/x") == "experiments/results/x"


def test_published_rows_have_their_own_table_with_differences(tmp_path):
    make_run(tmp_path / "a", data="ml-1m", eval__protocol="pop100")
    table = build(tmp_path / "a")
    names = {row.id: row for row in table.published}
    assert names["rectools-bert4rec-ml1m-pop100"].metrics == {"ndcg@10": ".5020", "hr@10": ".7151"}
    assert "rectools-bert4rec-ml1m" not in names and not [
        r for r in table.rows if "RecTools" in r.name
    ]
    text = writing.markdown(table, table.rows[-1].runs, tmp_path)
    ours, _, theirs = text.partition("Published by others")
    assert (
        ".5020" not in ours
        and "| BERT4Rec, RecTools | .5020 | .7151 |" in theirs
        and "easier: fewer than" in theirs
    )
    assert ".5020" not in writing.comma_separated(table) and ".5020" in writing.latex(table)
    make_run(tmp_path / "b", data="ml-1m", split__kind="temporal")
    assert {row.split for row in build(tmp_path / "b").published} == {"temporal"}
    assert not build(tmp_path / "a", split="valid").published


def test_the_published_file_is_complete():
    from experiments.reporting.published import load

    rows = load()
    assert len({row.id for row in rows}) == len(rows) > 40
    for row in rows:
        assert row.source and row.protocol and row.differences and row.data and row.metrics, row
        assert row.candidates in ("full", "pop100", "uni100") and row.chosen_on
        assert all(re.fullmatch(r"\.\d{3,4}", value) for value in row.metrics.values()), row
    assert {row.chosen_on for row in rows if row.id.startswith("hstu-")} == {"test (best epoch)"}


def test_ties_in_time_are_shown_where_runs_tell(tmp_path):
    apart = {"test_tied": {"ndcg@10": 0.059}, "test_untied": {"ndcg@10": 0.0522}}
    make_run(tmp_path / "a", results=apart)
    table = build(tmp_path / "a", metrics=("ndcg@10", "coverage@10"))
    assert table.ties == [("BERT4Rec (Cloze)", "ndcg@10", 0.059, 0.0522)]
    assert "| BERT4Rec (Cloze) | ndcg@10 | 0.0590 | 0.0522 |" in writing.markdown(
        table, table.rows[-1].runs, tmp_path
    )
    make_run(tmp_path / "b", 0.2, seed=1)
    assert not build(tmp_path).ties


def test_markdown_marks(sweep, tmp_path):
    text = writing.markdown(
        build(sweep, baseline="width=32"), records.find([str(sweep)])[0], tmp_path
    )
    best = next(line for line in text.splitlines() if "width=64" in line)
    assert re.search(
        r"\| 3 \| \*\*0\.\d{4}\*\* ±0\.\d{4}<sup>s</sup> ±0\.\d{4}<sup>u</sup> † \|", best
    )
    assert "<u>" in next(line for line in text.splitlines() if "width=33" in line)
    assert re.search(
        r"\| popular \| - \| 0\.\d{4} ±0\.\d{4}<sup>u</sup>", text
    )  # nothing over seeds
    assert "secret" not in text and "device-hours: `9.900 in 9 runs`" in text
    sd = writing.markdown(build(sweep, spread="sd"), records.find([str(sweep)])[0], tmp_path)
    assert (
        "±s: standard deviation over seeds" in sd
        and "±s: standard error of the mean over seeds" in text
    )


def test_incomparable_rows_are_rejected(tmp_path):
    a = make_run(tmp_path / "a", seed=0)
    b = make_run(tmp_path / "b", seed=1, protocol="leave one out; 100 sampled negatives")
    code, out, err = report(a, b)
    assert code == 2 and not out and err.count("\n") == 1
    assert "protocol" in err and str(a) in err and str(b) in err
    c = make_run(tmp_path / "c", seed=1, fingerprint="bad")
    with pytest.raises(UserError, match="data fingerprint"):
        records.by_dataset(records.find([str(a), str(c)])[0])
    code, out, _ = report(a, make_run(tmp_path / "d", data="other"))
    assert code == 0 and "### ml-tiny" in out and "### other" in out  # a table each
    with pytest.raises(UserError, match="same setting with the same seed"):
        build(a, make_run(tmp_path / "e"))
    with pytest.raises(UserError, match="the rows are: popular"):
        build(a, baseline="nobody")
    assert report(tmp_path / "nowhere")[0] == 2
    process = subprocess.run(
        [sys.executable, "-m", "experiments.report"],
        cwd=CHECKOUT,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert (
        process.returncode == 2
        and process.stderr.count("\n") == 1
        and "at least one run directory" in process.stderr
    )
    old = make_run(tmp_path / "old", seed=3)
    (old / "environment.json").write_text('{"git_commit": "abc", "command": []}')
    with pytest.raises(UserError, match="contains no history of starts"):
        build(old)


def test_other_cases_candidates_or_baselines_are_refused(tmp_path):
    first = make_run(tmp_path / "first", 0.1, 0, model__width=32)
    assert build(
        first, make_run(tmp_path / "same", 0.2, 1, model__width=64), baseline="width=32"
    ).comparisons
    other = make_run(
        tmp_path / "other", 0.2, 1, model__width=64, results={"cases_digest": "fedcba9876543210"}
    )
    with pytest.raises(UserError, match="different test cases or candidates"):
        build(first, other, baseline="width=32")
    change_json(other / "results.json", "cases_digest", value=None)
    with pytest.raises(UserError, match="lacks cases_digest"):
        build(first, other, baseline="width=32")
    arrays = dict(np.load(other / "ranks_test.npz"))
    arrays["markov_rank"] = arrays["markov_rank"] + 1
    np.savez(other / "ranks_test.npz", **arrays)
    with pytest.raises(UserError, match="baseline markov differs"):
        build(first, other)


def test_everything_is_written_and_records_are_enough(sweep, tmp_path):
    change_json(sweep / "000/config.json", "data", "cache_dir", value="/secret/cache")
    (sweep / "004/checkpoints").mkdir()
    (sweep / "004/checkpoints/big").write_text("x")
    kept = tmp_path / "kept"
    assert report(sweep, "--records", kept)[0] == 0
    assert "secret" not in "".join(p.read_text() for p in kept.rglob("*.json*"))
    assert not list(kept.rglob("big")) and len(list(kept.iterdir())) == 9
    ranks = np.load(kept / "sweep-000/ranks_test.npz")
    assert "item" not in ranks and len(ranks["rank"]) == USERS
    config = json.loads((kept / "sweep-000/config.json").read_text())
    assert config["data"]["path"] == "ml" and config["data"]["cache_dir"] == ""
    before, after = build(sweep, baseline="popular"), build(kept, baseline="popular")
    assert repr(before.cells) == repr(after.cells) and before.comparisons == after.comparisons


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles_in_a_minimal_article(sweep, tmp_path):
    apart = {"test_tied": {"ndcg@10": 0.059, "hr@10": 0.1, "mrr": 0.1}}
    apart["test_untied"] = apart["test_tied"]
    odd = make_run(
        tmp_path / "odd",
        0.1,
        0,
        data="Beauty & Care_100%",
        protocol="50% of {users} #1 ~ x^2 \\ $",
        results=apart,
    )
    known = make_run(tmp_path / "known", 0.1, 0, data="ml-1m")
    flags = ("--baseline", "popular_recent", "--out", tmp_path, "--format", "latex", "--nofigures")
    assert report(sweep, odd, known, *flags)[0] == 0
    names = ("ml-tiny", "beauty-care-100", "ml-1m")
    inputs = "".join(f"\\input{{{name}}}\n" for name in names)
    refs = "".join(
        f"See Table~\\ref{{tab:{name}}} and \\ref{{tab:{name}-differences}}.\n" for name in names
    )
    (tmp_path / "paper.tex").write_text(
        f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{inputs}{refs}"
        "Also \\ref{tab:ml-1m-published} and \\ref{tab:beauty-care-100-test}.\\end{document}\n"
    )
    for _ in range(2):
        process = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stdout[-2000:]
    for complaint in ("undefined", "Overfull", "too large"):
        assert complaint not in process.stdout, process.stdout[-3000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


def test_a_few_seeds_that_disagree_are_no_evidence(tmp_path):
    for seed, strength in enumerate((0.3, 0.4, 0.6)):
        make_run(tmp_path / f"tame{seed}", 0.0, seed, model__width=32, model__heads=1)
        make_run(tmp_path / f"wild{seed}", strength, seed, model__width=48, model__heads=1)
    table = build(tmp_path, baseline="width=32", metrics=("ndcg@10",), resamples=2000)
    wild = next(c for c in table.comparisons if "48" in c.row)
    assert wild.p_bootstrap < 0.05 < wild.p_t and wild.verdict == "undecided"
