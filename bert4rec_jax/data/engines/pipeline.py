# SPDX-License-Identifier: Apache-2.0
"""The stages of a preparation, from the log to the files of the prepared folder."""

from __future__ import annotations

import collections
import functools
import glob
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data.engines import statements as sql
from bert4rec_jax.data.engines.columns import LogColumns
from bert4rec_jax.data.engines.ingest import ingest
from bert4rec_jax.data.engines.memory import memory_limit
from bert4rec_jax.data.engines.stage_cache import (
    STAGE_PREFIX,
    EngineFailed,
    PreparationInterrupted,
    StageCache,
)
from bert4rec_jax.data.publish import is_published, publish
from bert4rec_jax.data.sources.log import RestartReading, Source
from bert4rec_jax.data.writer import MOST_ITEMS, UserTable, Writer
from bert4rec_jax.errors import UserError
from bert4rec_jax.progress import ProgressBar

if TYPE_CHECKING:
    from bert4rec_jax.data.engines.duckdb_engine import DuckDB
    from bert4rec_jax.data.engines.spark_engine import Spark

    Engine: TypeAlias = DuckDB | Spark

# If the item ids span less than this, an id minus the lowest one is the item's code.
_DENSE_CODES = 1 << 25
# With more rows, the events are divided by ranges of users, and each range is sorted in memory.
# One sort of all events would spill several times the size of the log, and merge it from disk.
_LONG_ROWS = 200_000_000
_RANGE_ROWS = 20_000_000
_MOST_RANGES = 64
_BATCH_ROWS = 1 << 20


def prepare(
    config: DataConfig,
    filters: FilterConfig,
    source: Source,
    facts: dict,
    folder: str,
) -> None:
    """Writes the prepared folder of a log.

    Args:
      config: the engine, its memory, and where it spills.
      filters: which events are kept.
      source: the log.
      facts: written to the manifest.
      folder: the prepared folder.

    Raises:
      UserError: the log cannot be read, the filters leave no events, or memory or disk are too
        small.
    """
    parent, name = os.path.split(folder)
    spill_parent = parent
    if config.spill_dir:
        spill_parent = os.path.abspath(os.path.expanduser(config.spill_dir))
    with StageCache(os.path.join(spill_parent, f"{STAGE_PREFIX}{config.engine}-{name}")) as stages:
        # Another process may have finished first.
        if not is_published(folder):
            written = write_arrays(config, filters, source, facts, stages)
            if os.stat(written).st_dev != os.stat(parent).st_dev:
                moved = os.path.join(parent, f".moved-{name}")
                shutil.copytree(written, moved, dirs_exist_ok=True)
                written = moved
            publish(written, folder)
        stages.remove()


def write_arrays(
    config: DataConfig, filters: FilterConfig, source: Source, facts: dict, stages: StageCache
) -> str:
    """Writes the files of a prepared folder; returns their folder, which is in `stages`."""
    with _open_engine(config, stages) as engine:
        _Preparation(engine, source, filters, stages).run(facts)
    return stages.path("out")


def _open_engine(config: DataConfig, stages: StageCache) -> Engine:
    memory = memory_limit(config)
    if config.engine == "spark":
        from bert4rec_jax.data.engines.spark_engine import Spark

        return Spark(config.engine_master, memory, stages.spill)
    # Starting a run from prepared data does not need DuckDB.
    from bert4rec_jax.data.engines.duckdb_engine import DuckDB

    return DuckDB(memory, stages.spill)


class Account:
    """What each filter has left.

    Attributes:
      steps: [{"after": name, "interactions": int, "users": int, "items": int}].
    """

    def __init__(self) -> None:
        """Starts without steps."""
        self.steps: list[dict] = []

    def add(self, name: str, interactions: int, users: int, items: int) -> None:
        """Adds a step.

        Raises:
          UserError: it has left no interactions.
        """
        step = {"after": name, "interactions": interactions, "users": users, "items": items}
        self.steps.append(step)
        if interactions:
            return
        left = "; ".join(
            f"{step['after']}: {step['interactions']} by {step['users']} users"
            for step in self.steps
        )
        raise UserError(
            f"the filters of config.filter leave no interactions ({left}); relax the last one."
        )


