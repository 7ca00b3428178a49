# SPDX-License-Identifier: Apache-2.0
"""Programs, flags, fields and files of all commands in README, docs, notebooks and docstrings exist.

test_examples.py runs the commands, except those with a reason in `shown_commands.NOT_RUN`.
"""

import ast
import re

import pytest
from pages import ROOT
from shown_commands import NOT_RUN, PLACEHOLDERS, Command, shown

from bert4rec_jax import config as config_lib

FIELDS = {field.name: field for field in config_lib.describe()}


def flags_of(module: str) -> set[str]:
    """Returns the names of the flags in the source code of a module."""
    path = ROOT / (module.replace(".", "/") + ".py")
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {
        call.args[0].value.removeprefix("--")
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.args
        and call.func.attr.startswith(("DEFINE_", "add_argument"))
        and isinstance(call.args[0], ast.Constant)
    } | {"help"}


def test_commands_are_found():
    commands = shown()
    assert sum(not command.inline for command in commands) > 80
    assert sum(command.inline for command in commands) > 40
    for part in (
        "bert4rec_jax.main",
        "bert4rec_jax.recommend",
        "experiments.launch",
        "experiments.report",
        "bert4rec-train",
        "benchmarks/",
        "make docs",
    ):
        assert any(part in command.text for command in commands), part


def test_every_reason_applies_to_a_command():
    commands = [command for command in shown() if not command.inline]
    first = {
        next((pattern for pattern in NOT_RUN if re.match(pattern, command.text)), "")
        for command in commands
    }
    assert set(NOT_RUN) == first - {""}
    for why in NOT_RUN.values():
        for path in re.findall(r"tests/\S+\.py", why):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("python -m bert4rec_jax.main --config quickstart --wordkir runs/a", "lacks --wordkir"),
        (
            "python -m bert4rec_jax.main --config quickstart --config.model.widht=8 --workdir a",
            "field config.model.widht does not exist",
        ),
        (
            "python -m bert4rec_jax.main --config quickstart --config.model.norm=both --workdir a",
            "lacks the choice both",
        ),
        ("python -m bert4rec_jax.recomend --workdir runs/a", "recomend does not exist"),
        (
            "python -m experiments.launch --sweep experiments/sweeps/gone.py --root sweeps/a",
            "gone.py",
        ),
        ("make qickstart", "qickstart"),
        ("python -m other.program", "unknown"),
    ],
)
def test_wrong_commands_fail(text, complaint):
    with pytest.raises((AssertionError, pytest.fail.Exception), match=complaint):
        check(Command(text, "here", False))


@pytest.mark.parametrize(
    "command", shown(), ids=lambda command: f"{command.where} {command.text}"[:100]
)
def test_command_is_valid(command):
    check(command)


def check(command: Command) -> None:
    """Fails if the program, a flag, a field or a file does not exist."""
    made = re.match(r"(?:PYTHON=\S+ )?make (?:VENV=\S+ )?([\w-]+)", command.text)
    if made:
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
        assert made[1] in targets, f"the Makefile lacks the target {made[1]}"
        return
    if re.match(
        r"(\S*python3? -m )?(pip|docker|kubectl|iconv|gunzip|tests/|pytest|venv|ruff|http\.server)|make$|"
        r"\S*python3? -c",
        command.text,
    ):
        return
    module, _ = command.parts()
    assert module.startswith(("bert4rec_jax", "experiments", "benchmarks", "docs")), (
        f"the program {module} is unknown"
    )
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.exists() and (path.with_suffix("") / "__main__.py").exists():
        path = path.with_suffix("") / "__main__.py"
    assert path.exists(), f"the module {module} does not exist"
    known = flags_of(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
    given = command.pairs()
    for name, value in given:
        if name.startswith("config."):
            assert name[7:] in FIELDS or "GROUP" in name, f"the field {name} does not exist"
            choices = FIELDS[name[7:]].choices if name[7:] in FIELDS else ()
            assert not choices or value in choices, f"{name} lacks the choice {value}"
        elif name:
            assert name in known or name.removeprefix("no") in known, f"{module} lacks --{name}"
        elif module in ("bert4rec_jax.main", "bert4rec_jax.recommend"):
            pytest.fail(f"{value!r} is not a flag")
        if name == "sweep" and not any(part in value for part in PLACEHOLDERS):
            assert (ROOT / value).exists(), f"{value} does not exist"
    check_config(given)


def check_config(given: list[tuple[str, str]]) -> None:
    """Fails if --config cannot be resolved."""
    config = next((value for name, value in given if name == "config"), "")
    if not config or any(part in config for part in PLACEHOLDERS):
        return
    values = config_lib.load(
        config if re.fullmatch(r"\w+(:[\w-]+)?", config) else str(ROOT / config)
    )
    if values.data.path == "" and not any(".path" in name for name, _ in given):
        return
    values.data.path = values.data.path or "somewhere"
    config_lib.resolve(values)
