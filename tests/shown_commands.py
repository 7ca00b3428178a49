# SPDX-License-Identifier: Apache-2.0
"""Commands in README, docs, notebooks and docstrings, and reasons why tests do not run some of them."""

import ast
import json
import re
import shlex
from dataclasses import dataclass

from pages import ROOT, blocks

PAGES = [
    "README.md",
    "BUILD.md",
    "CONTRIBUTING.md",
    "experiments/README.md",
    *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
DOCSTRINGS = [
    path
    for folder in (
        "configs/*.py",
        "bert4rec_jax/**/*.py",
        "experiments/*.py",
        "experiments/sweeps/*.py",
        "benchmarks/*.py",
        "docs/*/*.py",
    )
    for path in sorted(ROOT.glob(folder))
]
COMMAND = re.compile(
    r"^\s*(?:\$ )?((?:[A-Z_]+=\S+ )*(?:srun .*?|docker run .*?)?"
    r"(?:\S*python3? (?:-m|\S+\.py)|bert4rec-\w+|make|pip|docker|kubectl|iconv|gunzip|tests/|\.venv/)"
    r"(?: .*)?)$"
)
MODULES = {
    "bert4rec-train": "bert4rec_jax.main",
    "bert4rec-recommend": "bert4rec_jax.recommend",
    "bert4rec-export": "bert4rec_jax.export.__main__",
    "bert4rec_jax.export": "bert4rec_jax.export.__main__",
    "bert4rec_jax.portrait": "bert4rec_jax.portrait.__main__",
}
# Parts of commands that readers replace.
PLACEHOLDERS = (
    "FILE",
    "FOLDER",
    "DIR",
    "RUN",
    "ROOT",
    "NAME",
    "mine",
    "my_sweep.py",
    "json_lines.py",
    "...",
)
# Reasons why tests/docs/test_examples.py does not run a command; the first match counts.
NOT_RUN = {
    r"pip |.* -m pip ": "installs packages from a network",
    r"(PYTHON=\S+ )?make ": "checked against the Makefile, whose recipes are the commands of the other tests",
    r"docker |kubectl |srun ": "requires a container engine or a cluster",
    r"\S*python3? -m http.server": "serves until it is stopped",
    r".*--distributed": "requires several hosts; tests/devices/test_multiprocess.py runs several processes",
    r".*--compile_for": "requires compilers for TPUs or GPUs; tests/aot/test_targets.py",
    r".*--format page": "fetches onnxruntime-web; tests/export/test_page.py",
    r".*--backend": "requires a cluster; tests/sweeping/test_launch.py writes and reads the job",
    r".*experiments/sweeps/ablation.py|.* sweeps/ablation ": "takes hours; tests/sweeping reads every sweep file",
    r"\S*python3? (-m )?benchmarks|.*--plan": "measures for minutes and installs other programs",
    r"\S*python3? docs/_extensions": "`make docs` runs it",
    r"\S*python3? docs/drawings": "redraws files of the checkout",
    r".* --write": "changes the documents; tests/citing",
}


@dataclass(frozen=True, order=True)
class Command:
    """A command and its place; `inline` commands are in a sentence and may be incomplete."""

    text: str
    where: str
    inline: bool

    @property
    def why_not(self) -> str:
        """The reason why no test runs it, or ""."""
        if self.inline:
            return "is part of a sentence; its flags and files are checked"
        return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, self.text)), "")

    def parts(self) -> tuple[str, list[str]]:
        """Returns the module that a command of this project runs, and its arguments."""
        words = shlex.split(self.text)
        while words[0] not in MODULES and not re.fullmatch(
            r"(\S*/)?python3?", words[0]
        ):  # srun, variables
            words.pop(0)
        if words[0] in MODULES:
            return MODULES[words[0]], words[1:]
        if words[1] != "-m":
            return words[1].removesuffix(".py").replace("/", "."), words[2:]
        return MODULES.get(words[2], words[2]), words[3:]

    def pairs(self) -> list[tuple[str, str]]:
        """Returns (flag, value); the value of a switch is "", and so is the name of other words."""
        found = []
        left = self.parts()[1]
        while left:
            word = left.pop(0)
            if not word.startswith("--"):
                found.append(("", word))
            elif "=" in word:
                found.append(tuple(word[2:].split("=", 1)))
            else:
                found.append(
                    (word[2:], left.pop(0) if left and not left[0].startswith("--") else "")
                )
        return found


def texts() -> list[tuple[str, str, str]]:
    """Returns (place, code block, running text) for all documents."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.kind in ("", "text", "sh", "bash", "console", "shell") and not block.caption:
                found.append((f"{page}:{block.line}", block.text, ""))
        running = re.sub(
            r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S
        )
        found.append((page, "", running))
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                text = "".join(cell["source"])
                found.append((path.name, "\n".join(re.findall(r"^    (.*)", text, re.M)), text))
    for path in DOCSTRINGS:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found.append((path.relative_to(ROOT).as_posix(), text, text))
    return found


def shown() -> list[Command]:
    """Returns all commands, with continued lines joined."""
    found = set()
    for where, block, running in texts():
        for line in re.sub(r"\\\n\s*", "", block).split("\n"):
            match = COMMAND.match(line)
            if match and "`" not in line:
                found.add(Command(re.sub(r"\s{2,}#.*| > \S+$", "", match[1]).strip(), where, False))
        for span in re.findall(r"`([^`]+)`", running):
            match = COMMAND.match(" ".join(span.split()))
            if match:
                found.add(Command(match[1], where, True))
    return sorted(found)
