# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a line of a log: found by reading line after line, once the fast reader has refused."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field

from bert4rec_jax.data.sources.delimited.layout import TextFile
from bert4rec_jax.data.sources.log import Roles
from bert4rec_jax.errors import UserError
from bert4rec_jax.terminal import shortened

LARGEST_TIME = 2.0**62  # beyond it no whole second holds a float


def is_seconds(value: str) -> bool:
    """Whether a text is a number that a whole second can hold."""
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
      file: the file that the fast reader refused.
      roles: columns to be checked; None: only the number of fields is.
      reason: the fast reader's, used when no line looks wrong.
    """
    faults = _Faults(file, roles) if roles else None
    for number, row in file.rows():
        if len(row) != len(file.names):
            raise UserError(
                f"{file.path} line {number} has {len(row)} fields where {len(file.names)} are expected "
                f"({shortened(', '.join(file.names), 200)}); correct or remove that line."
            )
        fault = faults.of(row) if faults else None
        if fault:
            raise UserError(f"{file.path} line {number}: {fault}; correct or remove that line.")
    raise UserError(
        f"{file.path} cannot be read: {reason}. Check config.data.separator and the columns."
    )


@dataclass
class _Faults:
    """Checks the fields of one row after another."""

    file: TextFile
    roles: Roles
    is_time: Callable[[str], bool] | None = None
    positions: dict[str, int] = field(init=False)

    def __post_init__(self):
        self.positions = {
            role: self.file.names.index(name) for role, name in self.roles.named().items()
        }

    def of(self, row: list[str]) -> str | None:
        values = {role: row[position].strip() for role, position in self.positions.items()}
        for role in ("user", "item"):
            if not values[role]:
                return f"the {role} is empty"
        time = values.get("time", "")
        if time:
            # The first time decides whether the column holds numbers or dates.
            self.is_time = self.is_time or (
                is_date if is_date(time) and not is_seconds(time) else is_seconds
            )
            if not self.is_time(time):
                dates = self.is_time is is_date
                kind = (
                    "an ISO date like the lines before"
                    if dates
                    else "a number of seconds or an ISO date"
                )
                return f"timestamp {shortened(time)!r} is not {kind}"
        if "rating" in values and not is_seconds(values["rating"]):
            return f"rating {shortened(values['rating'])!r} is not a number"
        return None
