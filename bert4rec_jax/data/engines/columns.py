# SPDX-License-Identifier: Apache-2.0
"""The columns of a log: their meaning, and the SQL that reads them from Parquet files.

The tables of a preparation have the columns uid, iid, stamp, rating and pos (see `statements`).
"""

from __future__ import annotations

from dataclasses import dataclass

from bert4rec_jax.data.sources.log import MICROSECONDS, Scan
from bert4rec_jax.errors import UserError

_NAMES = {"user": "uid", "item": "iid", "time": "stamp", "rating": "rating"}


@dataclass
class LogColumns:
    """The contents of the columns of a log.

    Attributes:
      users_are_text: uid is text, not whole numbers.
      items_are_text: iid is text, not whole numbers.
      users_sort_as_numbers: all users are whole numbers, even if written differently, as in "007".
      has_times: the column stamp exists, and not all of it is missing.
      time_unit: units of stamp per second.
      has_ratings: the column rating exists.
      rows: number of rows; 0 before they are counted.
    """

    users_are_text: bool = False
    items_are_text: bool = False
    users_sort_as_numbers: bool = True
    has_times: bool = False
    time_unit: int = 1
    has_ratings: bool = False
    rows: int = 0


@dataclass(frozen=True)
class Dialect:
    """How an engine writes column types and expressions.

    Attributes:
      quote: character around names.
      text: the type of text.
      integers: types of whole numbers that fit into 64 bits.
      fractions: types of other numbers.
      microseconds: {type of dates and times: expression of Unix microseconds, with {} for the
        column}.
      not_a_number: condition that the column uid is not a whole number of 64 bits.
    """

    quote: str
    text: str
    integers: tuple[str, ...]
    fractions: tuple[str, ...]
    microseconds: dict[str, str]
    not_a_number: str

    def quoted(self, name: str) -> str:
        """Returns a column name as SQL."""
        doubled = name.replace(self.quote, self.quote * 2)
        return f"{self.quote}{doubled}{self.quote}"


def select_columns(
    scan: Scan, types: dict[str, str], dialect: Dialect
) -> tuple[list[str], LogColumns]:
    """Returns the columns to select from Parquet files, without pos, and what they contain.

    Args:
      scan: the files and their columns.
      types: {column: type}, as the engine writes them.
      dialect: of the engine.

    Raises:
      UserError: a column is missing, or the times are neither numbers nor dates.
    """
    columns = LogColumns()
    expressions = []
    for role, name in scan.roles.named().items():
        if name not in types:
            raise UserError(
                f"{scan.files[0]} lacks the column {name!r}; its columns are: {', '.join(types)}. "
                f"Set config.data.{role}_column."
            )
        kind = types[name].split("(")[0]
        expression = _expression(role, dialect.quoted(name), kind, dialect, columns)
        expressions.append(f"{expression} AS {_NAMES[role]}")
    return expressions, columns


def _expression(role: str, column: str, kind: str, dialect: Dialect, columns: LogColumns) -> str:
    """Returns the SQL of a column, and notes its contents in `columns`."""
    is_integer = kind in dialect.integers
    if role == "rating":
        columns.has_ratings = True
        return f"CAST({column} AS FLOAT)"
    if role == "time":
        columns.has_times = True
        if kind in dialect.microseconds:
            columns.time_unit = MICROSECONDS
            return dialect.microseconds[kind].format(column)
        if not is_integer and kind not in dialect.fractions:
            raise UserError(
                f"the time column {column} has the type {kind}; it must contain numbers or "
                "timestamps."
            )
        return f"CAST({column} AS {'BIGINT' if is_integer else 'DOUBLE'})"
    if is_integer:
        return f"CAST({column} AS BIGINT)"
    if role == "user":
        columns.users_are_text = True
    else:
        columns.items_are_text = True
    return f"trim(CAST({column} AS {dialect.text}))"
