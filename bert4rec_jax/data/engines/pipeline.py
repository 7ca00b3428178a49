# SPDX-License-Identifier: Apache-2.0
"""The stages of a preparation by an engine, from the log to the files of the prepared folder."""

from __future__ import annotations

import collections
import glob
import itertools
import os
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data.arrange import add_step, are_whole, core_step, whole_seconds
from bert4rec_jax.data.engines import statements as sql
from bert4rec_jax.data.engines.choice import choose, memory_limit
from bert4rec_jax.data.engines.duckdb_engine import DuckDB
from bert4rec_jax.data.engines.ingest import Shape, ingest
from bert4rec_jax.data.engines.work import WORK_PREFIX, EngineFailed, Unfinished, Work
from bert4rec_jax.data.sources.log import Again, Source
from bert4rec_jax.data.writer import MOST_ITEMS, UserTable, Writer
from bert4rec_jax.errors import UserError
from bert4rec_jax.progress import ProgressBar

# Items whose ids are this close together are their own codes.
_DENSE_CODES = 1 << 25
# With more rows, the events are divided by ranges of users, each of which is sorted in memory: one sort of them all
# would spill several times what the log takes, and merge it from disk.
_LONG_ROWS = 200_000_000
_RANGE_ROWS, _MOST_RANGES = 20_000_000, 64
_EVENTS_AT_ONCE = 1 << 20
_CORE = "dropping users and items with too few events"


def prepare(
    config: DataConfig,
    filters: FilterConfig,
    source: Source,
    facts: dict,
    folder: str,
    publish: Callable[[str, str], None],
) -> None:
    """Writes the prepared folder of a log with DuckDB or Spark.

    Args:
      config: names the engine, its memory and where it spills.
      filters: which events are kept.
      source: the log.
      facts: what the manifest says of it.
      folder: the final one.
      publish: renames a complete folder into place.

    Raises:
      UserError: the log cannot be read, nothing is left of it, or memory or disk do not suffice.
    """
    parent, name = os.path.split(folder)
    parent = os.path.abspath(os.path.expanduser(config.spill_dir)) if config.spill_dir else parent
    engine_name = choose(config, source)
    with Work(os.path.join(parent, f"{WORK_PREFIX}{engine_name}-{name}")) as work:
        if os.path.isdir(folder):
            publish(work.folder, folder)  # another process was faster; a damaged one goes
        if not os.path.isdir(folder):
            with open_engine(engine_name, config, work) as engine:
                _Preparation(engine, source, filters, work).run(facts)
            out = work.path("out")
            if os.stat(out).st_dev != os.stat(os.path.dirname(folder)).st_dev:
                moved = os.path.join(os.path.dirname(folder), f".moved-{name}")
                shutil.copytree(out, moved, dirs_exist_ok=True)
                out = moved
            publish(out, folder)
        work.remove()


def open_engine(name: str, config: DataConfig, work: Work):
    """Returns the engine of a name; a context manager."""
    if name == "duckdb":
        return DuckDB(memory_limit(config), work.spill)
    from bert4rec_jax.data.engines.spark_engine import Spark

    return Spark(config.engine_master, memory_limit(config), work.spill)


