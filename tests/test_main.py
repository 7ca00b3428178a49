# SPDX-License-Identifier: Apache-2.0
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def main(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bert4rec_jax.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--config", "configs/synthetic.py", "--config.model.dropout=1.5"], "model.dropout"),
        (
            ["--config", "configs/synthetic.py", "--config.model.widht=8"],
            "unknown config field config.model.widht; did you mean config.model.width?",
        ),
        (["--config", "configs/synthetic.py", "--workdir="], "--workdir is missing"),
        (
            ["--config", "pyproject.toml"],
            "the config file pyproject.toml is neither Python (.py) nor a config.json",
        ),
        (["--config", ""], "--config is missing"),
        (["--config", "quickstart:fast"], "has only one variant"),
        (["--config", "configs/nothing.py"], "nothing.py"),
        (["--config", "configs/amazon.py:2022"], "2014, 2023"),
        (
            ["--config", "configs/synthetic.py", "--config.masking.next_item_share=0.3"],
            "masking.next_item_share",
        ),
        (["--config", "configs/synthetic.py", "stray"], "stray"),
        ([], "--config is missing"),
        (
            [
                "--config",
                "configs/synthetic.py",
                "--config.data.source=lines",
                "--config.data.path=/no/such/file",
            ],
            "/no/such/file",
        ),
        (["--config", "configs/synthetic.py", "--no_such_flag"], "no_such_flag"),
    ],
)
def test_user_errors_are_one_line_with_exit_code_2(arguments, named, tmp_path):
    result = main("--workdir", str(tmp_path / "run"), *arguments)
    assert result.returncode == 2, result.stderr
    assert named in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "command, named",
    [
        (
            "bert4rec_jax.main",
            "--config.masking.next_item_share (float, between 0 and 1; default 0.0)",
        ),
        ("bert4rec_jax.recommend", "--history"),
        ("bert4rec_jax.export", "--format"),
        ("bert4rec_jax.portrait", "--title"),
        ("bert4rec_jax.data.clean", "--remove"),
        ("experiments.launch", "--sweep"),
        ("experiments.report", "--check"),
        ("experiments.cite", "--write"),
    ],
)
def test_help_is_printed_on_stdout(command, named):
    done = subprocess.run(
        [sys.executable, "-m", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "") and named in done.stdout


def test_an_error_keeps_its_exit_code_if_stderr_cannot_be_written():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bert4rec_jax.main", "--config", "synthetic"],
            cwd=ROOT,
            stderr=full,
            check=False,
        )
    assert done.returncode == 2


def test_a_workdir_of_another_model_or_other_data_is_rejected(tmp_path):
    small = [
        "--config",
        "configs/synthetic.py",
        "--workdir",
        str(tmp_path / "run"),
        f"--config.data.cache_dir={tmp_path}",
        "--config.data.synthetic.users=60",
        "--config.train.steps=60",
        "--config.model.width=8",
        "--config.train.eval_every=60",
    ]
    first = main(*small)
    assert first.returncode == 0, first.stderr
    assert "protocol:" in first.stdout and "recommended next" in first.stdout
    for change, named in (
        ("--config.model.width=16", "model.width"),
        ("--config.data.synthetic.seed=1", "synthetic.seed"),
    ):
        other = main(*small, change)
        assert other.returncode == 2
        last = other.stderr.splitlines()[-1]
        assert last.startswith("error: ") and named in last and "Traceback" not in other.stderr
