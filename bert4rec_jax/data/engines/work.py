# SPDX-License-Identifier: Apache-2.0
"""The work folder of a preparation: finished stages, which a second start finds again, a lock on them, and what to say
when the disk is full."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

from bert4rec_jax import files
from bert4rec_jax.errors import UserError

WORK_PREFIX = ".work-"


class EngineFailed(Exception):
    """An engine refused, for a reason that the files may explain."""


class Unfinished(UserError):
    """A preparation ended for a reason that is not the log's, so its finished stages are worth going on from."""


def full_disk(folder: str) -> Unfinished:
    """Returns the error of a full spill disk."""
    return Unfinished(
        f"the disk of {folder} is full; free space there, or set config.data.spill_dir to another folder. The finished "
        "stages are kept, and the same command goes on from them."
    )


class Work:
    """A folder that one process at a time works in; a context manager.

    A stage is a file or folder that appears under its name when it is whole; `facts` are small JSON ones. They stay
    behind for a second start, unless the log or the configuration was refused: what is mended is another log, with a
    folder of its own.
    """

    def __init__(self, folder: str):
        """Makes the folder where there is none, and waits until no other process works in it."""
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        self.spill = self.path("spill")

    def __enter__(self) -> Work:
        while not self._take_lock():
            os.makedirs(self.folder, exist_ok=True)
        shutil.rmtree(self.spill, ignore_errors=True)
        os.makedirs(self.spill)
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".part"):
                _remove(entry.path)
        return self

    def _take_lock(self) -> bool:
        """Returns False where the process that it waited for has removed the lock with the folder."""
        try:
            self._lock = open(self.path("lock"), "w")  # noqa: SIM115
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process prepares the same data; waiting for it", file=sys.stderr)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path("lock"))):
                return True
        self._lock.close()
        return False

    def __exit__(self, kind, error, _) -> None:
        shutil.rmtree(self.spill, ignore_errors=True)
        refused = isinstance(error, UserError) and not isinstance(error, Unfinished)
        if refused or (error and os.listdir(self.folder) == ["lock"]):
            self.remove()
        self._lock.close()

    def path(self, name: str) -> str:
        """Returns where a stage is or will be."""
        return os.path.join(self.folder, name)

    def has(self, name: str) -> bool:
        """Whether a stage is finished."""
        return os.path.exists(self.path(name))

    def stage(self, name: str, make: Callable[[str], None]) -> str:
        """Returns the path of a stage, made with make(path) unless it is there."""
        path = self.path(name)
        if not os.path.exists(path):
            os.utime(self.folder)
            make(f"{path}.part")
            os.rename(f"{path}.part", path)
        return path

    def facts(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns a JSON value, computed unless it is there."""
        path = self.path(f"{name}.json")
        if not os.path.exists(path):
            files.write_json(path, compute())
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def drop(self, name: str) -> None:
        """Removes a stage that no later one needs, to free its disk."""
        _remove(self.path(name))

    def remove(self) -> None:
        """Removes everything: the preparation is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.exists(path):
        os.remove(path)
