# SPDX-License-Identifier: Apache-2.0
"""Notebooks store the outputs of their current cells, and their first cell installs the package if it is missing."""

import ast
import importlib.util
import json

import pytest
from pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location(
    "notebooks", ROOT / "docs" / "_extensions" / "notebooks.py"
)
runner = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(runner)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_belong_to_the_cells(path):
    notebook = read(path)
    assert notebook["metadata"]["outputs_of"] == runner.sources(notebook), (
        "run docs/_extensions/notebooks.py --write"
    )
    cells = code(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) > 3 and not [out for out in outputs if out["output_type"] == "error"]
    assert "/tmp/" not in json.dumps(outputs) and str(ROOT) not in json.dumps(outputs)
    assert path.stat().st_size < 500_000


def test_first_cells_are_equal():
    firsts = {"".join(code(read(path))[0]["source"]) for path in NOTEBOOKS}
    assert len(firsts) == 1
    cell = firsts.pop().replace('find_spec("bert4rec_jax")', 'find_spec("no_such_module")')
    with pytest.raises(SystemExit, match="set REPOSITORY to its URL"):
        exec(compile(ast.parse(cell), "first cell", "exec"), {})


def test_only_numbers_may_differ():
    old = read(NOTEBOOKS[0])
    new = json.loads(json.dumps(old))
    cells = [
        cell
        for cell in code(new)
        if "varies" not in cell["metadata"].get("tags", []) and runner.shown(cell)
    ]
    cells[0]["outputs"][0].setdefault("data", {})["text/plain"] = "something else 1.5"
    cells[0]["outputs"][0].pop("text", None)
    assert len(runner.differences(old, new)) == 1
    again = json.loads(json.dumps(new).replace("something else 1.5", "something else 27"))
    assert runner.differences(new, again) == []
    code(old)[0]["source"] = ["another = 1"]
    assert any(
        "changed since the outputs were stored" in line for line in runner.differences(old, old)
    )
