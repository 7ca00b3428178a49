# SPDX-License-Identifier: Apache-2.0
"""A file of lists, written in parts: a killed run goes on after the last whole one, a finished file is whole."""

import json
import os
import shutil

import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from bert4rec_jax.errors import UserError
from bert4rec_jax.files import replacing, write_json

FORMATS = (".parquet", ".csv")


class ListFile:
    """`path`, a Parquet or CSV file by its name, made of the parts in `path` + `.parts`."""

    def __init__(self, path: str, identity: dict):
        """Opens the parts that are there already, if they are of the same lists.

        Args:
          path: ends in one of `FORMATS`.
          identity: what the lists follow from, plain JSON values; parts of another identity are thrown away.

        Raises:
          UserError: the file cannot be written there.
        """
        self._path, self._folder = path, path + ".parts"
        self._extension = os.path.splitext(path)[1]
        identity = json.loads(json.dumps(identity))
        note = os.path.join(self._folder, "identity.json")
        try:
            if os.path.isdir(self._folder) and _read(note) != identity:
                shutil.rmtree(self._folder)
            os.makedirs(self._folder, exist_ok=True)
            write_json(note, identity)
        except OSError as error:
            raise UserError(
                f"--out {path} cannot be written ({error.strerror}); name a file in a folder that exists "
                "and is yours."
            ) from None

    def has(self, number: int) -> bool:
        """Returns whether part `number` is written."""
        return os.path.exists(self._part(number))

    def _part(self, number: int) -> str:
        return os.path.join(self._folder, f"{number:06d}{self._extension}")

    def write(self, number: int, table: pa.Table) -> None:
        """Writes a part, whole or not at all."""
        with _disk(self._path), replacing(self._part(number), "wb") as file:
            if self._extension == ".csv":
                pv.write_csv(table, file, pv.WriteOptions(include_header=number == 0))
            else:
                pq.write_table(table, file, compression="zstd")

    def finish(self, count: int) -> None:
        """Makes the file of parts 0..count-1 and removes them."""
        with _disk(self._path), replacing(self._path, "wb") as file:
            if self._extension == ".csv":
                for number in range(count):
                    with open(self._part(number), "rb") as part:
                        shutil.copyfileobj(part, file)
            else:
                with pq.ParquetWriter(
                    file, pq.read_schema(self._part(0)), compression="zstd"
                ) as writer:
                    for number in range(count):
                        writer.write_table(pq.read_table(self._part(number)))
        shutil.rmtree(self._folder)


class _disk:
    """Says what a full or read-only disk means for the user."""

    def __init__(self, path: str):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, _) -> None:
        if isinstance(error, OSError):
            raise UserError(
                f"--out {self._path} cannot be written ({error.strerror or error}); free space there, and "
                "the same command goes on."
            ) from None


def _read(path: str) -> dict | None:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None
