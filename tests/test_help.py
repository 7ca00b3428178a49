# SPDX-License-Identifier: Apache-2.0
"""`--help` of every command, as a person sees it in a terminal with 80 columns."""

import os
import re
import subprocess
import sys

import pytest

from bert4rec_jax import config as config_lib

COMMANDS = (
    "bert4rec_jax.main",
    "bert4rec_jax.recommend",
    "bert4rec_jax.export",
    "bert4rec_jax.portrait",
    "experiments.launch",
    "experiments.report",
    "experiments.cite",
)


def run_help(command: list[str]) -> str:
    process = subprocess.run(
        [*command, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "80"},
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: run_help([sys.executable, "-m", name]) for name in COMMANDS}


def parse_options(page: str) -> dict[str, tuple[str, str]]:
    """Returns {flag: (what is in parentheses, text)} of a help page."""
    # An option starts at an indent of 2 and continues at an indent of 6.
    joined = re.sub(r"\n {6}(?! )", " ", page)
    options = {}
    for line in joined.split("\n"):
        match = re.match(r"  (--\S+) \(((?:[^()]|\([^()]*\))*)\) (.*)", line)
        if match:
            options[match[1]] = (match[2], match[3])
    return options


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns_and_describes_every_flag(pages, name):
    page = pages[name]
    assert [line for line in page.splitlines() if len(line) > 80] == []
    options = parse_options(page)
    heads = re.findall(r"^  --\S+ \(", page, re.MULTILINE)
    assert len(options) == len(heads) > 0
    assert all(len(text.split()) > 1 for _, text in options.values())
    assert not re.search(r"<\w+\|", page), "the choices are shown twice"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_how_the_command_was_called(pages, name):
    assert f"  python -m {name} " in pages[name]
    assert pages[name].index("python -m") < pages[name].index("\nOptions:\n")


def test_help_of_main_lists_every_field_with_type_default_and_choices(pages):
    options = parse_options(pages["bert4rec_jax.main"])
    shown = {flag: value for flag, value in options.items() if flag.startswith("--config.")}
    fields = {f"--config.{field.name}": field for field in config_lib.describe()}
    assert list(shown) == list(fields)
    for flag, field in fields.items():
        details, text = shown[flag]
        assert text == field.text
        values, _, default = details.rpartition("; default ")
        choices = tuple(values.split("|")) if field.choices else ()
        assert choices == field.choices
        if field.type in (int, float):
            assert values.startswith(field.type.__name__)
        typed = "" if default == "empty" else default
        name = flag.removeprefix("--config.")
        assert config_lib.parse_flags([f"{flag}={typed}"]) == {name: field.default}


def test_help_of_main_is_grouped(pages):
    page = pages["bert4rec_jax.main"]
    titles = re.findall(r"^config\.(\S+): ", page, re.MULTILINE)
    groups = dict.fromkeys(field.group for field in config_lib.describe())
    assert titles == [group for group in groups if group]
    assert re.search(r"^Ahead-of-time compilation:\n  --compile_for ", page, re.MULTILINE)


@pytest.mark.parametrize(
    "script, module",
    [
        ("bert4rec-train", "bert4rec_jax.main"),
        ("bert4rec-recommend", "bert4rec_jax.recommend"),
        ("bert4rec-export", "bert4rec_jax.export"),
    ],
)
def test_help_of_an_installed_command_shows_its_name(tmp_path, script, module):
    function = script.removeprefix("bert4rec-") + "_command"
    path = tmp_path / script
    path.write_text(f"from bert4rec_jax.command_line import {function}\n{function}()\n")
    page = run_help([sys.executable, str(path)])
    assert f"  {script} " in page
    assert f"python -m {module}" not in page
