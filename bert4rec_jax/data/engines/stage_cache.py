# SPDX-License-Identifier: Apache-2.0
"""The finished stages of a preparation, kept on disk so that a restart continues after them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from bert4rec_jax import files
from bert4rec_jax.errors import UserError

STAGE_PREFIX = ".stages-"
_LOCK = "lock"


class EngineFailed(Exception):
    """An engine failed for a reason that a look at the files may explain."""


class PreparationInterrupted(UserError):
    """A preparation ended for a reason other than the log; its finished stages are kept."""


def disk_full(folder: str) -> PreparationInterrupted:
    """Returns the error of a full disk."""
    return PreparationInterrupted(
        f"the disk of {folder} is full; free space there, or set config.data.spill_dir to another "
        "folder. The finished stages are kept, and the same command continues from them."
    )


class StageCache:
    """A folder that one process at a time uses; a context manager.

    A stage is a file or folder that gets its name when it is complete. Values are small JSON files.
    Both are kept for a restart, unless the log or the config was rejected: a corrected log has a
    folder of its own.

    Attributes:
      folder: the folder.
      spill: a folder in it for the temporary files of an engine; empty at the start.
    """

    def __init__(self, folder: str):
        """Creates the folder if it is missing."""
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        self.spill = self.path("spill")

    def __enter__(self) -> StageCache:
        """Waits until no other process uses the folder, and removes unfinished stages."""
        while not self._take_lock():
            os.makedirs(self.folder, exist_ok=True)
        shutil.rmtree(self.spill, ignore_errors=True)
        os.makedirs(self.spill)
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".part"):
                _remove(entry.path)
        return self

    def _take_lock(self) -> bool:
        """Returns False if the previous owner of the lock has removed it with the folder."""
        try:
            self._lock = open(self.path(_LOCK), "w")  # noqa: SIM115
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process prepares the same data; waiting for it", file=sys.stderr)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path(_LOCK))):
                return True
        self._lock.close()
        return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes the folder if its stages are of no use, and releases the lock."""
        shutil.rmtree(self.spill, ignore_errors=True)
        rejected = isinstance(error, UserError) and not isinstance(error, PreparationInterrupted)
        if rejected or (error and os.listdir(self.folder) == [_LOCK]):
            self.remove()
        self._lock.close()

    def path(self, name: str) -> str:
        """Returns the path of a stage, finished or not."""
        return os.path.join(self.folder, name)

    def stage(self, name: str, make: Callable[[str], None]) -> str:
        """Returns the path of a stage; if it is missing, calls make(path) first."""
        path = self.path(name)
        if not os.path.exists(path):
            # A recent modification time protects the folder from the removal of stale folders.
            os.utime(self.folder)
            make(f"{path}.part")
            os.rename(f"{path}.part", path)
        return path

    def value(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns a JSON value; if it is missing, computes it first."""
        path = self.path(f"{name}.json")
        if not os.path.exists(path):
            files.write_json(path, compute())
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def drop(self, name: str) -> None:
        """Removes a stage that no later stage needs, to free disk space."""
        _remove(self.path(name))

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.exists(path):
        os.remove(path)
