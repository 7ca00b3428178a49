# SPDX-License-Identifier: Apache-2.0
"""The SQL statements of a preparation, in the common subset of DuckDB and Spark.

Tables have these columns:
  uid, iid: user and item, whole numbers or text.
  stamp: the time, a number; missing if the log lacks times.
  rating: only if it is needed.
  pos: rises in file order.
"""

from __future__ import annotations


def count_values(has_times: bool, has_ratings: bool) -> str:
    """One row: rows, present users, present items, present times, finite ratings."""
    stamp = "count(stamp)" if has_times else "0"
    # A rating that is NaN or infinite times zero is not zero.
    finite = "sum(CASE WHEN rating * 0 = 0 AND NOT isnan(rating) THEN 1 ELSE 0 END)"
    rating = finite if has_ratings else "count(*)"
    return f"SELECT count(*), count(uid), count(iid), {stamp}, {rating} FROM log"


def time_gaps() -> str:
    """Rows of users with a missing time, and the positions of the nearest rows with a time.

    The window needs memory for one user at a time.
    """
    known = "CASE WHEN stamp IS NOT NULL THEN pos END"
    window = "OVER (PARTITION BY uid ORDER BY pos ROWS BETWEEN"
    before = f"max({known}) {window} UNBOUNDED PRECEDING AND CURRENT ROW)"
    after = f"min({known}) {window} CURRENT ROW AND UNBOUNDED FOLLOWING)"
    return (
        f"SELECT uid, pos, stamp, {before} AS earlier, {after} AS later "
        "FROM log WHERE uid IN (SELECT uid FROM log WHERE stamp IS NULL)"
    )


def count_users_without_times() -> str:
    """Number of users without any time."""
    without = "SELECT uid FROM gaps GROUP BY uid HAVING count(stamp) = 0"
    return f"SELECT count(*) FROM ({without}) AS lost"


def fill_times(has_ratings: bool) -> str:
    """The log without missing times.

    A missing time becomes the time of the user's row before, else of the row after, else the
    earliest time of the log.
    """
    rating = "log.rating, " if has_ratings else ""
    found = (
        "SELECT gaps.pos, log.stamp FROM gaps "
        "JOIN log ON log.pos = COALESCE(gaps.earlier, gaps.later) WHERE gaps.stamp IS NULL"
    )
    stamp = "COALESCE(log.stamp, found.stamp, (SELECT min(stamp) FROM log))"
    return (
        f"SELECT log.uid, log.iid, {rating}{stamp} AS stamp, log.pos "
        f"FROM log LEFT JOIN ({found}) AS found ON log.pos = found.pos"
    )


def filter_ratings(table: str, min_rating: float) -> str:
    """Rows with at least this rating; ratings are compared in single precision."""
    return f"SELECT * FROM {table} WHERE rating >= CAST({min_rating!r} AS FLOAT)"


def drop_duplicates(table: str, has_times: bool) -> str:
    """The first row of each user and item, by time and position."""
    if not has_times:
        return f"SELECT uid, iid, min(pos) AS pos FROM {table} GROUP BY uid, iid"
    first = f"SELECT uid, iid, min(stamp) AS stamp FROM {table} GROUP BY uid, iid"
    return (
        f"SELECT rows.uid, rows.iid, rows.stamp, min(rows.pos) AS pos FROM {table} AS rows "
        f"JOIN ({first}) AS met "
        "ON rows.uid = met.uid AND rows.iid = met.iid AND rows.stamp = met.stamp "
        "GROUP BY rows.uid, rows.iid, rows.stamp"
    )


def count_rows_by(column: str, table: str) -> str:
    """The number of rows of each user (or item), as size."""
    return f"SELECT {column}, count(*) AS size FROM {table} GROUP BY {column}"


def sum_sizes(counts: str) -> str:
    """One row: the sum of the sizes, and the number of users (or items)."""
    return f"SELECT COALESCE(sum(size), 0), count(*) FROM {counts}"


