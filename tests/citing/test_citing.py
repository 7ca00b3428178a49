# SPDX-License-Identifier: Apache-2.0
"""Numbers in documents: derived from records, written, and reported if they lack a record."""

import numpy as np
import pytest
from hand_made_runs import make_run
from scipy import stats

from bert4rec_jax.errors import UserError
from bert4rec_jax.ranking.metrics import per_user
from experiments.citing import blocks, citations, sources
from experiments.citing.citations import Citation


@pytest.mark.parametrize("document", citations.documents())
def test_every_number_of_the_documents_follows_from_a_record(document):
    problems, text = citations.check(document, citations.load())
    assert not problems
    assert text == (citations.CHECKOUT / document).read_text()


def test_every_citation_occurs_in_a_document():
    known = set(citations.documents())
    assert not [c for c in citations.load() if not set(c.documents) <= known]


@pytest.fixture
def results(tmp_path):
    """Three seeds, a CSV and a JSON, as below experiments/results."""
    for seed in range(3):
        make_run(
            tmp_path / f"results/ml/runs/seed_{seed}",
            0.3,
            seed,
            results={"train_seconds": 1000.4 + seed},
        )
    (tmp_path / "results/ml/ml.csv").write_text(
        "model,metric,mean,se,users_se,seeds\n"
        "popular,ndcg@10,0.0432,,0.0041,\nBERT4Rec (Cloze),ndcg@10,0.10496,0.0021,0.0074,0 1 2\n"
    )
    (tmp_path / "results/speed.json").write_text(
        '{"columns": ["items", "ms"], "rows": [[10, 71.5]], "x": {"y": [3, 4.26]}}'
    )
    sources._open.cache_clear()
    return tmp_path / "results"


def ranks(results) -> np.ndarray:
    return np.stack(
        [np.load(results / f"ml/runs/seed_{s}/ranks_test.npz")["rank"] for s in range(3)], axis=1
    )


def test_numbers_are_taken_out_of_records(results):
    def take(spec, source="ml/runs/seed_*"):
        return sources.derive(spec, source, results)

    ndcg = per_user("ndcg@10", ranks(results))
    means = ndcg.mean(0)
    assert take("test/ndcg@10 mean .4") == f"{means.mean():.4f}"[1:]
    assert take("test/ndcg@10 se 0.6") == f"{stats.sem(means):.6f}"
    assert take("test/ndcg@10 sd 0.6") == f"{np.std(means, ddof=1):.6f}"
    assert (
        take("test/ndcg@10 max 0.6")
        == f"{means.max():.6f}"
        != take("test/ndcg@10 min 0.6")
        == f"{means.min():.6f}"
    )
    assert take("test/ndcg@10 users 0.6") == f"{np.sqrt(np.mean(stats.sem(ndcg) ** 2)):.6f}"
    assert take("seed sum 0") == "3" and take("seed count 0") == "3"
    assert take("train_seconds min ,") == "1,000" and take("train_seconds max ,1") == "1,002.4"
    one = "ml/runs/seed_1"
    assert (
        take("test/ndcg@10 one .4", one)
        == take(f"test/ndcg@10 one .4 from {one}")
        == f"{means[1]:.4f}"[1:]
    )
    popular = per_user("mrr", np.load(results / "ml/runs/seed_0/ranks_test.npz")["popular_rank"])
    assert take("baselines/popular/test/mrr users 0.6", one) == f"{stats.sem(popular):.6f}"
    assert take("curve/valid/25/ndcg@10 one .4", one) == f"{means[1] / 4:.4f}"[1:]
    assert (
        take("config/model/width one 0", one) == "64"
        and take("model one text", one) == "BERT4Rec (Cloze)"
    )
    assert take("BERT4Rec (Cloze)/ndcg@10/mean one .4", "ml/ml.csv") == ".1050"
    assert (
        take("x/y/1 one 1", "speed.json") == "4.3" and take("x/y/1 one %0", "speed.json") == "426"
    )
    assert take("x/y/1 one +1", "speed.json") == "+4.3"
    assert take("hstu-large-ml1m/ndcg@10 one .4", "published") == ".1893"
    assert (
        sources.shown(-0.5, ".2") == "-.50"
        and sources.shown(-0.5, "+0.2") == "-0.50"
        and sources.shown(1.5, ".2") == "1.50"
    )


