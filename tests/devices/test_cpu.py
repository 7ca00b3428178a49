# SPDX-License-Identifier: Apache-2.0
"""Options for XLA on CPUs, and that they reach the compiler in every layout."""

import jax
import jax.numpy as jnp
import pytest

from bert4rec_jax.config import ParallelConfig
from bert4rec_jax.devices import Layout, cpu, layout


@pytest.mark.parametrize(
    "flags, wide", [("fpu sse2 avx2 avx512f avx512dq", True), ("fpu sse2 avx2", False)]
)
def test_wide_vectors_are_asked_for_where_the_processor_has_them(
    tmp_path, monkeypatch, flags, wide
):
    description = tmp_path / "cpuinfo"
    description.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n")
    here = cpu._has_wide_vectors(str(description))
    monkeypatch.setattr(cpu, "_has_wide_vectors", lambda: here)
    assert cpu.compiler_options("cpu").get("xla_cpu_prefer_vector_width") == (512 if wide else None)
    assert cpu.compiler_options("tpu") is None


def test_a_system_without_a_description_of_its_processor_has_none():
    assert not cpu._has_wide_vectors("/nowhere/cpuinfo")


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("kind", ["update", "per row"])
def test_options_reach_the_compiler(tmp_path, monkeypatch, mode, kind):
    options = {
        "xla_cpu_prefer_vector_width": 512,
        "xla_dump_to": str(tmp_path),
        "xla_dump_emitter_re": ".*",  # newer versions of XLA dump LLVM IR only on request
    }
    monkeypatch.setattr(layout, "compiler_options", lambda platform: options)
    over = Layout(ParallelConfig(mode=mode))

    def update(state, batch, key, placement):
        return jnp.tanh(state) * 3 + batch.sum(), placement.sum(batch.sum())

    def per_row(params, batch, placement):
        return batch * 3 + jnp.tanh(params).sum()

    array = jnp.zeros(1000)
    batch = over.put_batch(jnp.ones((8, 1000)))
    if kind == "update":
        compiled = over.compile_update(update, array)
        jax.block_until_ready(compiled(array, batch, jax.random.key(0)))
    else:
        compiled = over.compile_per_row(per_row, array)
        jax.block_until_ready(compiled(array, batch))
    code = "".join(path.read_text() for path in tmp_path.glob("*.ll"))
    assert '"prefer-vector-width"="512"' in code and '"prefer-vector-width"="256"' not in code
