# SPDX-License-Identifier: Apache-2.0
"""What every reader produces: an interaction log in file order, block after block or as a whole, with ids as codes
into lists of original ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bert4rec_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

MICROSECONDS = 1_000_000


class Again(Exception):
    """A reader learnt from a later row that an earlier one was misread; read from the beginning once more."""


@dataclass(frozen=True)
class Roles:
    """Which columns of an interaction log mean what; an empty name: there is no such column."""

    user: str
    item: str
    time: str = ""
    rating: str = ""

    def named(self) -> dict[str, str]:
        """Returns {role: column} of the columns that there are."""
        return {role: name for role, name in vars(self).items() if name}


@dataclass(frozen=True)
class Ids:
    """A column of ids: `values[codes[i]]` is the original id of row i.

    Attributes:
      codes: int32[rows].
      values: string array [distinct ids], distinct, trimmed, none of them empty.
    """

    codes: np.ndarray
    values: pa.Array


@dataclass(frozen=True)
class Log:
    """Interactions in file order.

    Attributes:
      users: the user of each row.
      items: the item of each row.
      times: int64[rows] or float64[rows], Unix time; None where the source has no times.
      times_missing: bool[rows], where the source has times but not for that row; None when there are none
        such.
      time_unit: how many units of `times` a second has: 1 or 1,000,000.
      ratings: float32[rows] or None.
      item_table: table with the columns item (string), title, year (int64), genres and whatever else the
        source knows of its items; None where there is none.
    """

    users: Ids
    items: Ids
    times: np.ndarray | None = None
    times_missing: np.ndarray | None = None
    time_unit: int = 1
    ratings: np.ndarray | None = None
    item_table: pa.Table | None = None


class Blocks(Protocol):
    """A reader of a log.

    Attributes:
      bytes: size of the files, for progress; 0: unknown.
    """

    bytes: int

    def blocks(self) -> Iterator[pa.Table]:
        """Yields the log in file order: `user`, `item` (dictionary of strings), perhaps `time`, `rating`.

        Raises:
          Again: call it again, and forget what came before.
          UserError: with file and line.
        """


@dataclass(frozen=True)
class Scan:
    """Parquet files whose columns an engine may read itself: whole numbers alone, none missing but times.

    Attributes:
      files: paths or URLs, in order.
      roles: of the columns.
      where: an SQL condition, or "".
      root: folder that Hive's `name=value` folders lie in, or "".
      described: whether the schema has been looked at; URLs have not.
    """

    files: tuple[str, ...]
    roles: Roles
    where: str = ""
    root: str = ""
    described: bool = True


@dataclass(frozen=True)
class Source:
    """A log that was found but not yet read.

    Attributes:
      name: short, fit for a folder name.
      description: one phrase for people: what it is and where it came from.
      identity: changes whenever the log may have changed; plain JSON values.
      open: opens a reader of the log; None where only an engine can read it (an object store).
      item_table: reads what the source knows of its items, or returns None.
      rows: looks up about how many rows there are; 0: unknown.
      scan: looks up what an engine may read by itself, or returns None.
    """

    name: str
    description: str
    identity: dict
    open: Callable[[], Blocks] | None
    item_table: Callable[[], pa.Table | None] = lambda: None
    rows: Callable[[], int] = lambda: 0
    scan: Callable[[], Scan | None] = lambda: None


@dataclass(frozen=True)
class RowFilter:
    """An SQL condition on the rows of a log, evaluated by DuckDB block by block.

    Attributes:
      condition: as in `played_ratio >= 50`.
    """

    condition: str

    def columns_in(self, names) -> list[str]:
        """Returns the columns that the condition names."""
        words = set(re.findall(r"\w+", self.condition.lower()))
        return [name for name in names if name.lower() in words or f'"{name}"' in self.condition]

    def apply(self, table: pa.Table, path: str) -> pa.Table:
        """Returns the rows that meet the condition, in order.

        Raises:
          UserError: it is no condition on these columns.
        """
        import pyarrow as pa

        duckdb = need_duckdb("config.data.where")
        numbered = table.append_column("__row", pa.array(np.arange(table.num_rows)))
        connection = duckdb.connect(config={"threads": 1})
        try:
            connection.register("log", numbered)
            kept = connection.sql(f"SELECT __row FROM log WHERE ({self.condition})").fetchnumpy()[
                "__row"
            ]
        except duckdb.Error as error:
            raise bad_condition(self.condition, path, error) from None
        finally:
            connection.close()
        return table.take(pa.array(np.sort(kept)))


def bad_condition(condition: str, path: str, error: Exception) -> UserError:
    """Returns the error of a row filter that an engine refused."""
    reason = " ".join(str(error).split("\n")[0].split())
    return UserError(f"config.data.where = {condition!r} cannot be applied to {path}: {reason}")


def need_duckdb(what: str) -> Any:
    """Returns the module duckdb.

    Raises:
      UserError: it is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise UserError(
            f"{what} needs DuckDB; install it: pip install 'bert4rec_jax[duckdb]'."
        ) from None
    return duckdb


def read_log(source: Source) -> Log:
    """Reads a whole log into memory.

    Raises:
      UserError: with file and line.
    """
    import pyarrow as pa

    reader = source.open()
    while True:
        try:
            table = pa.concat_tables(
                list(reader.blocks()), promote_options="default"
            ).unify_dictionaries()
            break
        except Again:
            continue
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    times, unit = numeric_times(columns["time"]) if "time" in columns else (None, 1)
    missing = None
    if times is not None and times.null_count == len(times):
        times = None
    elif times is not None:
        missing = times.is_null().to_numpy(zero_copy_only=False) if times.null_count else None
        times = _whole(times.fill_null(0).to_numpy())
    return Log(
        users=_ids(columns["user"]),
        items=_ids(columns["item"]),
        times=times,
        times_missing=missing,
        time_unit=unit,
        ratings=columns["rating"].to_numpy() if "rating" in columns else None,
        item_table=source.item_table(),
    )


def _ids(column: pa.Array) -> Ids:
    import pyarrow.compute as pc

    if hasattr(column, "chunk"):
        column = column.chunk(0)
    codes = column.indices.to_numpy()
    trimmed = pc.utf8_trim_whitespace(column.dictionary).dictionary_encode()
    if len(trimmed.dictionary) < len(column.dictionary):
        codes = trimmed.indices.to_numpy()[codes]
    return Ids(codes, trimmed.dictionary)


def numeric_times(column: pa.Array) -> tuple[pa.Array, int]:
    """Returns times as int64 or float64, and how many of their units a second has."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64()), MICROSECONDS
    return column, 1


def _whole(times: np.ndarray) -> np.ndarray:
    """Turns floats that are whole numbers into integers, which sort faster."""
    if (
        times.dtype.kind == "f"
        and np.all(times == np.floor(times))
        and np.all(np.abs(times) < 2**53)
    ):
        return times.astype(np.int64)
    return times
