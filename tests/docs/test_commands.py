# SPDX-License-Identifier: Apache-2.0
"""Every command that README, docs and docstrings show: its flags, fields and files exist, or it says why not to run it.

The slow tests run those of training and recommending, shrunk, on a log that is made up.
"""

import ast
import re
import shlex
import sys

import pytest
from commands import SMALL, environment, run, succeed
from pages import ROOT, blocks

from bert4rec_jax import config as config_lib

PAGES = ["README.md", "BUILD.md", "CONTRIBUTING.md", "experiments/README.md",
         *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md"))]
DOCSTRINGS = [*sorted((ROOT / "configs").glob("*.py")), *sorted((ROOT / "bert4rec_jax").rglob("*.py")),
              *sorted((ROOT / "experiments").glob("*.py")), *sorted((ROOT / "experiments" / "sweeps").glob("*.py"))]
COMMAND = re.compile(r"^\s*(?:\$ )?((?:[A-Z_]+=\S+ )*(?:srun .*?|docker run .*?)?"
                     r"(?:\S*python3? -m|bert4rec-\w+|make|pip|docker|kubectl|iconv|tests/|\.venv/).*)$")
MODULES = {"bert4rec-train": "bert4rec_jax.main", "bert4rec-recommend": "bert4rec_jax.recommend",
           "bert4rec-export": "bert4rec_jax.export.__main__", "bert4rec_jax.export": "bert4rec_jax.export.__main__",
           "bert4rec_jax.portrait": "bert4rec_jax.portrait.__main__"}
OURS = ("bert4rec_jax", "experiments", "benchmarks")
# What stands for something of the reader's.
PLACEHOLDERS = ("FILE", "FOLDER", "DIR", "RUN", "ROOT", "mine", "my_sweep.py", "json_lines.py", "...")
NOT_OURS = {
    r"pip |.* -m pip ": "installs packages, which takes a network",
    r"make ": "checked against the Makefile",
    r"docker |kubectl ": "takes a container engine or a cluster",
    r".*-m http.server": "serves until it is stopped",
    r"\S*python3? -m (pytest|venv|ruff)": "is not a program of ours",
    r"iconv |gunzip |tests/": "is not a program of ours",
}


def shown() -> list[tuple[str, str]]:
    """Returns (where, command) of every command that is shown, continued lines joined."""
    texts = [(f"{page}:{block.line}", block.text) for page in PAGES for block in blocks(page)
             if block.kind in ("", "text", "sh", "bash", "console", "shell") and not block.caption]
    for path in DOCSTRINGS:
        where = path.relative_to(ROOT).as_posix()
        texts.append((where, ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""))
    found = []
    for where, text in texts:
        for line in re.sub(r"\\\n\s*", "", text).split("\n"):
            match = COMMAND.match(line)
            if match and ("`" not in line):
                found.append((where, re.sub(r"\s{2,}#.*| > \S+$", "", match[1]).strip()))
    return found


def flags_of(module: str) -> set[str]:
    """Returns the names of the flags that a module defines, from its text."""
    path = ROOT / (module.replace(".", "/") + ".py")
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {call.args[0].value.removeprefix("--") for call in calls if isinstance(call.func, ast.Attribute) and call.args
            and call.func.attr.startswith(("DEFINE_", "add_argument")) and isinstance(call.args[0], ast.Constant)
            } | {"help"}


def split(command: str) -> tuple[str, list[str]]:
    """Returns the module that a command of ours runs, and its arguments."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if words[0] in MODULES:
        return MODULES[words[0]], words[1:]
    place = words.index("-m")
    return MODULES.get(words[place + 1], words[place + 1]), words[place + 2:]


def pairs(arguments: list[str]) -> list[tuple[str, str]]:
    """Returns (flag, value); a flag without a value has "", what is no flag has the name ""."""
    found, left = [], list(arguments)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            found.append(("", word))
        elif "=" in word:
            found.append(tuple(word[2:].split("=", 1)))
        else:
            found.append((word[2:], left.pop(0) if left and not left[0].startswith("--") else ""))
    return found


def reason_not_to_run(command: str) -> str:
    """Returns why a command is not one of ours, or ""."""
    return next((why for pattern, why in NOT_OURS.items() if re.match(pattern, command)), "")


def test_commands_are_found():
    commands = shown()
    assert len(commands) > 60
    for part in ("bert4rec_jax.main", "bert4rec_jax.recommend", "experiments.launch", "experiments.report", "bert4rec-train"):
        assert any(part in command for _, command in commands)


@pytest.mark.parametrize("where, command", sorted(set(shown())))
def test_a_command_that_is_shown_exists(where, command):
    if re.match(r"(PYTHON=\S+ )?make ", command):
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
        assert re.match(r"(?:PYTHON=\S+ )?make ([\w-]+)", command)[1] in targets
        return
    if reason_not_to_run(command):
        return
    module, arguments = split(command)
    if not module.startswith(OURS):
        pytest.fail(f"{where}: it is not known how to check {command!r}; see NOT_OURS")
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.exists(), f"there is no module {module}"
    if module.startswith("benchmarks"):
        return  # argparse; `make bench` runs them
    known = flags_of(module)
    given = pairs(arguments)
    config = next((value for name, value in given if name == "config"), "")
    values = None
    if config and not any(part in config for part in PLACEHOLDERS):
        values = config_lib.load(config if re.fullmatch(r"\w+(:[\w-]+)?", config) else str(ROOT / config))
    for name, value in given:
        if name.startswith("config."):
            fields = {field.name: field for field in config_lib.describe()}
            assert name[7:] in fields, f"there is no field {name}"
            kinds = fields[name[7:]].kind.split("|")
            assert len(kinds) == 1 or value in kinds, f"{name} has no {value}"
        elif name:
            assert name in known or name.removeprefix("no") in known, f"{module} has no --{name}"
        elif module in ("bert4rec_jax.main", "bert4rec_jax.recommend"):
            pytest.fail(f"{value!r} is no flag")
        if name == "sweep" and not any(part in value for part in PLACEHOLDERS):
            assert (ROOT / value).exists()
    if values is not None and not any(".path" in name for name, _ in given) and values.data.path == "":
        return
    if values is not None:
        values.data.path = values.data.path or "somewhere"
        config_lib.resolve(values)


def story(module: str) -> list[str]:
    """Returns the distinct commands of a module that can be run with what `shrunk` puts in."""
    commands = dict.fromkeys(command for _, command in shown() if not reason_not_to_run(command))
    return [c for c in commands if split(c)[0] == module and "--distributed" not in c and "..." not in c
            and not re.search(r"\b(FILE|DIR|RUN)\b", c)]


def shrunk(command: str, folder) -> list[str]:
    """Returns a training command with the same flags on a small log, in a folder."""
    words = [sys.executable, "-m", "bert4rec_jax.main"]
    fields = SMALL | {"train.steps": 20, "train.eval_every": 10, "train.checkpoint_every": 10, "data.source": "synthetic",
                      "data.path": "", "data.items_path": "", "data.user_core": 0, "data.item_core": 0,
                      "data.min_rating": 0.0, "train.accumulate": 1, "model.heads": 1, "loss.negatives": 16}
    for name, value in pairs(split(command)[1]):
        if name in ("workdir", "trained"):
            value = str(folder / value.strip("/"))
        elif name == "config" and value.startswith("configs/"):
            value = str(ROOT / value)
        if name.startswith("config.") and (name[7:] in fields or name[7:].startswith("data.")):
            continue
        words += [f"--{name}={value}" if value else f"--{name}"]
    return words + [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.mark.slow
def test_training_commands_run(tmp_path):
    commands = [c for c in story("bert4rec_jax.main") if "--compile_for" not in c and "experiments/results" not in c
                and "--help" not in c]
    assert len(commands) > 8
    done = set()
    for command in sorted(commands, key=lambda c: "--mode" in c):
        words = shrunk(command, tmp_path)
        trained = next((w.split("=", 1)[1] for w in words if w.startswith("--trained=")), None)
        workdir = next(w.split("=", 1)[1] for w in words if w.startswith("--workdir="))
        mode = "evaluate" if "--mode=evaluate" in words else "train"
        if (workdir, mode) in done:  # the same directory with another config is refused, as it should be
            continue
        if mode == "evaluate" and (trained or workdir, "train") not in done:
            continue
        # Ranking under another protocol takes the fields of the run that is ranked.
        finished = run(words, tmp_path)
        if mode == "evaluate" and "must be that of" in finished.stderr:
            continue
        assert finished.returncode == 0, f"{command}\n{finished.stderr[-2000:]}"
        done.add((workdir, mode))
    assert len(done) > 5


@pytest.mark.slow
def test_recommending_commands_run(tmp_path):
    succeed(shrunk("python -m bert4rec_jax.main --config synthetic --workdir run", tmp_path), tmp_path)
    (tmp_path / "histories.json").write_text('{"anna": ["id:1", "id:2"], "ben": ["nothing"]}')
    commands = [c for c in story("bert4rec_jax.recommend") if "--out" not in c]
    assert len(commands) > 2
    for command in commands:
        words, number = [sys.executable, "-m", "bert4rec_jax.recommend"], 0
        for name, value in pairs(split(command)[1]):
            number += name == "history"
            new = {"workdir": str(tmp_path / "run"), "history": f"id:{number}", "histories": str(tmp_path / "histories.json")}
            words += [f"--{name}={new.get(name, value)}" if value else f"--{name}"]
        assert succeed(words, tmp_path).stdout
    assert environment(tmp_path)
