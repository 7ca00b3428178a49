# SPDX-License-Identifier: Apache-2.0
"""Spark, through PySpark, on one machine or on a cluster with a shared folder for the stages."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

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
from bert4rec_jax.data.sources.tables import is_url
from bert4rec_jax.errors import UserError
from bert4rec_jax.progress import ProgressBar

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_BATCH_ROWS = 1 << 16
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_SECONDS = 0.5
_FILE_STEP = (
    1 << 40
)  # the position of a row is its number in the file plus this for each file before
_EPOCH = "unix_micros(CAST({} AS TIMESTAMP))"
_DIALECT = Dialect(
    quote="`",
    text="STRING",
    integers=("tinyint", "smallint", "int", "bigint"),
    fractions=("float", "double", "decimal"),
    microseconds={"date": _EPOCH, "timestamp": _EPOCH, "timestamp_ntz": _EPOCH},
    not_a_number="NOT rlike(uid, '^-?[0-9]+$') OR TRY_CAST(uid AS BIGINT) IS NULL",
)


class Spark:
    """An engine; a context manager.

    Attributes:
      sorts_by_parts: whether a sort of any length saves its parts by itself.
    """

    sorts_by_parts = True

    def __init__(self, master: str, memory: int, spill: str):
        """Starts or joins Spark.

        Args:
          master: Spark's --master.
          memory: bytes for the driver, and for each executor.
          spill: folder for data that does not fit.

        Raises:
          UserError: PySpark or Java is missing, or the master does not respond.
        """
        self._spill = spill
        self._signals: list[tuple[int, FrameType | None]] = []
        self._handlers: dict[int, Callable] = {}
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in _SIGNALS}
            self._handlers = {number: old for number, old in found.items() if callable(old)}
        # PySpark installs a handler of its own at the start.
        self._session = _start_session(master, memory, spill)
        # A handler that raises inside PySpark is ignored or breaks the connection to Java, so
        # signals wait until `_run` handles them.
        for number in self._handlers:
            signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append((number, frame))

    def _handle_signal(self) -> None:
        if self._signals:
            number, frame = self._signals[0]
            self._handlers[number](number, frame)

    def __enter__(self) -> Spark:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops Spark and restores the signal handlers."""
        self._session.stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:
            # A signal that came after the last call of `_run`.
            self._handle_signal()

    def scan(self, scan: Scan) -> LogColumns:
        """Makes Parquet files the table `log`.

        Raises:
          UserError: a column is missing or of a wrong type, or the condition is invalid.
        """
        reader = self._session.read
        if scan.root:
            reader = reader.option("basePath", scan.root)
        paths = [_as_path(path) for path in scan.files]
        frame = self._run(lambda: reader.parquet(*paths), "opening the log")
        selected, columns = select_columns(scan, dict(frame.dtypes), _DIALECT)
        try:
            frame = self._with_positions(frame, scan.where)
            frame.selectExpr(*selected, "pos").createOrReplaceTempView("log")
        except Exception as error:
            kind = type(error).__name__
            if "AnalysisException" in kind or "ParseException" in kind:
                raise bad_condition(scan.where, scan.files[0], error) from None
            raise self._explained(error) from None
        if columns.users_are_text:
            ((wrong,),) = self.rows(f"SELECT count(*) FROM log WHERE {_DIALECT.not_a_number}")
            columns.users_sort_as_numbers = wrong == 0
        return columns

    def _with_positions(self, frame: DataFrame, where: str) -> DataFrame:
        """Returns the rows that meet a condition, with their positions in the log as pos."""
        # The number of a row in its file must be taken before rows are filtered.
        frame = frame.selectExpr(
            "*", "_metadata.file_path AS __file", "_metadata.row_index AS __row"
        )
        if where:
            frame = frame.where(where)
        files = [row[0] for row in frame.select("__file").distinct().collect()]
        # Spark writes a space as %20; the order is that of the names.
        files.sort(key=urllib.parse.unquote)
        first_positions = self._session.createDataFrame(
            [(file, number * _FILE_STEP) for number, file in enumerate(files)],
            "__path STRING, __first BIGINT",
        )
        same_file = frame["__file"] == first_positions["__path"]
        joined = frame.join(first_positions.hint("broadcast"), same_file)
        return joined.selectExpr("*", "__first + __row AS pos")

    def open_stage(self, name: str, path: str, numbered: bool = False) -> None:
        """Makes a saved stage a table; if `numbered`, with the number of each row as pos."""
        frame = self._session.read.parquet(_as_path(path))
        if numbered:
            frame = frame.selectExpr("*", "_metadata.row_index AS pos")
        frame.createOrReplaceTempView(name)

    def save(self, statement: str, path: str, title: str) -> None:
        """Writes a result to a folder of Parquet parts, named in the order of the result."""
        self._run(lambda: self._session.sql(statement).write.mode("overwrite").parquet(path), title)

    def rows(self, statement: str, title: str = "") -> list[tuple]:
        """Returns a small result."""
        return self._run(
            lambda: [tuple(row) for row in self._session.sql(statement).collect()], title
        )

    def stream(self, statement: str, title: str) -> Iterator[pa.RecordBatch]:
        """Yields a result, one part at a time."""
        frame = self._session.sql(statement)
        rows = self._run(lambda: frame.toLocalIterator(prefetchPartitions=True), title)
        types = {"bigint": pa.int64(), "double": pa.float64(), "string": pa.string()}
        schema = pa.schema([(name, types[kind]) for name, kind in frame.dtypes])
        waiting: list[dict] = []
        for row in rows:
            waiting.append(row.asDict())
            if len(waiting) == _BATCH_ROWS:
                yield pa.RecordBatch.from_pylist(waiting, schema)
                waiting = []
        if waiting:
            yield pa.RecordBatch.from_pylist(waiting, schema)

    def _run(self, command: Callable[[], Any], title: str) -> Any:
        context = self._session.sparkContext
        tracker = context.statusTracker()
        shown = 0

        def new_progress() -> int:
            nonlocal shown
            self._handle_signal()
            before = shown
            # A stage that ends meanwhile is unknown to the tracker.
            with contextlib.suppress(Exception):
                infos = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
                shown = sum(info.numCompletedTasks for info in infos if info)
            return max(0, shown - before)

        progress = ProgressBar(title or "running Spark", 0, "tasks")
        try:
            return run_in_background(
                command, progress, _POLL_SECONDS, new_progress, context.cancelAllJobs
            )
        except Exception as error:
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, UserError):
            return error
        reason = " ".join(str(error).split())
        if "No space left" in reason:
            return disk_full(self._spill)
        return EngineFailed(reason[:400])


def _start_session(master: str, memory: int, spill: str) -> SparkSession:
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise PreparationInterrupted(
            "config.data.engine = 'spark' needs PySpark and Java 17; install them: pip install "
            "'bert4rec_jax[spark]'."
        ) from None
    size = f"{memory >> 20}m"
    settings = {
        "spark.driver.memory": size,
        "spark.executor.memory": size,
        "spark.local.dir": spill,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": "true",
        "spark.sql.parquet.enableVectorizedReader": "true",
        "spark.sql.warehouse.dir": spill,
    }
    if master.startswith("local"):
        # The default of 200 is meant for clusters.
        settings["spark.sql.shuffle.partitions"] = "8"
    builder = SparkSession.builder.appName("bert4rec_jax").master(master)
    for name, value in settings.items():
        builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except Exception as error:  # the gateway to Java raises many types
        reason = " ".join(str(error).split())[:300]
        raise PreparationInterrupted(
            f"Spark does not start ({reason}); check that Java is installed and that {master} is a "
            "Spark master."
        ) from None


def _as_path(path: str) -> str:
    """Returns a path for Spark, which reads patterns; only URLs may be patterns."""
    return path if is_url(path) else re.sub(r"[*?{}\[\]\\]", r"\\\g<0>", path)
