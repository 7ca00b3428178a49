# SPDX-License-Identifier: Apache-2.0
"""Targets by name, and one small program compiled for a TPU and for a GPU where their compilers are installed."""

import importlib.util
import json
import sys

import pytest
from commands import succeed

from bert4rec_jax.compile_for.figures import needed_bytes
from bert4rec_jax.devices import targets
from bert4rec_jax.errors import UserError


def test_targets_are_named_by_kind_and_shape():
    assert targets.parse("v5e:4x4").shape == (4, 4)
    assert targets.parse("2*v5p:2x2x2").slices == 2
    assert targets.parse("h100:8").shape == (1, 8)
    assert targets.parse("a100:2x8").shape == (2, 8)


@pytest.mark.parametrize("text", ["v9:8", "v5e", "v5e:", "h100:2x2x2", "2*h100:8", "v5e:4*4"])
def test_other_names_are_refused_in_one_line(text):
    with pytest.raises(UserError, match="compile_for"):
        targets.parse(text)


@pytest.mark.parametrize(
    "text, remedy", [("v5e:2x2", r"pip install '\.\[tpu\]'"), ("h100:8", "jax-cuda12-plugin")]
)
def test_a_missing_compiler_is_named(monkeypatch, text, remedy):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=remedy):
        targets.parse(text).prepare()


@pytest.mark.parametrize(
    "said, gib",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (79.80G) exceeds "
            "available HBM (15.75G).",
            79.80,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 512.5M of 15.75G "
            "hbm.",
            0.5005,
        ),
        ("RESOURCE_EXHAUSTED: something else", None),
    ],
)
def test_what_would_be_needed_is_read_from_what_the_compiler_says(said, gib):
    needed = needed_bytes(said)
    assert needed == (pytest.approx(gib * 2**30, rel=1e-3) if gib else None)


def test_attention_is_most_of_a_step_from_some_length_on(tmp_path):
    """Two lengths tell: 1,000 operations a position whatever the length, and two more for each column of its row."""
    figures = [
        {
            "name": f"{length:,} long",
            "target": "v5e:2x4",
            "operations": rows * length * (1000 + 2 * length),
        }
        for length, rows in ((2048, 8), (8192, 4))
    ]
    figures.append({"name": "1M items", "target": "v5e:2x4", "operations": 1})
    script = (
        f"import json; from benchmarks.targets import quadratic_from as f; a = {figures}; "
        "print(json.dumps([f(a), f(a[1:])]))"
    )
    assert json.loads(succeed([sys.executable, "-c", script], tmp_path).stdout) == [
        {"v5e:2x4": 500},
        {},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("text, compiler", [("v5e:2x2", "libtpu"), ("h100:2", "jax_cuda12_plugin")])
def test_a_run_compiles_for_machines_that_are_not_here(tmp_path, text, compiler):
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    done = succeed(
        [
            sys.executable,
            "-m",
            "bert4rec_jax.main",
            "--config",
            "configs/synthetic.py",
            "--compile_for",
            text,
            "--items",
            "300",
            "--json",
            "--config.model.dtype=bfloat16",
        ],
        tmp_path,
    )
    report = json.loads(done.stdout)
    for step in report["steps"]:
        assert step["fits"] and step["operations"] > 0 and step["memory_traffic_bytes"] > 0
    training = report["steps"][0]
    assert sum(training["sent_bytes"].values()) == pytest.approx(
        training["least_sent_bytes"], rel=0.05
    )
