# SPDX-License-Identifier: Apache-2.0
import json

from hand_made_runs import BASELINES, make_run
from matplotlib.figure import Figure

from bert4rec_jax.run_files import RunFiles
from bert4rec_jax.training import curves


def test_curves_have_a_title_and_every_baseline(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", seed=3)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 50, "split": "train", "seconds": 1, "loss": 5.0}) + "\n")
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: drawn.append(figure))
    results = json.loads((folder / "results.json").read_text())
    curves.draw(RunFiles(folder), "ndcg@10")
    assert drawn[0].get_suptitle() == "BERT4Rec (Cloze) on ml-tiny, seed 3"
    lines = {line.get_label(): line for line in drawn[0].axes[1].get_lines()}
    assert {f"test, {name}" for name in BASELINES} < set(lines)
    assert len({str(lines[f"test, {name}"].get_linestyle()) for name in BASELINES}) == len(
        BASELINES
    )
    for name in BASELINES:
        assert (
            lines[f"test, {name}"].get_ydata()[0] == results["baselines"][name]["test"]["ndcg@10"]
        )
