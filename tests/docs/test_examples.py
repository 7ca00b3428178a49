# SPDX-License-Identifier: Apache-2.0
"""Runs the commands and the Python code of README, docs, notebooks and docstrings in a copy of the checkout.

`shown_commands.NOT_RUN` lists exceptions with reasons, such as a network, a cluster or hours of computation. Trainings
use a small model and a small log, so that they take seconds; all other commands run unchanged.
"""

import csv
import random
import re
import shutil
import subprocess
import sys

import pytest
from commands import SMALL, environment
from pages import ROOT, blocks
from shown_commands import PAGES, Command, shown

from bert4rec_jax import config as config_lib

pytestmark = pytest.mark.slow
TITLES = [
    ("Toy Story", 1995),
    ("Lion King, The", 1994),
    ("Aladdin", 1992),
    ("Heat", 1995),
    ("Alien", 1979),
    ("Aliens", 1986),
    ("Star Wars", 1977),
    *((f"Film {n}", 1960 + n) for n in range(23)),
]
TRAINED = ("quickstart", "ml_1m", "ml_25m", "mine")  # finished runs in runs/
FIELDS = {
    "train.steps": 20,
    "train.eval_every": 10,
    "train.checkpoint_every": 10,
    "train.accumulate": 1,
    "model.heads": 1,
    "loss.negatives": 16,
    "filter.user_core": 0,
    "filter.item_core": 0,
    "filter.min_rating": 0.0,
    "data.where": "",
    "split.kind": "leave_one_out",
    "split.period_target": "first",
    "split.test_seconds": 0,
    "split.valid_seconds": 0,
    "split.gap_seconds": 0,
    "data.synthetic.num_items": 300,  # 100 of them are negatives
}
SETS = [
    f"--set={name}={value}"
    for name, value in SMALL.items()
    if name.startswith(("data.", "model.ffn", "model.layers", "optimizer.warmup"))
]
COMMANDS = {command.text: command for command in shown() if not command.why_not}


def commands_of(*modules: str) -> list[str]:
    """Returns the commands of modules, in an order in which their inputs exist."""
    order = ["launch --sweep", "launch --root", "report sweeps", "report experiments", "--check"]
    found = [text for text, command in COMMANDS.items() if command.parts()[0] in modules]
    return sorted(
        found, key=lambda text: next((n for n, part in enumerate(order) if part in text), 0)
    )


def short(text: str) -> str:
    return text.replace("python -m ", "").replace("bert4rec_jax.", "")[:90]


