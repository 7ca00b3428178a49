# SPDX-License-Identifier: Apache-2.0
"""The types that describe an interaction log: its source, its columns, and its reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

MICROSECONDS = 1_000_000  # per second


class RestartReading(Exception):
    """A later row showed that earlier rows were misread; read the log from the beginning."""


@dataclass(frozen=True)
class Roles:
    """The column of each role in an interaction log; "" if the log lacks the column."""

    user: str
    item: str
    time: str = ""
    rating: str = ""

    def named(self) -> dict[str, str]:
        """Returns {role: column} of the existing columns."""
        return {role: name for role, name in vars(self).items() if name}


class Blocks(Protocol):
    """A reader of a log.

    Attributes:
      bytes: size of the files, for progress; 0 if unknown.
    """

    bytes: int

    def blocks(self) -> Iterator[pa.Table]:
        """Yields the log in file order, as tables of bounded size.

        The columns are `user` and `item` (dictionaries of strings), optionally `time` (int64,
        float64 or timestamp; null if missing) and `rating` (float32).

        Raises:
          RestartReading: discard all blocks and call this again.
          UserError: a row is invalid; names the file and the line.
        """


@dataclass(frozen=True)
class Scan:
    """Parquet files that an engine may read itself.

    The columns contain whole numbers only, and none are missing except times.

    Attributes:
      files: paths or URLs, in order.
      roles: of the columns.
      where: an SQL condition, or "".
      root: parent folder of Hive's `name=value` folders, or "".
    """

    files: tuple[str, ...]
    roles: Roles
    where: str = ""
    root: str = ""


@dataclass(frozen=True)
class Source:
    """A log that was found but not yet read.

    Attributes:
      name: short, valid as a part of a folder name.
      description: one phrase for messages: the kind of the log and its origin.
      identity: changes whenever the log may have changed; plain JSON values.
      open: opens a reader of the log; None if only an engine can read it (an object store).
      item_table: reads the item table; returns None without one.
      scan: returns the files that an engine may read itself, or None.
    """

    name: str
    description: str
    identity: dict
    open: Callable[[], Blocks] | None
    item_table: Callable[[], pa.Table | None] = lambda: None
    scan: Callable[[], Scan | None] = lambda: None
