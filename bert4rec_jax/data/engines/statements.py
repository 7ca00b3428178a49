# SPDX-License-Identifier: Apache-2.0
"""The SQL of a preparation, in the part of the language that DuckDB and Spark share.

Tables have the columns uid, iid (whole numbers or text), stamp (a number; not where the log has no times), rating
(where it is needed) and pos, which rises in file order.
"""

from __future__ import annotations


def facts(has_times: bool, has_ratings: bool) -> str:
    """One row: rows, users present, items present, times present, ratings that are finite."""
    stamp = "count(stamp)" if has_times else "0"
    # A rating that is NaN or infinite times zero is not zero.
    rating = (
        "sum(CASE WHEN rating * 0 = 0 AND NOT isnan(rating) THEN 1 ELSE 0 END)"
        if has_ratings
        else "count(*)"
    )
    return f"SELECT count(*), count(uid), count(iid), {stamp}, {rating} FROM log"


def gaps() -> str:
    """Rows of users that lack a time somewhere, with the positions of the nearest rows before and after that have one.

    They fit into memory a user at a time.
    """
    known = "CASE WHEN stamp IS NOT NULL THEN pos END"
    window = "OVER (PARTITION BY uid ORDER BY pos ROWS BETWEEN"
    return (
        f"SELECT uid, pos, stamp, max({known}) {window} UNBOUNDED PRECEDING AND CURRENT ROW) AS earlier, "
        f"min({known}) {window} CURRENT ROW AND UNBOUNDED FOLLOWING) AS later "
        "FROM log WHERE uid IN (SELECT uid FROM log WHERE stamp IS NULL)"
    )


def lost_users() -> str:
    """How many users have no time at all."""
    return (
        "SELECT count(*) FROM (SELECT uid FROM gaps GROUP BY uid HAVING count(stamp) = 0) AS lost"
    )


def filled(has_ratings: bool) -> str:
    """The log with missing times taken from the user's row before, else after, else the earliest of the log."""
    rating = "log.rating, " if has_ratings else ""
    return (
        f"SELECT log.uid, log.iid, {rating}"
        "COALESCE(log.stamp, found.stamp, (SELECT min(stamp) FROM log)) AS stamp, log.pos "
        "FROM log LEFT JOIN (SELECT gaps.pos, log.stamp FROM gaps JOIN log ON log.pos = COALESCE(gaps.earlier, "
        "gaps.later) WHERE gaps.stamp IS NULL) AS found ON log.pos = found.pos"
    )


def rated(table: str, at_least: float) -> str:
    """Rows rated at least so much; ratings are compared in single precision."""
    return f"SELECT * FROM {table} WHERE rating >= CAST({at_least!r} AS FLOAT)"


def first_meetings(table: str, has_times: bool) -> str:
    """The first row, by time and position, of each user and item."""
    if not has_times:
        return f"SELECT uid, iid, min(pos) AS pos FROM {table} GROUP BY uid, iid"
    return (
        f"SELECT rows.uid, rows.iid, rows.stamp, min(rows.pos) AS pos FROM {table} AS rows JOIN "
        f"(SELECT uid, iid, min(stamp) AS stamp FROM {table} GROUP BY uid, iid) AS met "
        "ON rows.uid = met.uid AND rows.iid = met.iid AND rows.stamp = met.stamp "
        "GROUP BY rows.uid, rows.iid, rows.stamp"
    )


def sizes(table: str, column: str) -> str:
    """How many rows each user (or item) has."""
    return f"SELECT {column}, count(*) AS size FROM {table} GROUP BY {column}"


def total(counts: str) -> str:
    """Rows, and how many users (or items) they are of."""
    return f"SELECT COALESCE(sum(size), 0), count(*) FROM {counts}"


def rare(counts: str, column: str, at_least: int) -> str:
    """Users (or items) with too few rows."""
    return f"SELECT {column} FROM {counts} WHERE size < {at_least}"


def without(table: str, gone_users: list[str], gone_items: list[str]) -> str:
    """Rows of neither of the listed users nor items."""
    conditions = [
        f"NOT EXISTS (SELECT 1 FROM {gone} WHERE {gone}.uid = {table}.uid)" for gone in gone_users
    ]
    conditions += [
        f"NOT EXISTS (SELECT 1 FROM {gone} WHERE {gone}.iid = {table}.iid)" for gone in gone_items
    ]
    return f"SELECT * FROM {table} WHERE " + " AND ".join(conditions)


def user_order(as_numbers: bool, user_texts: bool) -> str:
    """What users are ordered by: numbers before what they look like."""
    return "CAST(uid AS BIGINT), uid" if user_texts and as_numbers else "uid"


def chosen_users(table: str, order: str, first_users: int) -> str:
    """The first users in order, or, where negative, the last."""
    if "," in order or first_users < 0:
        order = ", ".join(f"{part} DESC" if first_users < 0 else part for part in order.split(", "))
    return f"SELECT uid FROM (SELECT DISTINCT uid FROM {table}) AS users ORDER BY {order} LIMIT {abs(first_users)}"


def only(table: str, chosen: str) -> str:
    """Rows of the listed users."""
    return f"SELECT * FROM {table} WHERE EXISTS (SELECT 1 FROM {chosen} WHERE {chosen}.uid = {table}.uid)"


def items(table: str) -> str:
    """The items that there are."""
    return f"SELECT DISTINCT iid FROM {table}"


def range_starts(table: str, key: str, rows: int) -> str:
    """The first key of each range of users, in order; a range begins where so many rows more lie before it."""
    return (
        f"SELECT min(key) FROM (SELECT key, floor((sum(size) OVER (ORDER BY key) - size) / {rows}) AS number FROM "
        f"(SELECT {key} AS key, count(*) AS size FROM {table} GROUP BY 1) AS sizes) AS numbered "
        "GROUP BY number ORDER BY number"
    )


def divided(table: str, key: str, starts: list[int | str]) -> str:
    """Rows with the number of their user's range, in the column part; ranges but the first begin at the listed keys."""

    def literal(value: int | str) -> str:
        return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"

    below = "".join(
        f"WHEN {key} < {literal(start)} THEN {number} " for number, start in enumerate(starts)
    )
    number = f"CASE {below}ELSE {len(starts)} END" if starts else "0"
    return f"SELECT *, {number} AS part FROM {table}"


def in_order(table: str, order: str, has_times: bool, lowest_item: int | None) -> str:
    """The events as they will lie in the arrays.

    Args:
      table: the rows that are kept.
      order: of users.
      has_times: whether there is a column stamp.
      lowest_item: the code of an item is what it exceeds this by; None: the table `codes` says.
    """
    stamp = ", rows.stamp" if has_times else ""
    order = order.replace("uid", "rows.uid")
    code = f"rows.iid - {lowest_item}" if lowest_item is not None else "codes.code"
    join = "" if lowest_item is not None else " JOIN codes ON codes.iid = rows.iid"
    return (
        f"SELECT rows.uid, CAST({code} AS BIGINT) AS code{stamp} FROM {table} AS rows{join} "
        f"ORDER BY {order}{stamp}, rows.pos"
    )
