# SPDX-License-Identifier: Apache-2.0
"""Files that are either the old one or the whole new one; JSON that people wrote."""

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


def read_json(path: str) -> Any:
    """Returns the content of a JSON file that may be anything.

    Raises:
      OSError: there is no such file, or it cannot be opened.
      ValueError: it is not JSON, names a field of an object twice, or is nested too deeply to be meant.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(
                f"{next(n for n in names if names.count(n) > 1)[:60]!r} stands there twice"
            )
        return values

    try:
        with open(path, encoding="utf-8-sig") as file:
            value = json.load(file, object_pairs_hook=unique)
        repr(value)  # what can be read may still be too deep to be shown
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value
