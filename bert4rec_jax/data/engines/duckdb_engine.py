# SPDX-License-Identifier: Apache-2.0
"""DuckDB: embedded, and with a memory limit that it keeps, as it spills what does not fit."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from bert4rec_jax.data.engines.ingest import Shape
from bert4rec_jax.data.engines.work import EngineFailed, Unfinished, full_disk
from bert4rec_jax.data.sources.log import MICROSECONDS, Scan, bad_condition, need_duckdb
from bert4rec_jax.errors import UserError
from bert4rec_jax.progress import ProgressBar

_ROWS_AT_ONCE = 1 << 18
_ROWS_TO_DIVIDE = (
    1 << 21
)  # that a thread holds before it writes them: with fewer, the groups of rows get small
_POLL_SECONDS = 0.2
# Of the limit for the whole process: the interpreter with Arrow, and blocks on their way, are not DuckDB's.
_OWN_BYTES = 200 << 20
_MOST_OWN = 0.4
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_NUMBERS = (*_INTEGERS, "FLOAT", "DOUBLE", "DECIMAL")


class DuckDB:
    """An engine; a context manager.

    Attributes:
      sorts_by_parts: a sort spills and saves its parts by itself, however long the log is.
    """

    sorts_by_parts = False

    def __init__(self, memory: int, spill: str):
        """Connects.

        Args:
          memory: bytes that the whole process may take.
          spill: folder for what does not fit.
        """
        self._duckdb = need_duckdb("config.data.engine = 'duckdb'")
        self._spill = spill
        own = min(_OWN_BYTES, int(memory * _MOST_OWN))
        self._connection = self._duckdb.connect(
            config={
                "memory_limit": f"{(memory - own) >> 20}MiB",
                "temp_directory": spill,
                "threads": os.cpu_count() or 1,
                "preserve_insertion_order": False,
            }
        )
        # It counts how far it is, and `ProgressBar` shows it.
        self._connection.execute(
            "SET enable_progress_bar = true; SET enable_progress_bar_print = false"
        )

    def __enter__(self) -> DuckDB:
        return self

    def __exit__(self, *_) -> None:
        self._connection.close()

    def scan(self, scan: Scan) -> Shape:
        """Makes the table `log` of Parquet files as they are.

        Raises:
          UserError: the condition does not fit, or columns are not there.
        """
        files = ", ".join("'" + path.replace("'", "''") + "'" for path in scan.files)
        hive = f"hive_partitioning={'true' if scan.root else 'false'}"
        source = f"read_parquet([{files}], file_row_number=true, {hive})"
        kinds = {name: kind for name, kind, *_ in self.rows(f"DESCRIBE SELECT * FROM {source}")}
        shape, columns = Shape(), {}
        for role, name in scan.roles.named().items():
            if name not in kinds:
                raise UserError(
                    f"{scan.files[0]} has no column {name!r}; its columns are: {', '.join(kinds)}. "
                    f"Set config.data.{role}_column."
                )
            columns[role] = self._column(
                role, '"' + name.replace('"', '""') + '"', kinds[name].split("(")[0], shape
            )
        where = f"WHERE ({scan.where})" if scan.where else ""
        # Files in their order, rows in theirs.
        position = "CAST(file_index AS BIGINT) * 1099511627776 + file_row_number AS pos"
        names = {"user": "uid", "item": "iid", "time": "stamp", "rating": "rating"}
        listed = ", ".join(f"{column} AS {names[role]}" for role, column in columns.items())
        try:
            self._connection.execute(
                f"CREATE OR REPLACE VIEW log AS SELECT {listed}, {position} FROM "
                f"(SELECT *, file_index FROM {source} {where})"
            )
        except self._duckdb.Error as error:
            raise bad_condition(scan.where, scan.files[0], error) from None
        if shape.user_texts:
            wrong = "NOT regexp_matches(uid, '^-?[0-9]+$') OR TRY_CAST(uid AS BIGINT) IS NULL"
            shape.users_are_numbers = (
                self.rows(f"SELECT count(*) FROM log WHERE {wrong}")[0][0] == 0
            )
        return shape

    def _column(self, role: str, column: str, kind: str, shape: Shape) -> str:
        if role in ("user", "item"):
            if kind in _INTEGERS:
                return f"CAST({column} AS BIGINT)"
            setattr(shape, f"{role}_texts", True)
            return f"trim(CAST({column} AS VARCHAR))"
        if role == "rating":
            shape.has_ratings = True
            return f"CAST({column} AS FLOAT)"
        shape.has_times = True
        if kind in _INTEGERS:
            return f"CAST({column} AS BIGINT)"
        if kind in _NUMBERS:
            return f"CAST({column} AS DOUBLE)"
        if kind.startswith(("TIMESTAMP", "DATE")):
            shape.time_unit = MICROSECONDS
            return (
                f"epoch_us(CAST({column} AS TIMESTAMP))"
                if kind == "DATE"
                else f"epoch_us({column})"
            )
        raise UserError(
            f"the time column {column} is of type {kind}; it should hold numbers or timestamps."
        )

    def open_stage(self, name: str, path: str, numbered: bool = False) -> None:
        """Makes a saved stage a table; `numbered`: with pos, the place of each row in it."""
        # Folders on the way may be called uid=7.
        options = ", hive_partitioning=false" + (", file_row_number=true" if numbered else "")
        columns = "* EXCLUDE (file_row_number), file_row_number AS pos" if numbered else "*"
        path = path.replace("'", "''")
        self._connection.execute(
            f"CREATE OR REPLACE VIEW {name} AS SELECT {columns} FROM read_parquet('{path}'{options})"
        )

    def save(self, sql: str, path: str, title: str) -> None:
        """Writes a result to a Parquet file."""
        path = path.replace("'", "''")
        self._run(
            lambda: self._connection.execute(f"COPY ({sql}) TO '{path}' (FORMAT parquet)"), title
        )

    def divide(self, sql: str, path: str, title: str) -> None:
        """Writes a result to a folder, with a folder part=N of Parquet files for each value of its column part."""
        path = path.replace("'", "''")
        self._connection.execute(f"SET partitioned_write_flush_threshold = {_ROWS_TO_DIVIDE}")
        command = f"COPY ({sql}) TO '{path}' (FORMAT parquet, PARTITION_BY (part))"
        self._run(lambda: self._connection.execute(command), title)

    def rows(self, sql: str, title: str = "") -> list[tuple]:
        """Returns a small result."""
        return self._run(lambda: self._connection.execute(sql).fetchall(), title)

    def stream(self, sql: str, title: str) -> Iterator[pa.RecordBatch]:
        """Yields a result of any size, a block at a time."""
        relation = self._run(
            lambda: self._connection.sql(sql).to_arrow_reader(_ROWS_AT_ONCE), title
        )
        while True:
            batch = self._run(lambda: next(relation, None), title)
            if batch is None:
                return
            yield batch

    def _run(self, command: Callable[[], Any], title: str) -> Any:
        """Runs a command in a thread, so that this one can say how far it is and hear Ctrl-C."""
        outcome: list = []
        finished = (
            threading.Event()
        )  # not join(), which an exception in it makes believe that the thread has ended

        def work():
            try:
                outcome.append((command(), None))
            except BaseException as error:
                outcome.append((None, error))
            finished.set()

        thread = threading.Thread(target=work, name="duckdb", daemon=True)
        with ProgressBar(title or "asking DuckDB", 100, "%") as phase:
            thread.start()
            done = 0
            try:
                while not finished.wait(_POLL_SECONDS):
                    progress = int(max(0, self._connection.query_progress()))
                    phase.advance(max(0, progress - done))
                    done = max(done, progress)
            except BaseException:
                self._connection.interrupt()
                finished.wait()
                raise
        result, error = outcome[0]
        if isinstance(error, self._duckdb.Error | pa.ArrowException):
            raise self._explained(error) from None
        if error is not None:
            raise error
        return result

    def _explained(self, error: Exception) -> Exception:
        reason = " ".join(str(error).split())
        full = ("No space left", "max_temp_directory_size", "failed to offload")
        if any(part in reason for part in full):
            return full_disk(self._spill)
        if isinstance(error, self._duckdb.OutOfMemoryException) or "Out of Memory" in reason:
            return Unfinished(
                "config.data.memory is too small for this log; raise it. The finished stages are kept."
            )
        return EngineFailed(reason[:400])
