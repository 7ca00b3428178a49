# SPDX-License-Identifier: Apache-2.0
"""DuckDB: an embedded engine that keeps a memory limit by spilling to disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa

from bert4rec_jax.data.engines.background import run_in_background
from bert4rec_jax.data.engines.columns import Dialect, LogColumns, select_columns
from bert4rec_jax.data.engines.stage_cache import (
    EngineFailed,
    PreparationInterrupted,
    disk_full,
)
from bert4rec_jax.data.sources.log import Scan
from bert4rec_jax.data.sources.row_filter import bad_condition
from bert4rec_jax.progress import ProgressBar

_BATCH_ROWS = 1 << 18
# Rows that a thread collects before it writes them to partitions. With fewer, row groups get small.
_PARTITION_ROWS = 1 << 21
_POLL_SECONDS = 0.2
# The part of the limit that DuckDB may not use: the interpreter, Arrow, and blocks in transit.
_OTHER_BYTES = 200 << 20
_MOST_OTHER_SHARE = 0.4
_FILE_STEP = (
    1 << 40
)  # the position of a row is its number in the file plus this for each file before
_DISK_FULL = ("No space left", "max_temp_directory_size", "failed to offload")
_EPOCH = "epoch_us({})"
_DIALECT = Dialect(
    quote='"',
    text="VARCHAR",
    integers=("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"),
    fractions=("FLOAT", "DOUBLE", "DECIMAL"),
    microseconds={
        "DATE": "epoch_us(CAST({} AS TIMESTAMP))",
        "TIMESTAMP": _EPOCH,
        "TIMESTAMP_S": _EPOCH,
        "TIMESTAMP_MS": _EPOCH,
        "TIMESTAMP_NS": _EPOCH,
        "TIMESTAMP WITH TIME ZONE": _EPOCH,
    },
    not_a_number="NOT regexp_matches(uid, '^-?[0-9]+$') OR TRY_CAST(uid AS BIGINT) IS NULL",
)


class DuckDB:
    """An engine; a context manager.

    Attributes:
      sorts_by_parts: whether a sort of any length saves its parts by itself.
    """

    sorts_by_parts = False

    def __init__(self, memory: int, spill: str):
        """Connects to a new database in memory.

        Args:
          memory: bytes that the whole process may use.
          spill: folder for data that does not fit.
        """
        self._spill = spill
        other = min(_OTHER_BYTES, int(memory * _MOST_OTHER_SHARE))
        self._connection = duckdb.connect(
            config={
                "memory_limit": f"{(memory - other) >> 20}MiB",
                "temp_directory": spill,
                "threads": os.cpu_count() or 1,
                "preserve_insertion_order": False,
            }
        )
        # `ProgressBar` shows the progress that DuckDB counts.
        # In a notebook without ipywidgets, DuckDB refuses to count it.
        with contextlib.suppress(duckdb.InvalidInputException):
            self._connection.execute("SET enable_progress_bar = true")
            self._connection.execute("SET enable_progress_bar_print = false")

    def __enter__(self) -> DuckDB:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnects."""
        self._connection.close()

    def scan(self, scan: Scan) -> LogColumns:
        """Makes Parquet files the table `log`.

        Raises:
          UserError: a column is missing or of a wrong type, or the condition is invalid.
        """
        files = ", ".join(_literal(path) for path in scan.files)
        hive = "true" if scan.root else "false"
        source = f"read_parquet([{files}], file_row_number=true, hive_partitioning={hive})"
        described = self.rows(f"DESCRIBE SELECT * FROM {source}")
        types = {name: kind for name, kind, *_ in described}
        selected, columns = select_columns(scan, types, _DIALECT)
        where = f"WHERE ({scan.where})" if scan.where else ""
        position = f"CAST(file_index AS BIGINT) * {_FILE_STEP} + file_row_number AS pos"
        try:
            self._connection.execute(
                f"CREATE OR REPLACE VIEW log AS SELECT {', '.join(selected)}, {position} "
                f"FROM (SELECT *, file_index FROM {source} {where})"
            )
        except duckdb.Error as error:
            raise bad_condition(scan.where, scan.files[0], error) from None
        if columns.users_are_text:
            ((wrong,),) = self.rows(f"SELECT count(*) FROM log WHERE {_DIALECT.not_a_number}")
            columns.users_sort_as_numbers = wrong == 0
        return columns

    def open_stage(self, name: str, path: str, numbered: bool = False) -> None:
        """Makes a saved stage a table; if `numbered`, with the number of each row as pos."""
        # A folder on the path may be called uid=7.
        options = ", hive_partitioning=false"
        columns = "*"
        if numbered:
            options += ", file_row_number=true"
            columns = "* EXCLUDE (file_row_number), file_row_number AS pos"
        self._connection.execute(
            f"CREATE OR REPLACE VIEW {name} AS "
            f"SELECT {columns} FROM read_parquet({_literal(path)}{options})"
        )

    def save(self, statement: str, path: str, title: str) -> None:
        """Writes a result to a Parquet file."""
        copy = f"COPY ({statement}) TO {_literal(path)} (FORMAT parquet)"
        self._run(lambda: self._connection.execute(copy), title)

    def divide(self, statement: str, path: str, title: str) -> None:
        """Writes a result to a folder, with a folder part=N for each value of its column part."""
        self._connection.execute(f"SET partitioned_write_flush_threshold = {_PARTITION_ROWS}")
        options = "(FORMAT parquet, PARTITION_BY (part))"
        copy = f"COPY ({statement}) TO {_literal(path)} {options}"
        self._run(lambda: self._connection.execute(copy), title)

    def rows(self, statement: str, title: str = "") -> list[tuple]:
        """Returns a small result."""
        return self._run(lambda: self._connection.execute(statement).fetchall(), title)

    def stream(self, statement: str, title: str) -> Iterator[pa.RecordBatch]:
        """Yields a result of any size, one block at a time."""
        reader = self._run(
            lambda: self._connection.sql(statement).to_arrow_reader(_BATCH_ROWS), title
        )
        while True:
            batch = self._run(lambda: next(reader, None), title)
            if batch is None:
                return
            yield batch

    def _run(self, command: Callable[[], Any], title: str) -> Any:
        shown = 0

        def new_progress() -> int:
            nonlocal shown
            before = shown
            shown = max(shown, int(self._connection.query_progress()))
            return shown - before

        progress = ProgressBar(title or "running DuckDB", 100, "%")
        interrupt = self._connection.interrupt
        try:
            return run_in_background(command, progress, _POLL_SECONDS, new_progress, interrupt)
        except (duckdb.Error, pa.ArrowException) as error:
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> Exception:
        reason = " ".join(str(error).split())
        if any(part in reason for part in _DISK_FULL):
            return disk_full(self._spill)
        if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory" in reason:
            return PreparationInterrupted(
                "config.data.memory is too small for this log; raise it. The finished stages are "
                "kept."
            )
        return EngineFailed(reason[:400])


def _literal(path: str) -> str:
    doubled = path.replace("'", "''")
    return f"'{doubled}'"
