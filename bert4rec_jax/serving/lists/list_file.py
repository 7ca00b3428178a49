# SPDX-License-Identifier: Apache-2.0
"""A file of lists that is written in parts, so that a killed command continues after the last
complete part.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from bert4rec_jax.errors import UserError
from bert4rec_jax.files import read_json, replacing, write_json

FORMATS = (".parquet", ".csv")


class ListFile:
    """The Parquet or CSV file `path`, made of the parts in `path` + `.parts`."""

    def __init__(self, path: str, source_key: dict[str, Any]):
        """Keeps existing parts if they belong to the same lists.

        Args:
          path: ends in one of `FORMATS`.
          source_key: everything that the lists depend on, as JSON values; parts with another key
            are deleted.

        Raises:
          UserError: the file cannot be written there.
        """
        self._path = path
        self._folder = path + ".parts"
        self._extension = os.path.splitext(path)[1]
        source_key = json.loads(json.dumps(source_key))  # tuples become lists
        key_file = os.path.join(self._folder, "source_key.json")
        try:
            if os.path.isdir(self._folder) and _read_key(key_file) != source_key:
                shutil.rmtree(self._folder)
            os.makedirs(self._folder, exist_ok=True)
            write_json(key_file, source_key)
        except OSError as error:
            raise UserError(
                f"--out {path} cannot be written ({error.strerror}); give a file in an existing "
                "folder to which "
                "you can write."
            ) from None

    def has(self, number: int) -> bool:
        """Returns whether part `number` is written."""
        return os.path.exists(self._part(number))

    def _part(self, number: int) -> str:
        return os.path.join(self._folder, f"{number:06d}{self._extension}")

    def write(self, number: int, table: pa.Table) -> None:
        """Writes a part completely or not at all."""
        with self._disk_errors(), replacing(self._part(number), "wb") as file:
            if self._extension == ".csv":
                pv.write_csv(table, file, pv.WriteOptions(include_header=number == 0))
            else:
                pq.write_table(table, file, compression="zstd")

    def finish(self, count: int) -> None:
        """Joins the parts 0..count-1 into the file and removes them."""
        parts = [self._part(number) for number in range(count)]
        with self._disk_errors(), replacing(self._path, "wb") as file:
            if self._extension == ".csv":
                for part in parts:
                    with open(part, "rb") as lines:
                        shutil.copyfileobj(lines, file)
            else:
                schema = pq.read_schema(parts[0])
                with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                    for part in parts:
                        writer.write_table(pq.read_table(part))
        shutil.rmtree(self._folder)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turns errors of a full or read-only disk into a UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"--out {self._path} cannot be written ({error.strerror or error}); free some "
                "space and run "
                "the same command again to continue."
            ) from None


def _read_key(path: str) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
