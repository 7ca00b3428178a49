# SPDX-License-Identifier: Apache-2.0
"""Finds the first invalid line of a log, after the fast reader has rejected a block of rows."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field

from bert4rec_jax.data.sources.delimited.layout import TextFile
from bert4rec_jax.data.sources.log import Roles
from bert4rec_jax.errors import UserError
from bert4rec_jax.terminal import shortened

LARGEST_TIME = 2.0**62  # larger floats do not fit into int64 seconds


def is_seconds(value: str) -> bool:
    """Whether a text is a number that fits into int64 seconds."""
    try:
        return abs(float(value)) < LARGEST_TIME
    except ValueError:
        return False


def is_date(value: str) -> bool:
    """Whether a text is an ISO date, with or without a time."""
    try:
        datetime.datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def raise_fault(file: TextFile, roles: Roles | None, reason: str) -> None:
    """Raises the UserError of the first faulty line.

    Args:
      file: the file that the fast reader rejected.
      roles: columns to check; None: check only the number of fields.
      reason: the fast reader's reason, for a file in which every line looks valid.
    """
    faults = _Faults(file, roles) if roles else None
    for number, row in file.rows():
        if len(row) != len(file.names):
            columns = shortened(", ".join(file.names), 200)
            raise UserError(
                f"{file.path} line {number} has {len(row)} fields where {len(file.names)} are "
                f"expected ({columns}); correct or remove that line."
            )
        fault = faults.of(row) if faults else None
        if fault:
            raise UserError(f"{file.path} line {number}: {fault}; correct or remove that line.")
    raise UserError(
        f"{file.path} cannot be read: {reason}. Check config.data.separator and the columns."
    )


@dataclass
class _Faults:
    """Checks the fields of rows, in file order.

    The first time decides whether the column contains numbers or dates.
    """

    file: TextFile
    roles: Roles
    is_time: Callable[[str], bool] | None = None
    positions: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """Finds the columns."""
        self.positions = {
            role: self.file.names.index(name) for role, name in self.roles.named().items()
        }

    def of(self, row: list[str]) -> str | None:
        """Returns the fault of a row, or None."""
        values = {role: row[position].strip() for role, position in self.positions.items()}
        for role in ("user", "item"):
            if not values[role]:
                return f"the {role} is empty"
        names = [values["user"], values["item"]]
        if self.file.header and names == [self.roles.user, self.roles.item]:
            return "the header is repeated"
        time = values.get("time", "")
        if time:
            if self.is_time is None:
                self.is_time = is_date if is_date(time) and not is_seconds(time) else is_seconds
            if not self.is_time(time):
                kind = "a number of seconds or an ISO date"
                if self.is_time is is_date:
                    kind = "an ISO date like the lines before"
                return f"timestamp {shortened(time)!r} is not {kind}"
        if "rating" in values and not is_seconds(values["rating"]):
            return f"rating {shortened(values['rating'])!r} is not a number"
        return None
