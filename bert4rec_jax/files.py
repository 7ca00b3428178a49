# SPDX-License-Identifier: Apache-2.0
"""Files that are replaced atomically, and JSON files that users may have written."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file that replaces `path` at the end of the block.

    Readers see either the old file or the complete new one. After an error the old file is left as
    it was, and the temporary file is removed. Several processes may replace the same path.
    """
    target = os.fspath(path)
    temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes indented JSON with `replacing`."""
    with replacing(path) as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def read_json(path: str | os.PathLike) -> Any:
    """Returns the content of a JSON file.

    Raises:
      OSError: the file does not exist or cannot be opened.
      ValueError: the file is not JSON, has the same key twice in one object, or is nested too
        deeply.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            value = json.load(file, object_pairs_hook=_unique_keys)
        repr(value)  # deeply nested JSON may load but exceed the recursion limit when it is shown
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key[:60]!r} appears twice")
        values[key] = value
    return values