def run(words, stage, code=0):
    words = [sys.executable if re.fullmatch(r"(\S*/)?python3?", word) else word for word in words]
    done = subprocess.run(
        words,
        cwd=stage,
        env=environment(stage.parent, PYTHONPATH=str(stage)),
        text=True,
        capture_output=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == code, (
        f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


def as_typed(text: str) -> list[str]:
    module, arguments = Command(text, "", False).parts()
    return ["python", "-m", module, *arguments]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A copy of the checkout with the logs, titles, users and finished runs that the documentation uses."""
    stage = tmp_path_factory.mktemp("stage") / "checkout"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
    shutil.copytree(
        ROOT,
        stage,
        ignore=lambda folder, names: (
            left_out(folder, names)
            | ({"build", "data", "runs", "sweeps"} if folder == str(ROOT) else set())
        ),
    )
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"],
    ):
        subprocess.run(["git", *words], cwd=stage, check=True)  # records name a commit
    draw = random.Random(0)
    events = [
        (f"u{user}", draw.randrange(len(TITLES)), 1000 * place + user)
        for user in range(60)
        for place in range(12)
    ]
    columns = ["user", "item", "timestamp", "customer", "film", "watched_at"]
    for name in ("views.csv", "new_log.csv", "new_events.csv"):
        with open(stage / name, "w", newline="") as file:
            csv.writer(file).writerows([columns, *(event * 2 for event in events)])
    with open(stage / "films.csv", "w", newline="") as file:
        films = [[n, n, title, year, "Drama|War"] for n, (title, year) in enumerate(TITLES)]
        csv.writer(file).writerows([["item", "film", "title", "year", "genres"], *films])
    (stage / "users.txt").write_text("u1\nu2\n")
    (stage / "histories.json").write_text(
        '{"anna": ["Toy Story (1995)", "Heat"], "ben": ["nothing"]}'
    )
    for block in blocks("experiments/README.md"):
        if block.kind == "python" and "# my_sweep.py" in block.text:
            (stage / "my_sweep.py").write_text(
                block.text.replace("[0, 1, 2]", "[0]")
            )  # a third of the trials
    table = {"data.path": "views.csv", "data.items_path": "films.csv"}
    fields = {
        name: value for name, value in (SMALL | FIELDS | table).items() if "synthetic" not in name
    }
    run(
        [
            "python",
            "-m",
            "bert4rec_jax.main",
            "--config",
            "own_data",
            f"--workdir=runs/{TRAINED[0]}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        stage,
    )
    for name in TRAINED[1:]:
        shutil.copytree(stage / "runs" / TRAINED[0], stage / "runs" / name)
    return stage


def shrunk(command: Command, workdir: str, **fields) -> list[str]:
    """Returns a training command with the same flags, a small model and a small log, in a new workdir."""
    fields = (
        SMALL
        | FIELDS
        | {"data.source": "synthetic", "data.path": "", "data.items_path": ""}
        | fields
    )
    words = ["python", "-m", "bert4rec_jax.main", f"--workdir={workdir}"]
    for name, value in command.pairs():
        if name == "workdir" or name[7:] in fields or name.startswith("config.data."):
            continue
        value = value.replace("/RUN/", "/next_item_0/")
        words.append(f"--{name}={value}" if value else f"--{name}")
    return words + [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.mark.parametrize("text", commands_of("bert4rec_jax.main"), ids=short)
def test_training(stage, text):
    command = COMMANDS[text]
    given = dict(command.pairs())
    workdir = f"trained/{commands_of('bert4rec_jax.main').index(text)}"
    if given.get("mode") == "suggest":
        assert "--config.model.width" in run(as_typed(text), stage)
        return
    if "results/mine/" in text:  # the records of test_sweeps_and_reports
        command = Command(text.replace("mine/runs/mine-000", "ml_100k/runs/RUN"), "", False)
    if given.get("mode") != "evaluate":
        assert "recommended next" in run(shrunk(command, workdir), stage)
        return
    # Evaluation requires a trained run.
    first = re.sub(r" --(mode|trained|config\.eval\.\S+?)[ =]\S+", "", text)
    protocol = (
        {"eval.protocol": given["config.eval.protocol"]} if "config.eval.protocol" in given else {}
    )
    run(shrunk(Command(first, "", False), workdir), stage)
    ranks = Command(text.replace("--trained runs/ml_1m", f"--trained {workdir}"), "", False)
    assert "test " in run(
        shrunk(ranks, f"{workdir}_again" if "trained" in given else workdir, **protocol), stage
    )


@pytest.mark.parametrize(
    "text",
    commands_of(
        "bert4rec_jax.recommend",
        "bert4rec_jax.export.__main__",
        "bert4rec_jax.portrait.__main__",
        "bert4rec_jax.data.clean",
        "experiments.cite",
    ),
    ids=short,
)
def test_commands_on_a_finished_run(stage, text):
    shown = run(
        [
            word.replace("RUN", "runs/mine").replace("Signal 4", "Heat").replace("Atlas 2", "Alien")
            for word in as_typed(text)
        ],
        stage,
    )
    out = dict(COMMANDS[text].pairs()).get("out")
    assert shown.strip() and (out is None or (stage / out).exists())


def test_sweeps_and_reports(stage):
    for text in commands_of("experiments.launch", "experiments.report"):
        words = as_typed(text)
        if "--sweep" in words:
            words += SETS + (
                [
                    "--set=train.steps=20",
                    "--set=train.eval_every=10",
                    "--set=train.checkpoint_every=10",
                ]
                if "my_sweep.py" in words
                else []
            )
        assert run(words, stage).strip()


def test_every_command_is_run_or_has_a_reason():
    run_here = commands_of(
        "bert4rec_jax.main",
        "bert4rec_jax.recommend",
        "bert4rec_jax.export.__main__",
        "bert4rec_jax.portrait.__main__",
        "bert4rec_jax.data.clean",
        "experiments.cite",
        "experiments.launch",
        "experiments.report",
    )
    assert set(run_here) == set(COMMANDS)


@pytest.mark.parametrize(
    "block",
    [
        block
        for page in PAGES
        for block in blocks(page)
        if block.kind == "python" and not block.caption
    ],
    ids=lambda block: f"{block.document}:{block.line}",
)
def test_python(stage, block):
    file = stage / "example.py"
    file.write_text(block.text)
    if "def get_config" in block.text:
        config_lib.resolve(config_lib.load(str(file)))
    elif "CONFIG =" in block.text:
        assert "trial" in run(
            [
                "python",
                "-m",
                "experiments.launch",
                "--sweep",
                "example.py",
                "--root",
                "sweeps/tried",
                "--dry_run",
            ],
            stage,
        )
    else:
        run(["python", "example.py"], stage)
