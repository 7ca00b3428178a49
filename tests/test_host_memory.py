# SPDX-License-Identifier: Apache-2.0
"""Free memory is the least of the machine's, the container's and the process's."""

import resource

import pytest

from bert4rec_jax import host_memory

MIB = 2**20


@pytest.fixture
def no_limits(tmp_path, monkeypatch):
    """Removes the limits of the container and of the process; returns the folder of the cgroup."""
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    set_process_limit(monkeypatch, resource.RLIM_INFINITY)
    return tmp_path


def set_process_limit(monkeypatch, limit):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))


def test_without_limits_the_memory_of_the_machine_is_free(no_limits):
    assert host_memory.free_host_memory() > 100 * MIB


def test_the_limit_of_the_container_counts(no_limits):
    (no_limits / "memory.max").write_text(f"{90 * MIB}\n")
    (no_limits / "memory.current").write_text(f"{30 * MIB}\n")
    assert host_memory.free_host_memory() == 60 * MIB


def test_a_container_without_a_limit_changes_nothing(no_limits):
    (no_limits / "memory.max").write_text("max\n")
    assert host_memory.free_host_memory() > 100 * MIB


def test_the_limit_of_the_process_counts(no_limits, monkeypatch):
    set_process_limit(monkeypatch, 1)
    assert host_memory.free_host_memory() == 0
