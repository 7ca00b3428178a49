# SPDX-License-Identifier: Apache-2.0
"""Keeps the prose plain and the code airy: rates of hard-to-read habits, measured over all files.

A rate is a number of hits per 1,000 words of docstrings, comments, messages and Markdown. A single
hit is not an error: some are the best wording. If a rate is too high, the failure lists the places.
"""

import ast
import io
import pathlib
import re
import tokenize
import tomllib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("bert4rec_jax", "benchmarks", "configs", "docs", "examples", "experiments", "tests")
HABITS = tomllib.loads((ROOT / "tests" / "style_habits.toml").read_text())["habit"]
NAMES = [habit["name"] for habit in HABITS]


def files(*suffixes: str) -> list[pathlib.Path]:
    """Returns the source files and documents of the project, without records and builds."""
    found = [path for path in ROOT.glob("*.md")]
    for folder in FOLDERS:
        found += (ROOT / folder).rglob("*")
    return sorted(
        path
        for path in found
        if path.suffix in suffixes and "experiments/results" not in path.as_posix()
    )


def markdown_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yields (line number, prose) of Markdown without code, tables and link targets."""
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.lstrip().startswith(("|", "    ", "<!--")):
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yields (line number, prose) of comments and of strings with at least four words."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
        elif tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE"):
            words = token.string.strip("rbfuRBFU").strip("\"'")
            if len(re.findall(r"[A-Za-z]{2,}", words)) >= 4:
                for offset, line in enumerate(words.split("\n")):
                    yield token.start[0] + offset, re.sub(r"`[^`]*`", "", line)


@pytest.fixture(scope="module")
def prose() -> list[tuple[str, str]]:
    """Returns (place, line of prose) of the whole project, except this file."""
    lines = []
    for path in files(".py", ".md"):
        if path == pathlib.Path(__file__).resolve():
            continue
        parse = markdown_prose if path.suffix == ".md" else python_prose
        for number, line in parse(path.read_text(encoding="utf-8")):
            lines.append((f"{path.relative_to(ROOT)}:{number}", line.strip()))
    return lines


@pytest.mark.parametrize("habit", HABITS, ids=NAMES)
def test_prose_is_plain(habit, prose):
    pattern, most = habit["pattern"], habit["maximum"]
    words = sum(len(re.findall(r"[A-Za-z][A-Za-z'-]+", line)) for _, line in prose)
    hits = []
    for place, line in prose:
        hits += [f"{place}: {line[:90]}"] * len(re.findall(pattern, line))
    rate = 1000 * len(hits) / words
    listing = "\n".join(hits[:300])
    assert rate <= most, f"{habit['name']}: {rate:.2f} per 1,000 words, at most {most}\n{listing}"


@pytest.mark.parametrize("habit", HABITS, ids=NAMES)
def test_every_habit_is_recognized(habit):
    assert re.search(habit["pattern"], habit["example"])


def docstring_lines(tree: ast.Module) -> set[int]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            lines.update(range(text.lineno, text.end_lineno + 1))
    return lines


@pytest.mark.parametrize("folder", ["bert4rec_jax", "experiments"])
def test_code_lines_have_air(folder):
    lengths = []
    tuple_assignments = []
    long_functions = []
    for path in files(".py"):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(folder + "/"):
            continue
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        skipped = docstring_lines(tree)
        for number, line in enumerate(text.splitlines(), 1):
            code = line.strip()
            if code and not code.startswith("#") and number not in skipped:
                lengths.append(len(code))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long_functions.append(f"{name}:{node.lineno} {node.name}")
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Tuple)
                and isinstance(node.value, ast.Tuple)
            ):
                tuple_assignments.append(f"{name}:{node.lineno}")
    assert sum(lengths) / len(lengths) <= 38, "characters per code line"
    assert 1000 * len(tuple_assignments) / len(lengths) <= 3, tuple_assignments
    assert long_functions == [], "functions of more than 60 lines"
