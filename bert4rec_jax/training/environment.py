# SPDX-License-Identifier: Apache-2.0
"""The record of one start of a run: command, commit, versions, devices, settings of JAX."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys

import jax

from bert4rec_jax import __version__

_PACKAGE_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas")


def describe_start(mode: str) -> dict:
    """Returns the entry of environment.json for this start.

    Args:
      mode: train or evaluate.
    """
    commit = _git("rev-parse", "HEAD")
    dirty = None
    if commit is not None:
        # Untracked files count too: an untracked module can be imported.
        dirty = bool(_git("status", "--porcelain", "--", _PACKAGE_FOLDER))
    versions = {"bert4rec_jax": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        versions[name] = importlib.metadata.version(name)
    return {
        "mode": mode,
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": commit,
        "git_dirty": dirty,
        "versions": versions,
        "devices": [str(device) for device in jax.devices()],
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "host": platform.node(),
    }


def numeric_settings() -> dict[str, str | bool | None]:
    """Returns the settings of JAX that change the numbers that training computes."""
    names = (
        "jax_default_matmul_precision",
        "jax_default_prng_impl",
        "jax_enable_x64",
        "jax_threefry_partitionable",
    )
    return {name: getattr(jax.config, name) for name in names}


def _git(*arguments: str) -> str | None:
    """Returns the output of git in the checkout, or None without git or a checkout."""
    command = ["git", "-C", _PACKAGE_FOLDER, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
