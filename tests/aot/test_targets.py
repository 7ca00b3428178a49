# SPDX-License-Identifier: Apache-2.0
"""Targets by name, and a small run compiled for a TPU and for GPUs if their compilers are installed."""

import importlib.util
import json
import sys

import pytest
from commands import run, succeed

from bert4rec_jax.aot import targets
from bert4rec_jax.aot.estimate import bytes_in_error
from bert4rec_jax.errors import UserError

SMALL = ["--config", "configs/synthetic.py", "--items", "300", "--config.model.dtype=bfloat16"]


def test_a_target_has_a_kind_and_a_shape():
    assert targets.parse("v5e:4x4").shape == (4, 4)
    assert targets.parse("2*v5p:2x2x2").slices == 2
    assert targets.parse("h100:8").shape == (1, 8)
    assert targets.parse("a100:2x8").shape == (2, 8)
    assert targets.parse("h200:1").shape == (1, 1)
    assert targets.parse("b200:8").chip.memory > targets.parse("h200:8").chip.memory


@pytest.mark.parametrize("text", ["v9:8", "v5e", "v5e:", "h100:2x2x2", "2*h100:8", "v5e:4*4"])
def test_other_texts_are_rejected_in_one_line(text):
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
    "message, gibibytes",
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
def test_the_needed_memory_is_read_from_the_error_message(message, gibibytes):
    needed = bytes_in_error(message)
    assert needed == (pytest.approx(gibibytes * 2**30, rel=1e-3) if gibibytes else None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, compiler",
    [
        ("v5e:2x2", "libtpu"),
        # A single GPU is a case of its own: without a mesh of several devices, newer versions of JAX
        # look for a GPU on this machine.
        ("h100:1", "jax_cuda12_plugin"),
        ("h100:2", "jax_cuda12_plugin"),
        ("h200:1", "jax_cuda12_plugin"),
        ("b200:1", "jax_cuda12_plugin"),
    ],
)
def test_a_run_compiles_for_devices_that_are_not_attached(tmp_path, text, compiler):
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    command = [sys.executable, "-m", "bert4rec_jax.main", "--compile_for", text, *SMALL]
    report = json.loads(succeed([*command, "--json"], tmp_path).stdout)
    assert [step["name"] for step in report["steps"]] == ["training", "ranking"]
    for step in report["steps"]:
        assert step["fits"] and step["memory_bytes"] > 0 and step["operations"] > 0


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="no compiler for GPUs"
)
def test_a_run_that_does_not_fit_ends_with_code_1_and_advice(tmp_path):
    huge = ["--config.train.batch_rows=8192", "--config.model.width=4096", "--config.model.heads=4"]
    long = ["--config.model.max_length=512", "--config.model.layers=4"]
    command = [sys.executable, "-m", "bert4rec_jax.main", "--compile_for", "a100:1", *SMALL]
    done = run([*command, *huge, *long], tmp_path)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "does not fit" in done.stdout and "lower config.train.batch_rows" in done.stdout
