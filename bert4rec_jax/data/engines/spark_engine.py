# SPDX-License-Identifier: Apache-2.0
"""Spark, through PySpark: the same statements on one machine or on a cluster, which must see the work folder."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from bert4rec_jax.data.engines.ingest import Shape
from bert4rec_jax.data.engines.work import EngineFailed, Unfinished, full_disk
from bert4rec_jax.data.sources.log import MICROSECONDS, Scan, bad_condition
from bert4rec_jax.data.sources.tables import is_url
from bert4rec_jax.errors import UserError
from bert4rec_jax.progress import ProgressBar

_INTEGERS = ("tinyint", "smallint", "int", "bigint")
_NUMBERS = (*_INTEGERS, "float", "double", "decimal")
_POLL_SECONDS = 0.5
_FILES_POSITION = 1 << 40


class Spark:
    """An engine; a context manager.

    Attributes:
      sorts_by_parts: a sort spills and saves its parts by itself, however long the log is.
    """

    sorts_by_parts = True

    def __init__(self, master: str, memory: int, spill: str):
        """Starts or joins Spark.

        Args:
          master: as of Spark's --master.
          memory: bytes for the driver, and for each executor.
          spill: folder for what does not fit.

        Raises:
          UserError: PySpark or Java is not there, or the master does not answer.
        """
        try:
            from pyspark.sql import SparkSession
        except ImportError:
            raise Unfinished(
                "config.data.engine = 'spark' needs PySpark and Java 17; install them: pip install "
                "'bert4rec_jax[spark]'."
            ) from None
        self._spill = spill
        size = f"{memory >> 20}m"
        builder = SparkSession.builder.appName("bert4rec_jax").master(master)
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
            # The default of 200 is for clusters; adaptive execution cuts large partitions, but does not join tasks.
            settings["spark.sql.shuffle.partitions"] = "8"
        for name, value in settings.items():
            builder = builder.config(name, value)
        # A signal that raises inside PySpark is swallowed there, or leaves its talk with Java out of step; and PySpark
        # has a handler of its own. So signals wait until `_run` asks.
        self._heard: list[tuple] = []
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._handlers = {
            number: handler for number, handler in handlers.items() if callable(handler)
        }
        try:
            self._session = builder.getOrCreate()
        except Exception as error:  # of the Java gateway, of many kinds
            reason = " ".join(str(error).split())[:300]
            raise Unfinished(
                f"Spark does not start ({reason}); is Java installed, and {master} a master?"
            ) from None
        if threading.current_thread() is threading.main_thread():
            for number in self._handlers:
                signal.signal(number, lambda *heard: self._heard.append(heard))

    def __enter__(self) -> Spark:
        return self

    def __exit__(self, kind, *_) -> None:
        self._session.stop()
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        if self._heard and kind is None:  # after the last call into Spark
            number, frame = self._heard[0]
            self._handlers[number](number, frame)

    def scan(self, scan: Scan) -> Shape:
        """Makes the table `log` of Parquet files as they are.

        Raises:
          UserError: the condition does not fit, or columns are not there.
        """
        reader = self._session.read
        if scan.root:
            reader = reader.option("basePath", scan.root)
        frame = self._run(lambda: reader.parquet(*map(_as_path, scan.files)), "opening the log")
        kinds = dict(frame.dtypes)
        shape, columns = Shape(), {}
        for role, name in scan.roles.named().items():
            if name not in kinds:
                raise UserError(
                    f"{scan.files[0]} has no column {name!r}; its columns are: {', '.join(kinds)}. "
                    f"Set config.data.{role}_column."
                )
            columns[role] = self._column(
                role, f"`{name.replace('`', '``')}`", kinds[name].split("(")[0], shape
            )
        names = {"user": "uid", "item": "iid", "time": "stamp", "rating": "rating"}
        listed = [f"{column} AS {names[role]}" for role, column in columns.items()]
        try:
            # The place in the file belongs to rows as they are read.
            frame = frame.selectExpr(
                "*", "_metadata.file_path AS __file", "_metadata.row_index AS __row"
            )
            if scan.where:
                frame = frame.where(scan.where)
            # It writes a space as %20; in their order are the names.
            paths = sorted(
                (row[0] for row in frame.select("__file").distinct().collect()),
                key=urllib.parse.unquote,
            )
        except Exception as error:
            if (
                "AnalysisException" in type(error).__name__
                or "ParseException" in type(error).__name__
            ):
                raise bad_condition(scan.where, scan.files[0], error) from None
            raise self._explained(error) from None
        bases = self._session.createDataFrame(
            [(path, number * _FILES_POSITION) for number, path in enumerate(paths)],
            "__path STRING, __base BIGINT",
        )
        frame = frame.join(bases.hint("broadcast"), frame["__file"] == bases["__path"])
        frame.selectExpr(*listed, "__base + __row AS pos").createOrReplaceTempView("log")
        if shape.user_texts:
            wrong = "NOT rlike(uid, '^-?[0-9]+$') OR TRY_CAST(uid AS BIGINT) IS NULL"
            shape.users_are_numbers = (
                self.rows(f"SELECT count(*) FROM log WHERE {wrong}")[0][0] == 0
            )
        return shape

    def _column(self, role: str, column: str, kind: str, shape: Shape) -> str:
        if role in ("user", "item"):
            if kind in _INTEGERS:
                return f"CAST({column} AS BIGINT)"
            setattr(shape, f"{role}_texts", True)
            return f"trim(CAST({column} AS STRING))"
        if role == "rating":
            shape.has_ratings = True
            return f"CAST({column} AS FLOAT)"
        shape.has_times = True
        if kind in _INTEGERS:
            return f"CAST({column} AS BIGINT)"
        if kind in _NUMBERS:
            return f"CAST({column} AS DOUBLE)"
        if kind in ("timestamp", "timestamp_ntz", "date"):
            shape.time_unit = MICROSECONDS
            return f"unix_micros(CAST({column} AS TIMESTAMP))"
        raise UserError(
            f"the time column {column} is of type {kind}; it should hold numbers or timestamps."
        )

    def open_stage(self, name: str, path: str, numbered: bool = False) -> None:
        """Makes a saved stage a table; `numbered`: with pos, the place of each row in it."""
        frame = self._session.read.parquet(_as_path(path))
        if numbered:
            frame = frame.selectExpr("*", "_metadata.row_index AS pos")
        frame.createOrReplaceTempView(name)

    def save(self, sql: str, path: str, title: str) -> None:
        """Writes a result to a folder of Parquet parts, in order of their names where the result is ordered."""
        self._run(lambda: self._session.sql(sql).write.mode("overwrite").parquet(path), title)

    def rows(self, sql: str, title: str = "") -> list[tuple]:
        """Returns a small result."""
        return self._run(lambda: [tuple(row) for row in self._session.sql(sql).collect()], title)

    def stream(self, sql: str, title: str) -> Iterator[pa.RecordBatch]:
        """Yields a result, a part at a time."""
        frame = self._session.sql(sql)
        rows = self._run(lambda: frame.toLocalIterator(prefetchPartitions=True), title)
        names = frame.columns
        kinds = {"bigint": pa.int64(), "double": pa.float64(), "string": pa.string()}
        schema = pa.schema([(name, kinds[kind]) for name, kind in frame.dtypes])
        waiting = []
        for row in rows:
            waiting.append(tuple(row))
            if len(waiting) == 1 << 16:
                yield pa.RecordBatch.from_pylist([dict(zip(names, r)) for r in waiting], schema)
                waiting = []
        if waiting:
            yield pa.RecordBatch.from_pylist([dict(zip(names, r)) for r in waiting], schema)

    def _run(self, command: Callable[[], Any], title: str) -> Any:
        """Runs a command in a thread, so that this one can say what is being done and hear Ctrl-C."""
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

        thread = threading.Thread(target=work, name="spark", daemon=True)
        tracker = self._session.sparkContext.statusTracker()
        with ProgressBar(title or "asking Spark", 0, "tasks") as phase:
            thread.start()
            done = 0
            try:
                while not finished.wait(_POLL_SECONDS):
                    if self._heard:
                        number, frame = self._heard[0]
                        self._handlers[number](number, frame)
                    tasks = 0
                    with contextlib.suppress(
                        Exception
                    ):  # a stage that ends meanwhile is none any more
                        stages = [
                            tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()
                        ]
                        tasks = sum(stage.numCompletedTasks for stage in stages if stage)
                    phase.advance(max(0, tasks - done))
                    done = tasks
            except BaseException:
                self._session.sparkContext.cancelAllJobs()
                finished.wait()
                raise
        result, error = outcome[0]
        if error is not None:
            raise self._explained(error) from None
        return result

    def _explained(self, error: Exception) -> Exception:
        reason = " ".join(str(error).split())
        if isinstance(error, UserError):
            return error
        if "No space left" in reason:
            return full_disk(self._spill)
        return EngineFailed(reason[:400])


def _as_path(path: str) -> str:
    """Returns a path to be read; in a URL stars and brackets are a pattern, in other paths they are not."""
    return path if is_url(path) else re.sub(r"[*?{}\[\]\\]", r"\\\g<0>", path)
