# SPDX-License-Identifier: Apache-2.0
"""The SQL condition of `config.data.where`, evaluated by DuckDB on one block of rows at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bert4rec_jax.errors import UserError


@dataclass(frozen=True)
class RowFilter:
    """A condition on the rows of a log.

    Attributes:
      condition: SQL, as in `played_ratio >= 50`.
    """

    condition: str

    def columns_in(self, names: Iterable[str]) -> list[str]:
        """Returns the columns that the condition mentions."""
        words = set(re.findall(r"\w+", self.condition.lower()))
        return [name for name in names if name.lower() in words or f'"{name}"' in self.condition]

    def apply(self, table: pa.Table, path: str) -> pa.Table:
        """Returns the rows that meet the condition, in order.

        Args:
          table: a block of the log.
          path: its file, for the message.

        Raises:
          UserError: DuckDB rejects the condition.
        """
        import duckdb

        numbered = table.append_column("__row", pa.array(np.arange(table.num_rows)))
        statement = f"SELECT __row FROM log WHERE ({self.condition})"
        with duckdb.connect(config={"threads": 1}) as connection:
            try:
                connection.register("log", numbered)
                kept = connection.sql(statement).fetchnumpy()["__row"]
            except duckdb.Error as error:
                raise bad_condition(self.condition, path, error) from None
        return table.take(pa.array(np.sort(kept)))


def bad_condition(condition: str, path: str, error: Exception) -> UserError:
    """Returns the error for a condition that an engine rejected."""
    reason = " ".join(str(error).split("\n")[0].split())
    return UserError(f"config.data.where = {condition!r} cannot be applied to {path}: {reason}")
