# SPDX-License-Identifier: Apache-2.0
"""Makes a complete prepared folder visible under its name, if several processes prepare it."""

from __future__ import annotations

import os
import shutil
import uuid

from bert4rec_jax.data.dataset import open_dataset
from bert4rec_jax.errors import UserError


def is_published(folder: str) -> bool:
    """Whether an undamaged prepared folder exists; removes a damaged one."""
    if not os.path.isdir(folder):
        return False
    try:
        open_dataset(folder)
    except UserError:
        damaged = os.path.join(os.path.dirname(folder), f".damaged-{uuid.uuid4().hex}")
        os.rename(folder, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
        return False
    return True


def publish(scratch: str, folder: str) -> None:
    """Renames a complete folder, unless another process has published it."""
    if is_published(folder):
        return
    try:
        os.rename(scratch, folder)
    except OSError:
        # Another process may have published since the check; its folder is the same.
        if not os.path.isdir(folder):
            raise
