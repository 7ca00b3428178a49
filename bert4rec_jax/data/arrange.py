# SPDX-License-Identifier: Apache-2.0
"""Filters, order and numbering: from a `Log` in file order to arrays of sequences. Pure functions on arrays.

Order within a user: timestamp, ties in file order (stable). Users ascend by original id (as numbers if all
of them are, else as text); items are numbered from 1 by first appearance in the result. A row without a
timestamp takes the time of the user's row before it in the file, or after it if there is none before, and
a user without any time takes the earliest time of the log; so such rows keep their place in the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bert4rec_jax.config import FilterConfig
from bert4rec_jax.data.sources.log import Log
from bert4rec_jax.errors import UserError


@dataclass(frozen=True)
class Arranged:
    """Sequences and original ids.

    Attributes:
      items: int32[interactions], from 1.
      offsets: int64[users + 1].
      timestamps: int64[interactions] or None.
      whole_seconds: whether the times had no fractions.
      user_ids: string array [users].
      item_ids: string array [items], of items 1..
      counts: interactions, users and items after each filter, and what was amiss with the times.
    """

    items: np.ndarray
    offsets: np.ndarray
    timestamps: np.ndarray | None
    whole_seconds: bool
    user_ids: pa.Array
    item_ids: pa.Array
    counts: dict


def arrange(log: Log, config: FilterConfig) -> Arranged:
    """Filters, orders and numbers a log.

    Raises:
      UserError: nothing is left; says what was left after each filter.
    """
    order = ascending(log.users.values)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    users, items, times = rank[log.users.codes], log.items.codes, log.times
    trail: list[dict] = []

    def step(name: str) -> None:
        present = [
            int(np.count_nonzero(np.bincount(codes))) if len(codes) else 0
            for codes in (users, items)
        ]
        add_step(trail, name, len(users), *present)

    step("read")
    counts = {}
    if log.times_missing is not None:
        times, counts = _fill_times(users, times, log.times_missing)

    def keep(chosen):  # a mask or an order
        nonlocal users, items, times
        users, items, times = users[chosen], items[chosen], None if times is None else times[chosen]

    if config.min_rating > 0:
        keep(log.ratings >= config.min_rating)
        step(f"min_rating {config.min_rating:g}")
    in_order = _chronological(users, times)
    if in_order is not None:
        keep(in_order)
    if config.duplicate_events == "drop":
        keep(_first_meetings(users, items, len(log.items.values)))
        step("repeats dropped")
    if config.user_core > 1 or config.item_core > 1:
        users, items, times = _core(users, items, times, config.user_core, config.item_core)
        step(core_step(config))
    if config.first_users:
        distinct = np.flatnonzero(np.bincount(users))
        chosen = (
            distinct[: config.first_users]
            if config.first_users > 0
            else distinct[config.first_users :]
        )
        keep((users >= chosen[0]) & (users <= chosen[-1]))
        step(f"first_users {config.first_users}")
    lengths = np.bincount(users, minlength=len(order))
    kept = np.flatnonzero(lengths)
    numbers, item_codes = _number(items, len(log.items.values))
    seconds = None if times is None else whole_seconds(times, log.time_unit)
    return Arranged(
        items=numbers,
        offsets=np.concatenate([[0], np.cumsum(lengths[kept])]).astype(np.int64),
        timestamps=seconds,
        whole_seconds=times is None or are_whole(times, seconds, log.time_unit),
        user_ids=log.users.values.take(pa.array(order[kept])),
        item_ids=log.items.values.take(pa.array(item_codes)),
        counts={"filters": trail} | counts,
    )


def core_step(config: FilterConfig) -> str:
    """Returns the name of the step that drops rare users and items."""
    return f"user_core {config.user_core}, item_core {config.item_core}"


def add_step(trail: list[dict], name: str, interactions: int, users: int, items: int) -> None:
    """Notes what was left after a filter.

    Raises:
      UserError: nothing.
    """
    trail.append({"after": name, "interactions": interactions, "users": users, "items": items})
    if not interactions:
        story = "; ".join(f"{s['after']}: {s['interactions']} by {s['users']} users" for s in trail)
        raise UserError(
            f"the filters of config.filter leave no interactions ({story}); relax the last one."
        )


def ascending(ids: pa.Array) -> np.ndarray:
    """Returns the order of ids: numeric if all are whole numbers, text among equals."""
    if not are_whole_numbers(ids):
        return pc.sort_indices(ids).to_numpy()
    table = pa.table({"number": pc.cast(ids, pa.int64()), "text": ids})
    return pc.sort_indices(table, [("number", "ascending"), ("text", "ascending")]).to_numpy()


def are_whole_numbers(ids: pa.Array) -> bool:
    """Whether all ids are digits alone, with or without a minus sign, and none is too large for an int64."""
    if pc.all(pc.match_substring_regex(ids, r"^-?[0-9]+$")).as_py() is False:
        return False
    try:
        pc.cast(ids, pa.int64())
    except pa.ArrowInvalid:
        return False
    return True


def whole_seconds(times: np.ndarray, unit: int) -> np.ndarray:
    """Returns int64 seconds, rounded down, of times with `unit` units a second."""
    if times.dtype.kind == "f":
        return np.floor(times).astype(np.int64)
    return times // unit if unit > 1 else times.astype(np.int64, copy=False)


def are_whole(times: np.ndarray, seconds: np.ndarray, unit: int) -> bool:
    """Whether times lost nothing when they became whole seconds."""
    return (
        times is seconds
        or (times.dtype.kind == "i" and unit == 1)
        or bool(np.all(seconds * unit == times))
    )


def _fill_times(
    users: np.ndarray, times: np.ndarray, missing: np.ndarray
) -> tuple[np.ndarray, dict]:
    by_user = np.argsort(users, kind="stable")
    known = ~missing[by_user]
    position = np.arange(len(users))
    starts = np.flatnonzero(np.r_[True, np.diff(users[by_user]) != 0])
    first = np.repeat(starts, np.diff(np.r_[starts, len(users)]))
    last = np.repeat(np.r_[starts[1:], len(users)] - 1, np.diff(np.r_[starts, len(users)]))
    before = np.maximum.accumulate(np.where(known, position, -1))
    after = np.minimum.accumulate(np.where(known, position, len(users))[::-1])[::-1]
    source = np.where(before >= first, before, np.where(after <= last, after, -1))
    filled = np.empty_like(times)
    filled[by_user] = np.where(source >= 0, times[by_user][source], times[~missing].min())
    lost = int(np.count_nonzero(source[starts] < 0))
    return filled, {"times_missing": int(missing.sum()), "users_without_times": lost}


def _chronological(users: np.ndarray, times: np.ndarray | None) -> np.ndarray | None:
    """Returns the stable order by (user, time), None where the rows are in it already."""
    rising = users[1:] >= users[:-1]
    if times is None:
        return None if rising.all() else np.argsort(users, kind="stable")
    if rising.all() and np.all((times[1:] >= times[:-1]) | (users[1:] != users[:-1])):
        return None
    if times.dtype.kind == "i":
        # One key is sorted several times faster than two with lexsort; Python's integers do not overflow.
        low, high = int(times.min()), int(times.max())
        if (int(users.max()) + 1) * (high - low + 1) < 2**63:
            return np.argsort(users * np.int64(high - low + 1) + (times - low), kind="stable")
    return np.lexsort((times, users))


def _first_meetings(users: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    """Returns bool[rows]: the user has not met the item in an earlier row."""
    key = users.astype(np.int64) * num_items + items
    order = np.argsort(key, kind="stable")
    repeated = np.zeros(len(key), bool)
    repeated[order[1:]] = key[order[1:]] == key[order[:-1]]
    return ~repeated


def _core(users, items, times, user_core: int, item_core: int):
    """Drops users and items with too few interactions until none is left; the fixed point is unique."""
    while len(users):
        kept = (np.bincount(users)[users] >= user_core) & (np.bincount(items)[items] >= item_core)
        if kept.all():
            break
        users, items, times = users[kept], items[kept], None if times is None else times[kept]
    return users, items, times


def _number(items: np.ndarray, num_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers items from 1 by first appearance.

    Returns:
      int32[rows] numbers, and the code of each number, from 1 on.
    """
    first = np.full(num_codes, -1, np.int64)
    # Of several writes to one place the last stays; backwards, that is the first appearance.
    first[items[::-1]] = np.arange(len(items) - 1, -1, -1)
    codes = np.flatnonzero(first >= 0)
    codes = codes[np.argsort(first[codes])]
    numbers = np.zeros(num_codes, np.int32)
    numbers[codes] = np.arange(1, len(codes) + 1, dtype=np.int32)
    return numbers[items], codes