@dataclass(frozen=True)
class _ItemCodes:
    """Codes of items, from 0.

    Attributes:
      lowest: the item with code 0, if an id minus this is the code; None if a table has the codes.
      count: number of codes.
      ids_of: returns the original ids of codes, as strings.
    """

    lowest: int | None
    count: int
    ids_of: Callable[[np.ndarray], pa.Array]


class _Preparation:
    """The preparation of one log; each method runs one or two stages."""

    def __init__(self, engine: Engine, source: Source, filters: FilterConfig, stages: StageCache):
        self.engine = engine
        self.source = source
        self.filters = filters
        self.stages = stages
        self.account = Account()
        self.time_counts: dict[str, int] = {}
        self.columns = LogColumns()
        # The name of the last filter, whose rows are counted when the arrays are written.
        self.uncounted = "read"

    def run(self, facts: dict) -> None:
        try:
            self.columns = self._open_log()
            missing_times = self._check_values()
            # An invalid item table is reported before the log is sorted.
            self.source.item_table()
            table = self._fill_times(missing_times)
            table = self._apply_filters(table)
            self._write(table, facts)
        except EngineFailed as error:
            raise self._explain(error) from None

    def _open_log(self) -> LogColumns:
        scan = self.source.scan()
        if scan is not None:
            return self.engine.scan(scan)
        found: dict = {}
        open_log = self.source.open
        assert open_log is not None, "a log that only an engine can read has a scan"

        def read(path: str) -> None:
            found.update(ingest(open_log(), path))
            self.stages.value("columns", lambda: found)

        path = self.stages.stage("log.parquet", read)
        self.engine.open_stage("log", path, numbered=True)
        return LogColumns(**self.stages.value("columns", lambda: found))

    def _explain(self, error: Exception | None) -> UserError:
        """Returns the error of a log that the engine rejected.

        Raises:
          UserError: reading the log block by block found the file and the line of the error.
        """
        reader = self.source.open() if self.source.open is not None else None
        while reader:
            try:
                collections.deque(reader.blocks(), 0)
                break
            except RestartReading:
                continue
        log = self.source.description
        if error is None:
            return UserError(f"{log} cannot be read: an id or a rating is missing; correct it.")
        return PreparationInterrupted(f"{log} cannot be read: {error}; correct it.")

    def _check_values(self) -> int:
        """Rejects missing ids and ratings; returns the number of missing times."""
        statement = sql.count_values(self.columns.has_times, self.columns.has_ratings)

        def count() -> list[int]:
            return self._numbers(statement, "checking the log")

        rows, users, items, times, ratings = self.stages.value("counts", count)
        if not rows:
            scan = self.source.scan()
            if scan is not None and scan.where:
                self.account.add(f"where {scan.where}", 0, 0, 0)
        if not rows or not rows == users == items == ratings:
            raise self._explain(None)
        self.columns.rows = rows
        self.columns.has_times = times > 0
        return rows - times if times else 0

    def _save(self, name: str, statement: str, title: str) -> str:
        """Saves the result of a statement as a stage, and returns the name of its table."""
        path = self.stages.stage(
            f"{name}.parquet", lambda path: self.engine.save(statement, path, title)
        )
        self.engine.open_stage(name, path)
        return name

    def _numbers(self, statement: str, title: str = "") -> list[int]:
        (row,) = self.engine.rows(statement, title)
        return [int(value or 0) for value in row]

    def _fill_times(self, missing: int) -> str:
        if not missing:
            return "log"
        self._save("gaps", sql.time_gaps(), "finding times for rows without one")
        without = self.stages.value(
            "without_times", lambda: self._numbers(sql.count_users_without_times())[0]
        )
        self.time_counts = {"times_missing": missing, "users_without_times": without}
        statement = sql.fill_times(self.columns.has_ratings)
        return self._save("filled", statement, "filling in times")

    def _count_before(self, filter_name: str, table: str) -> None:
        """Counts the rows that the previous filter has left, because another one follows."""

        def count() -> list[int]:
            found = []
            for column in ("uid", "iid"):
                statement = sql.sum_sizes(f"({sql.count_rows_by(column, table)}) AS counts")
                found.append(self._numbers(statement, f"counting after: {self.uncounted}"))
            (rows, users), (_, items) = found
            return [rows, users, items]

        key = f"step{len(self.account.steps)}"
        self.account.add(self.uncounted, *self.stages.value(key, count))
        self.uncounted = filter_name

    def _apply_filters(self, table: str) -> str:
        """Returns the table with the remaining rows."""
        filters = self.filters
        columns = self.columns
        if filters.min_rating > 0:
            self._count_before(f"min_rating {filters.min_rating:g}", table)
            statement = sql.filter_ratings(table, filters.min_rating)
            table = self._save("rated", statement, "dropping low ratings")
        if filters.duplicate_events == "drop":
            self._count_before(DUPLICATES_STEP, table)
            statement = sql.drop_duplicates(table, columns.has_times)
            table = self._save("first_events", statement, "dropping duplicate events")
        if filters.user_core > 1 or filters.item_core > 1:
            self._count_before(self._core_step(), table)
            table = self._keep_core(table)
        if filters.first_users:
            self._count_before(f"first_users {filters.first_users}", table)
            statement = sql.select_users(table, self._user_order(), filters.first_users)
            self._save("selected", statement, "selecting users")
            statement = sql.keep_users(table, "selected")
            table = self._save("first_users", statement, "selecting users")
        return table

    def _core_step(self) -> str:
        return f"user_core {self.filters.user_core}, item_core {self.filters.item_core}"

    def _user_order(self) -> list[str]:
        return sql.user_order(self.columns.users_sort_as_numbers, self.columns.users_are_text)

    def _keep_core(self, table: str) -> str:
        """Drops rare users and items until none are left.

        The remaining rows are written whenever fewer than half of the last written ones are left.
        """
        least = {"uid": self.filters.user_core, "iid": self.filters.item_core}
        rare: dict[str, list[str]] = {"uid": [], "iid": []}
        written_rows = self.account.steps[-1]["interactions"]
        for number in itertools.count():
            title = f"dropping users and items with too few events, round {number + 1}"
            view = sql.exclude(table, rare["uid"], rare["iid"])
            dropped = 0
            for column, names in rare.items():
                name = f"rare_{column}_{number}"
                find = functools.partial(self._find_rare, name, view, column, least[column], title)
                rows, count = self.stages.value(name, find)
                self.engine.open_stage(name, self.stages.path(f"{name}.parquet"))
                if count:
                    names.append(name)
                dropped += count
            if not rows:
                self.account.add(self._core_step(), 0, 0, 0)
            if not dropped:
                break
            if rows < written_rows / 2:
                table = self._save(f"kept_{number + 1}", view, title)
                written_rows = rows
                # The written rows still contain the users and items that this round found.
                rare = {column: names[-1:] for column, names in rare.items()}
        if rare["uid"] or rare["iid"]:
            statement = sql.exclude(table, rare["uid"], rare["iid"])
            table = self._save("core", statement, "dropping users and items with too few events")
        return table

    def _find_rare(self, name: str, view: str, column: str, least: int, title: str) -> list[int]:
        """Saves the rare users (or items) of a view.

        Returns:
          The number of rows of the view, and the number of rare users (or items).
        """
        statement = sql.count_rows_by(column, f"({view}) AS kept")
        sizes = self._save(f"size_of_{name}", statement, title)
        self._save(name, sql.find_rare(sizes, column, least), title)
        rows, _ = self._numbers(sql.sum_sizes(sizes))
        (count,) = self._numbers(f"SELECT count(*) FROM {name}")
        self.stages.drop(f"{sizes}.parquet")
        return [rows, count]

    def _item_codes(self, table: str) -> _ItemCodes:
        if not self.columns.items_are_text:
            low, high = self.stages.value("item_span", lambda: self._numbers(sql.item_span(table)))
            if high - low < _DENSE_CODES:

                def add_lowest(codes: np.ndarray) -> pa.Array:
                    return pa.array(codes + low).cast(pa.string())

                return _ItemCodes(low, high - low + 1, add_lowest)
        path = self.stages.stage("codes.parquet", lambda path: self._number_items(table, path))
        self.engine.open_stage("codes", path)

        def look_up(codes: np.ndarray) -> pa.Array:
            items = pq.read_table(path)["iid"].combine_chunks()
            return items.take(pa.array(codes)).cast(pa.string())

        return _ItemCodes(None, pq.ParquetFile(path).metadata.num_rows, look_up)

    def _number_items(self, table: str, path: str) -> None:
        writer = None
        count = 0
        try:
            for batch in self.engine.stream(sql.distinct_items(table), "listing items"):
                codes = pa.array(np.arange(count, count + len(batch)))
                part = pa.table({"iid": batch.column(0), "code": codes})
                if writer is None:
                    writer = pq.ParquetWriter(path, part.schema)
                writer.write_table(part)
                count += len(batch)
                if count > MOST_ITEMS:
                    raise UserError(
                        f"the log has more than {MOST_ITEMS:,} items; raise "
                        "config.filter.item_core."
                    )
        finally:
            if writer:
                writer.close()

    def _write(self, table: str, facts: dict) -> None:
        columns = self.columns
        codes = self._item_codes(table)
        batches = self._sorted_events(table, codes.lowest)
        out = self.stages.path("out")
        shutil.rmtree(out, ignore_errors=True)
        os.mkdir(out)
        arrays = Writer(out, columns.has_times, codes.count)
        try:
            with (
                UserTable(out) as users,
                ProgressBar("writing arrays", columns.rows, "events") as progress,
            ):
                for block in whole_users(batches):
                    seconds, are_whole = _seconds(block.stamps, columns.time_unit)
                    arrays.add(block.lengths, block.codes, seconds, are_whole)
                    users.add(block.users)
                    progress.advance(len(block.codes))
            self.account.add(self.uncounted, arrays.interactions, arrays.users, arrays.items)
            counts = {"filters": self.account.steps} | self.time_counts
            item_ids = codes.ids_of(arrays.codes_in_order())
            arrays.finish(facts, item_ids, self.source.item_table(), counts)
        finally:
            arrays.close()

    def _sorted_events(self, table: str, lowest_item: int | None) -> Iterator[pa.RecordBatch]:
        """Yields the events in the order of the arrays, with the columns uid, code and stamp."""
        title = "sorting events"
        order = self._user_order()
        if not self.engine.sorts_by_parts and self.columns.rows > _LONG_ROWS:
            return self._sorted_ranges(table, order, lowest_item)
        statement = sql.sort_events(table, order, self.columns.has_times, lowest_item)
        if not self.engine.sorts_by_parts:
            return self.engine.stream(statement, title)
        path = self.stages.stage(
            "sorted.parquet", lambda path: self.engine.save(statement, path, title)
        )
        return _read_batches(path)

    def _sorted_ranges(
        self, table: str, order: list[str], lowest_item: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Divides users into ranges, sorts each range, and yields the events of all ranges."""
        # Only DuckDB needs this: Spark sorts by parts.
        engine = cast("DuckDB", self.engine)
        key = order[0]
        rows = max(_RANGE_ROWS, self.columns.rows // _MOST_RANGES)
        statement = sql.range_starts(table, key, rows)
        starts = self.stages.value(
            "ranges", lambda: engine.rows(statement, "counting the events of users")
        )
        later_starts = [start for (start,) in starts[1:]]
        division = sql.divide_by_user(table, key, later_starts)
        ranges = self.stages.stage(
            "ranges", lambda path: engine.divide(division, path, "dividing events by users")
        )
        paths = [
            self._sort_range(ranges, number, len(starts), order, lowest_item)
            for number in range(len(starts))
        ]
        return itertools.chain.from_iterable(map(_read_batches, paths))

    def _sort_range(
        self, ranges: str, number: int, count: int, order: list[str], lowest_item: int | None
    ) -> str:
        """Returns the path of a sorted range."""
        part = f"part={number}"

        def sort(path: str) -> None:
            self.engine.open_stage("unsorted", f"{glob.escape(ranges)}/{part}/*.parquet")
            statement = sql.sort_events("unsorted", order, self.columns.has_times, lowest_item)
            self.engine.save(statement, path, f"sorting events, part {number + 1} of {count}")

        path = self.stages.stage(f"sorted_{number}.parquet", sort)
        self.stages.drop(os.path.join("ranges", part))
        return path


# The name of the step in the manifest of a prepared folder.
DUPLICATES_STEP = "repeats dropped"


def _seconds(stamps: np.ndarray | None, unit: int) -> tuple[np.ndarray | None, bool]:
    """Converts times to seconds.

    Args:
      stamps: int64[n] or float64[n], or None.
      unit: units per second.

    Returns:
      int64[n], rounded down, or None; and whether the times had no fractions.
    """
    if stamps is None:
        return None, True
    if stamps.dtype.kind == "f":
        seconds = np.floor(stamps).astype(np.int64)
        return seconds, bool(np.all(seconds * unit == stamps))
    if unit == 1:
        return stamps.astype(np.int64, copy=False), True
    seconds = stamps // unit
    return seconds, bool(np.all(seconds * unit == stamps))


def _read_batches(path: str) -> Iterator[pa.RecordBatch]:
    """Yields a saved result in order: a file, or a folder of parts in order of their names."""
    parts = [path]
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if name.endswith(".parquet"))
        parts = [os.path.join(path, name) for name in names]
    for part in parts:
        # With pre_buffer, the whole file would end up in memory.
        yield from pq.ParquetFile(part, pre_buffer=False).iter_batches(_BATCH_ROWS)


@dataclass(frozen=True)
class UserBlock:
    """All events of some users.

    Attributes:
      users: string array [users], original ids.
      lengths: int64[users], number of events, at least 1.
      codes: int64[events].
      stamps: int64[events] or float64[events], or None.
    """

    users: pa.Array
    lengths: np.ndarray
    codes: np.ndarray
    stamps: np.ndarray | None


def whole_users(batches: Iterator[pa.RecordBatch]) -> Iterator[UserBlock]:
    """Regroups sorted events, so that no user is in two blocks."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if not len(batch):
            continue
        users = batch.column("uid")
        starts = _changes(users)
        if waiting and not users[0].equals(waiting[-1].column("uid")[-1]):
            yield _user_block(waiting)
            waiting = []
        # All users except the last are complete.
        last_start = int(starts[-1]) if len(starts) else 0
        if last_start:
            yield _user_block([*waiting, batch.slice(0, last_start)])
            waiting = []
        waiting.append(batch.slice(last_start))
    if waiting:
        yield _user_block(waiting)


def _changes(uid: pa.Array) -> np.ndarray:
    """Returns the positions, from 1, whose user differs from the one before."""
    if pa.types.is_integer(uid.type):
        values = uid.to_numpy()
        changed = values[1:] != values[:-1]
    else:
        changed = pc.not_equal(uid[1:], uid[:-1]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(changed) + 1


def _user_block(parts: list[pa.RecordBatch]) -> UserBlock:
    table = pa.Table.from_batches(parts).combine_chunks()
    uid = table["uid"].chunk(0)
    starts = np.concatenate([[0], _changes(uid)])
    lengths = np.diff(np.append(starts, len(uid)))
    return UserBlock(
        users=uid.take(pa.array(starts)).cast(pa.string()),
        lengths=lengths,
        codes=table["code"].to_numpy(),
        stamps=table["stamp"].to_numpy() if "stamp" in table.column_names else None,
    )
