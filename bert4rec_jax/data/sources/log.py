# SPDX-License-Identifier: Apache-2.0
"""What every reader produces: an interaction log in file order, with ids as codes into lists of original
ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


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
      times: int64[rows] or float64[rows], Unix seconds; None where the source has no times.
      times_missing: bool[rows], where the source has times but not for that row; None when there are none
        such.
      ratings: float32[rows] or None.
      item_table: table with the columns item (string), title, year (int64), genres and whatever else the
        source knows of its items; None where there is none.
    """

    users: Ids
    items: Ids
    times: np.ndarray | None = None
    times_missing: np.ndarray | None = None
    ratings: np.ndarray | None = None
    item_table: pa.Table | None = None


@dataclass(frozen=True)
class Source:
    """A log that was found but not yet read.

    Attributes:
      name: short, fit for a folder name.
      description: one phrase for people: what it is and where it came from.
      identity: changes whenever the log may have changed; plain JSON values.
      read: reads it.
    """

    name: str
    description: str
    identity: dict
    read: Callable[[], Log]