class _Preparation:
    """One log on its way; each method is a stage or two."""

    def __init__(self, engine, source: Source, filters: FilterConfig, work: Work):
        self.engine, self.source, self.filters, self.work = engine, source, filters, work
        self.trail: list[dict] = []
        self.counts: dict = {}

    def run(self, facts: dict) -> None:
        """Goes through the stages."""
        try:
            self.shape = self._open_log()
            missing = self._check()
            self.source.item_table()  # read again when it is needed: one that is broken is not to cost a sort
            table = self._fill_times(missing)
            table = self._filters(table)
            self._write(table, facts)
        except EngineFailed as error:
            raise self._fault(error) from None

    def _open_log(self) -> Shape:
        scan = self.source.scan()
        if scan is not None:
            return self.engine.scan(scan)
        shape = {}

        def read(path: str) -> None:
            shape.update(ingest(self.source.open(), path))
            self.work.facts("shape", lambda: shape)

        path = self.work.stage("log.parquet", read)
        self.engine.open_stage("log", path, numbered=True)
        return Shape(**self.work.facts("shape", lambda: shape))

    def _fault(self, error: Exception | None) -> UserError:
        """Reads the log block by block, which names the place that is at fault."""
        reader = self.source.open() if self.source.open is not None else None
        while reader:
            try:
                collections.deque(reader.blocks(), 0)
                break
            except Again:
                continue
        what = self.source.description
        if error is None:
            return UserError(f"{what} cannot be read: an id or a rating is missing; correct it.")
        return Unfinished(f"{what} cannot be read: {error}; correct it.")

    def _check(self) -> int:
        """Refuses missing ids and ratings; returns how many times are missing."""

        def ask() -> list[int]:
            statement = sql.facts(self.shape.has_times, self.shape.has_ratings)
            return [int(x or 0) for x in self.engine.rows(statement, "looking at the log")[0]]

        rows, users, items, times, ratings = self.work.facts("facts", ask)
        if not min(users, items, ratings) == max(users, items, ratings) == rows or not rows:
            if not rows and self.source.scan() and self.source.scan().where:
                add_step([], f"where {self.source.scan().where}", 0, 0, 0)
            raise self._fault(None)
        self.shape.rows = rows
        self.shape.has_times = times > 0
        return rows - times if times else 0

    def _save(self, name: str, statement: str, title: str) -> str:
        path = self.work.stage(
            f"{name}.parquet", lambda path: self.engine.save(statement, path, title)
        )
        self.engine.open_stage(name, path)
        return name

    def _fill_times(self, missing: int) -> str:
        if not missing:
            return "log"
        self._save("gaps", sql.gaps(), "finding times for rows without one")
        lost = self.work.facts("lost", lambda: self.engine.rows(sql.lost_users())[0][0])
        self.counts = {"times_missing": missing, "users_without_times": lost}
        return self._save("filled", sql.filled(self.shape.has_ratings), "filling times in")

    def _step(self, name: str, table: str) -> None:
        """Notes what is left after a filter."""
        key = f"step{len(self.trail)}"

        def count() -> list[int]:
            found = []
            for column in ("uid", "iid"):
                statement = sql.total(f"({sql.sizes(table, column)}) AS counts")
                found.append(
                    [int(x) for x in self.engine.rows(statement, f"counting after: {name}")[0]]
                )
            return [found[0][0], found[0][1], found[1][1]]

        add_step(self.trail, name, *self.work.facts(key, count))

    def _filters(self, table: str) -> str:
        c, shape = self.filters, self.shape
        pending = "read"

        def next_step(name: str) -> None:
            # The last step is counted from the arrays, for nothing.
            nonlocal pending
            self._step(pending, table)
            pending = name

        if c.min_rating > 0:
            next_step(f"min_rating {c.min_rating:g}")
            table = self._save("rated", sql.rated(table, c.min_rating), "dropping low ratings")
        if c.duplicate_events == "drop":
            next_step("repeats dropped")
            table = self._save(
                "met", sql.first_meetings(table, shape.has_times), "dropping repeats"
            )
        if c.user_core > 1 or c.item_core > 1:
            next_step(core_step(c))
            table = self._core(table)
        if c.first_users:
            next_step(f"first_users {c.first_users}")
            order = sql.user_order(shape.users_are_numbers, shape.user_texts)
            self._save("chosen", sql.chosen_users(table, order, c.first_users), "choosing users")
            table = self._save("first_users", sql.only(table, "chosen"), "choosing users")
        self.pending = pending
        return table

    def _core(self, table: str) -> str:
        """Drops rare users and items until none is left; rows are written again when half of them are gone."""
        gone_users, gone_items, number = [], [], 0
        base, rows = table, self.trail[-1]["interactions"]
        core = {"uid": self.filters.user_core, "iid": self.filters.item_core}
        while True:
            view = (
                sql.without(base, gone_users, gone_items)
                if gone_users or gone_items
                else f"SELECT * FROM {base}"
            )
            dropped = 0
            for column, gone in (("uid", gone_users), ("iid", gone_items)):
                name, title = f"gone_{column}_{number}", f"{_CORE}, round {number + 1}"
                if not self.work.has(f"{name}.json"):
                    self._find_rare(view, column, number, core[column], title)
                self.engine.open_stage(name, self.work.path(f"{name}.parquet"))
                left, many = self.work.facts(name, lambda: None)
                if many:
                    gone.append(name)
                dropped += many
            if not left:
                add_step(self.trail, core_step(self.filters), 0, 0, 0)
            if not dropped:
                break
            number += 1
            if left < rows / 2:
                base = self._save(f"kept_{number}", view, title)
                # What this round found is still to be dropped from it.
                gone_users, gone_items, rows = gone_users[-1:], gone_items[-1:], left
        if gone_users or gone_items:
            base = self._save("core", sql.without(base, gone_users, gone_items), _CORE)
        return base

    def _find_rare(self, view: str, column: str, number: int, at_least: int, title: str) -> None:
        """Saves which users (or items) of a view have too few events, and how many events and rare ones there are."""
        name = f"gone_{column}_{number}"
        counts = self._save(
            f"size_{column}_{number}", sql.sizes(f"({view}) AS kept", column), title
        )
        self._save(name, sql.rare(counts, column, at_least), title)
        events = self._numbers(sql.total(counts))[0]
        self.work.facts(name, lambda: [events, *self._numbers(f"SELECT count(*) FROM {name}")])
        self.work.drop(f"{counts}.parquet")

    def _numbers(self, statement: str) -> list[int]:
        return [int(x) for x in self.engine.rows(statement)[0]]

    def _codes(self, table: str) -> tuple[int | None, int, Callable[[np.ndarray], pa.Array]]:
        """Returns the lowest item where ids are their own codes, the number of codes, and what turns codes into ids."""
        if not self.shape.item_texts:
            ask = f"SELECT COALESCE(min(iid), 0), COALESCE(max(iid), 0) FROM {table}"
            low, high = self.work.facts("item_span", lambda: self._numbers(ask))
            if high - low < _DENSE_CODES:
                return low, high - low + 1, lambda codes: pa.array(codes + low).cast(pa.string())
        path = self.work.stage("codes.parquet", lambda path: self._number_items(table, path))
        self.engine.open_stage("codes", path)
        count = pq.ParquetFile(path).metadata.num_rows

        def texts(codes: np.ndarray) -> pa.Array:
            return (
                pq.read_table(path)["iid"].combine_chunks().take(pa.array(codes)).cast(pa.string())
            )

        return None, count, texts

    def _number_items(self, table: str, path: str) -> None:
        writer, count = None, 0
        try:
            for batch in self.engine.stream(sql.items(table), "listing items"):
                codes = pa.array(np.arange(count, count + len(batch)))
                part = pa.table({"iid": batch.column(0), "code": codes})
                writer = writer or pq.ParquetWriter(path, part.schema)
                writer.write_table(part)
                count += len(batch)
                if count > MOST_ITEMS:
                    raise UserError(
                        f"the log has more than {MOST_ITEMS:,} items; raise config.filter.item_core."
                    )
        finally:
            if writer:
                writer.close()

    def _write(self, table: str, facts: dict) -> None:
        shape = self.shape
        low, num_codes, texts = self._codes(table)
        order = sql.user_order(shape.users_are_numbers, shape.user_texts)
        statement, title = sql.in_order(table, order, shape.has_times, low), "sorting events"
        if self.engine.sorts_by_parts:
            batches = _batches(
                self.work.stage(
                    "sorted.parquet", lambda path: self.engine.save(statement, path, title)
                )
            )
        elif shape.rows > _LONG_ROWS:
            batches = self._sorted_ranges(table, order, low)
        else:
            batches = self.engine.stream(statement, title)
        out = self.work.path("out")
        shutil.rmtree(out, ignore_errors=True)
        os.mkdir(out)
        arrays = Writer(out, shape.has_times, num_codes)
        try:
            with (
                UserTable(out) as users,
                ProgressBar("writing arrays", shape.rows, "events") as phase,
            ):
                for ids, lengths, codes, stamps in whole_users(batches):
                    seconds = None if stamps is None else whole_seconds(stamps, shape.time_unit)
                    whole = stamps is None or are_whole(stamps, seconds, shape.time_unit)
                    arrays.add(lengths, codes, seconds, whole)
                    users.add(ids)
                    phase.advance(len(codes))
            add_step(self.trail, self.pending, arrays.interactions, arrays.users, arrays.items)
            counts = {"filters": self.trail} | self.counts
            arrays.finish(facts, texts(arrays.codes_in_order()), self.source.item_table(), counts)
        finally:
            arrays.close()

    def _sorted_ranges(
        self, table: str, order: str, lowest_item: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Divides users into ranges, sorts one after the other, and yields their events when all are sorted."""
        key, rows = order.split(", ")[0], max(_RANGE_ROWS, self.shape.rows // _MOST_RANGES)
        ask = sql.range_starts(table, key, rows)
        starts = self.work.facts(
            "ranges", lambda: self.engine.rows(ask, "counting the events of users")
        )
        # The first range begins with whatever comes first.
        statement = sql.divided(table, key, [start for (start,) in starts[1:]])
        ranges = self.work.stage(
            "ranges", lambda path: self.engine.divide(statement, path, "dividing events by users")
        )
        paths = []
        for number in range(len(starts)):
            unsorted, title = (
                f"part={number}",
                f"sorting events, part {number + 1} of {len(starts)}",
            )

            def sort(path: str) -> None:
                self.engine.open_stage("unsorted", f"{glob.escape(ranges)}/{unsorted}/*.parquet")
                statement = sql.in_order("unsorted", order, self.shape.has_times, lowest_item)
                self.engine.save(statement, path, title)

            paths.append(self.work.stage(f"sorted_{number}.parquet", sort))
            self.work.drop(os.path.join("ranges", unsorted))
        return itertools.chain.from_iterable(map(_batches, paths))


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    """Yields a saved result in order: a file, or Spark's parts by name."""
    parts = [path]
    if os.path.isdir(path):
        parts = sorted(
            os.path.join(path, name) for name in os.listdir(path) if name.endswith(".parquet")
        )
    for part in parts:
        # Buffered ahead, all of the file would be in memory in the end.
        yield from pq.ParquetFile(part, pre_buffer=False).iter_batches(_EVENTS_AT_ONCE)


def whole_users(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple]:
    """Cuts sorted events into whole users.

    Yields:
      Ids of users (strings), lengths int64[users], codes int64[events], stamps [events] or None.
    """
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if not len(batch):
            continue
        # All but the last user are whole.
        last = _changes(batch.column("uid"))
        begin = last[-1] if len(last) else 0
        if (
            waiting
            and not batch.column("uid")[0].equals(waiting[-1].column("uid")[-1])
            and not begin
        ):
            yield _cut(waiting)
            waiting = []
        if begin:
            yield _cut([*waiting, batch.slice(0, begin)])
            waiting = []
        waiting.append(batch.slice(begin))
    if waiting:
        yield _cut(waiting)


def _changes(uid: pa.Array) -> np.ndarray:
    """Returns the places from 1 on where another user begins."""
    if pa.types.is_integer(uid.type):
        values = uid.to_numpy()
        return np.flatnonzero(values[1:] != values[:-1]) + 1
    return np.flatnonzero(pc.not_equal(uid[1:], uid[:-1]).to_numpy(zero_copy_only=False)) + 1


def _cut(parts: list[pa.RecordBatch]) -> tuple:
    table = pa.Table.from_batches(parts).combine_chunks()
    uid = table["uid"].chunk(0)
    starts = np.r_[0, _changes(uid)]
    stamps = table["stamp"].to_numpy() if "stamp" in table.column_names else None
    ids = uid.take(pa.array(starts)).cast(pa.string())
    return ids, np.diff(np.r_[starts, len(uid)]), table["code"].to_numpy(), stamps
