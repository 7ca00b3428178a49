# SPDX-License-Identifier: Apache-2.0
"""Files that are either the old one or the whole new one."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: str, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file beside `path` that takes its place once the block has ended without an error."""
    temporary = f"{path}.tmp"
    with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: str, value: Any) -> None:
    """Writes indented JSON with `replacing`."""
    with replacing(path) as file:
        json.dump(value, file, indent=2)
        file.write("\n")
