# SPDX-License-Identifier: Apache-2.0
"""Version, citation, commands, workflow and templates agree with the package."""

import importlib
import pathlib
import re
import tomllib

import pytest
import yaml

import bert4rec_jax
from bert4rec_jax import config as config_lib
from bert4rec_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKE_TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert citation["version"] == bert4rec_jax.__version__ == newest
    assert f"bert4rec_jax-{newest}-" in (ROOT / "docs" / "install.md").read_text()


def test_citation_has_the_required_fields():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["license"] == PROJECT["license"]
    assert {"message", "title", "authors"} <= set(citation) and citation["type"] in (
        "software",
        "dataset",
    )
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert re.fullmatch(r"10\.\d{4,}/\S+", reference["doi"])
        assert all(
            {"family-names", "given-names"} <= set(author) or "name" in author
            for author in reference["authors"]
        )


def test_installed_commands_exist():
    for name, target in PROJECT["scripts"].items():
        module, function = target.split(":")
        run = getattr(importlib.import_module(module), function)
        started = re.search(r"python -m (\S+?)`", run.__doc__)[1]
        assert importlib.util.find_spec(started), f"{name} runs {started}, which does not exist"


def test_installed_configs_have_names():
    shipped = config_lib.shipped()
    assert set(shipped) == {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert config_lib.load("quickstart") == config_lib.load(str(ROOT / "configs" / "quickstart.py"))
    assert config_lib.load("amazon:2023") == config_lib.load(f"{ROOT}/configs/amazon.py:2023")
    for wrong in ("quickstrat", "nowhere/quickstart.py"):
        with pytest.raises(
            UserError,
            match=f"the config file {wrong} does not exist; .*given by name: .*quickstart",
        ):
            config_lib.load(wrong)


def test_workflow_runs_existing_targets():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    runs = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert len(runs) > 3
    for run in runs:
        assert re.match(r"make ([\w-]+)", run)[1] in MAKE_TARGETS
    pythons = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    for template in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        content = yaml.safe_load(template.read_text())
        assert template.stem == "config" or {"name", "description", "body"} <= set(content)


def test_all_dependencies_are_pinned():
    for file in ROOT.glob("constraints*.txt"):
        lines = file.read_text().splitlines()
        pinned = {
            re.split("==", line)[0].lower().replace("-", "_") for line in lines if "==" in line
        }
        needed = [
            need
            for extra in ("sweeps", "test", "docs")
            for need in PROJECT["optional-dependencies"][extra]
        ]
        names = {
            re.split(r"[\[><=]", need)[0].lower().replace("-", "_")
            for need in [*PROJECT["dependencies"], *needed]
        }
        assert names - {"bert4rec_jax"} <= pinned, f"{file.name} lacks {names - pinned}"


@pytest.mark.parametrize(
    "document",
    ["README.md", "BUILD.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md"],
)
def test_links_between_documents_have_targets(document):
    """Links between pages of the documentation are checked when it is built."""
    text = (ROOT / document).read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    for link in links:
        file, _, anchor = link.partition("#")
        target = (ROOT / document).parent / file if file else ROOT / document
        assert target.exists(), f"{document}: {link} is a broken link"
        if anchor:
            heads = re.findall(r"^#+ (.*)", target.read_text(), re.M)
            anchors = [
                re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads
            ]
            assert anchor in anchors, f"{document}: {target.name} lacks the heading {anchor}"
    assert links or document != "README.md"