def find_rare(counts: str, column: str, at_least: int) -> str:
    """Users (or items) with fewer rows than this."""
    return f"SELECT {column} FROM {counts} WHERE size < {at_least}"


def exclude(table: str, rare_users: list[str], rare_items: list[str]) -> str:
    """Rows without the users and the items in the given tables."""
    pairs = [(name, "uid") for name in rare_users]
    pairs += [(name, "iid") for name in rare_items]
    if not pairs:
        return f"SELECT * FROM {table}"
    conditions = [
        f"NOT EXISTS (SELECT 1 FROM {name} WHERE {name}.{column} = {table}.{column})"
        for name, column in pairs
    ]
    return f"SELECT * FROM {table} WHERE " + " AND ".join(conditions)


def user_order(sort_as_numbers: bool, are_text: bool) -> list[str]:
    """The keys that users are ordered by: first as numbers, then as text."""
    return ["CAST(uid AS BIGINT)", "uid"] if are_text and sort_as_numbers else ["uid"]


def select_users(table: str, order: list[str], first_users: int) -> str:
    """The first users in order, or the last ones if the number is negative."""
    direction = " DESC" if first_users < 0 else ""
    keys = ", ".join(f"{key}{direction}" for key in order)
    users = f"SELECT DISTINCT uid FROM {table}"
    return f"SELECT uid FROM ({users}) AS users ORDER BY {keys} LIMIT {abs(first_users)}"


def keep_users(table: str, selected: str) -> str:
    """Rows of the users in a table."""
    match = f"SELECT 1 FROM {selected} WHERE {selected}.uid = {table}.uid"
    return f"SELECT * FROM {table} WHERE EXISTS ({match})"


def distinct_items(table: str) -> str:
    """Each item once."""
    return f"SELECT DISTINCT iid FROM {table}"


def item_span(table: str) -> str:
    """One row: the lowest and the highest item, 0 if the table is empty."""
    return f"SELECT COALESCE(min(iid), 0), COALESCE(max(iid), 0) FROM {table}"


def range_starts(table: str, key: str, rows: int) -> str:
    """The first key of each range of users, in order; a range has about this number of rows."""
    sizes = f"SELECT {key} AS key, count(*) AS size FROM {table} GROUP BY 1"
    before = "sum(size) OVER (ORDER BY key) - size"
    return (
        f"SELECT min(key) FROM (SELECT key, floor(({before}) / {rows}) AS number "
        f"FROM ({sizes}) AS sizes) AS numbered GROUP BY number ORDER BY number"
    )


def divide_by_user(table: str, key: str, starts: list[int | str]) -> str:
    """Rows with the number of their user's range as `part`.

    Args:
      table: the rows.
      key: the key that users are ordered by.
      starts: first keys of all ranges except the first.
    """
    below = "".join(
        f"WHEN {key} < {_literal(start)} THEN {number} " for number, start in enumerate(starts)
    )
    number = f"CASE {below}ELSE {len(starts)} END" if starts else "0"
    return f"SELECT *, {number} AS part FROM {table}"


def _literal(value: int | str) -> str:
    if isinstance(value, int):
        return str(value)
    doubled = value.replace("'", "''")
    return f"'{doubled}'"


def sort_events(table: str, order: list[str], has_times: bool, lowest_item: int | None) -> str:
    """The events in the order of the arrays.

    Args:
      table: the rows that are kept.
      order: keys of users.
      has_times: whether the column stamp exists.
      lowest_item: subtracted from iid to get the item's code; None: take the code from the table
        `codes`.
    """
    stamp = ", rows.stamp" if has_times else ""
    keys = ", ".join(key.replace("uid", "rows.uid") for key in order)
    if lowest_item is None:
        code = "codes.code"
        join = " JOIN codes ON codes.iid = rows.iid"
    else:
        code = f"rows.iid - {lowest_item}"
        join = ""
    return (
        f"SELECT rows.uid, CAST({code} AS BIGINT) AS code{stamp} FROM {table} AS rows{join} "
        f"ORDER BY {keys}{stamp}, rows.pos"
    )