@pytest.mark.parametrize(
    ("spec", "source", "said"),
    [
        ("test/ndcg@10 one .4", "ml/runs/seed_*", "but its source has 3"),
        ("test/ndcg@11 mean .4", "ml/runs/seed_*", "at 'ndcg@11' it has ndcg@1, hr@1"),
        (
            "test/ndcg@10 mean .4",
            "nothing/runs/*",
            "experiments/results/nothing/runs/\\* does not exist",
        ),
        ("test/ndcg@10 median .4", "ml/runs/seed_*", "'median' is not a reduction"),
        ("test/ndcg@10 mean .x", "ml/runs/seed_*", "'.x' is not a format"),
        ("valid/ndcg@10 users .4", "ml/runs/seed_*", "exists only for test metrics of runs"),
        ("test/ndcg@10", "ml/runs/seed_*", "must look like"),
        ("x/y/7 one .4", "speed.json", "at '7'"),
    ],
)
def test_a_number_that_cannot_be_derived_is_reported(results, spec, source, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        sources.derive(spec, source, results)


def checked(text, results, *cited, document="docs/a.md"):
    place = results.parent / document
    place.parent.mkdir(exist_ok=True)
    place.write_text(text)
    return citations.check(document, cited, results.parent, results)


def test_a_sentence_is_checked_and_rewritten_whatever_its_lines(results):
    spec = {"mean": "test/ndcg@10 mean .4", "time": "train_seconds max ,"}
    cite = Citation(("docs/a.md",), "NDCG@10 {mean}, and it took\n{time} s", "ml/runs/seed_*", spec)
    true = sources.derive(spec["mean"], cite.source, results)
    good = f"Here: NDCG@10 {true}, and\nit took 1,002 s.\n"
    assert checked(good, results, cite) == ([], good)
    problems, text = checked(good.replace(true, ".9999").replace("1,002", "7"), results, cite)
    assert text == good and len(problems) == 2
    assert (
        "line 1: the document has .9999, the record has " + true in problems[0]
        and "line 2: the document has 7" in problems[1]
    )
    for bad, times in ((good + good, 2), ("Nothing.\n", 0)):
        assert f"occurs {times} times instead of once" in checked(bad, results, cite)[0][0]
    assert checked("Nothing.\n", results, cite, document="docs/b.md") == ([], "Nothing.\n")


def test_numbers_of_nobody_are_found(results):
    text = (
        "It reaches .1814 in 90 s, 0.67x as fast, with 1,065 MiB or 2.5 GiB, 36 % of 182 GFLOP/s: 5,003 tokens/s.\n"
        "Fine are 6,040 users, width 64, seed 0, 8 x 8 devices, `--config.optimizer.beta2=0.998`, "
        "2026-11-24, a 3.11.7 release, ml-100k, and table 5.\n"
    )
    problems, _ = checked(text, results)
    found = [problem.split("'")[1] for problem in problems]
    assert found == [
        ".1814",
        "90 s",
        "0.67x",
        "1,065 MiB",
        "2.5 GiB",
        "36 %",
        "182 GFLOP/s",
        "5,003 tokens/s",
    ]
    assert all(problem.startswith("line 1: ") for problem in problems)
    words = "In two digits: .19 and 0.34, 12 seconds, 40 minutes, 2 hours, 3 GB, 7 percent, 5 times, 80 µs, 9 steps/s."
    assert [p.split("'")[1] for p in checked(words, results)[0]] == [
        ".19",
        "0.34",
        "12 seconds",
        "40 minutes",
        "2 hours",
        "3 GB",
        "7 percent",
        "5 times",
        "80 µs",
        "9 steps/s",
    ]
    said = Citation(
        ("docs/a.md",),
        "reaches .1814 in 90 s, 0.67x as fast, with 1,065 MiB or 2.5 GiB",
        "",
        {},
        "made up",
    )
    assert [p.split("'")[1] for p in checked(text, results, said)[0]] == [
        "36 %",
        "182 GFLOP/s",
        "5,003 tokens/s",
    ]
    code = '"""Takes 90 s,\nand .1814.\n"""\n\nx = 0.123  # and 12 s\n'
    assert (
        len(checked(code, results, document="configs/a.py")[0]) == 2
    )  # docstrings are statements, code is not


def test_blocks_are_written_and_cover_their_numbers(results):
    text = (
        "<!-- cite: results ml/ml.csv ndcg@10 -->\nold .9999\n<!-- end -->\n"
        "<!-- cite: published beauty full leave_one_out hr@10 -->\n<!-- end -->\n<!-- cite: table speed.json -->\n<!-- end -->\n"
    )
    problems, written = checked(text, results)
    assert problems == ["a generated table differs from the records"]
    assert (
        "| BERT4Rec (Cloze) | 3 | .1050 ±.0021<sup>s</sup> ±.0074<sup>u</sup> |" in written
        and ".9999" not in written
    )
    assert "| popular | - | .0432 ±.0041<sup>u</sup> |" in written
    assert (
        "| SASRec+, width 256, 3 layers | .0974 | validation | a |" in written
        and "\n- a: time-to-split" in written
    )
    assert "| items | ms |\n| --- | --- |\n| 10 | 71.5 |\n" in written
    assert checked(written, results) == ([], written)
    assert len(list(blocks.spans(written))) == 3
    for bad in (
        "results ml/none.csv ndcg@10",
        "results ml/ml.csv hr@10",
        "published moon full hr@10",
        "dance",
        "table none.json",
    ):
        problems, same = checked(f"<!-- cite: {bad} -->\n<!-- end -->\n", results)
        assert len(problems) == 1 and bad in problems[0] and bad in same


def test_the_file_of_citations_is_checked(tmp_path):
    file = tmp_path / "cited.toml"
    for text, said in (
        ("[[cite]", "cannot be read"),
        ('[[cite]]\nin = ["a"]\ntext = "x {y}"\n', "for each {name}"),
        ('[[cite]]\nin = ["a"]\ntext = "x"\nz = "test/mrr one .4"\n', "for each {name}"),
        ('[[said]]\nin = ["a"]\ntext = "x"\n', "why"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            citations.load(file)
    file.write_text('[[cite]]\nin = ["a"]\ntext = "x {y}"\nfrom = "z"\ny = "test/mrr one .4"\n')
    assert citations.load(file) == [Citation(("a",), "x {y}", "z", {"y": "test/mrr one .4"})]


def test_the_command_writes_and_reports_the_rest(results, monkeypatch, capsys):
    from absl import flags
    from absl.testing import flagsaver

    from experiments import cite

    (results.parent / "README.md").write_text("It is .9999 and .1234.\n")
    cited = [Citation(("README.md",), "It is {a}", "ml/runs/seed_0", {"a": "test/hr@10 one .4"})]
    for module in (cite, citations):
        monkeypatch.setattr(module, "CHECKOUT", results.parent)
    monkeypatch.setattr(citations, "load", lambda: cited)
    monkeypatch.setattr(citations, "documents", lambda: ["README.md"])
    check = citations.check
    monkeypatch.setattr(
        citations, "check", lambda document, c: check(document, c, results.parent, results)
    )
    with flagsaver.flagsaver():
        flags.FLAGS(["cite"])
        assert cite.main(["cite"]) == 1 and "has .9999" in capsys.readouterr().err
        with pytest.raises(UserError, match="not a known document"):
            cite.main(["cite", "docs/none.md"])
        flags.FLAGS(["cite", "--write"])
        assert cite.main(["cite", "README.md"]) == 1
    true = sources.derive("test/hr@10 one .4", "ml/runs/seed_0", results)
    assert (results.parent / "README.md").read_text() == f"It is {true} and .1234.\n"
    assert "'.1234' lacks a citation" in capsys.readouterr().err
