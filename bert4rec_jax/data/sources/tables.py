# SPDX-License-Identifier: Apache-2.0
"""Logs in general formats.

A log is a table (delimited text or Parquet), one `user item` pair per line, or one user per line.
"""

from __future__ import annotations

import glob
import os
import re
import urllib.parse
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert4rec_jax.config import DataConfig
from bert4rec_jax.data.sources import text
from bert4rec_jax.data.sources.delimited import (
    LARGEST_TIME,
    TextFile,
    TextLog,
    read_all,
    reject_header,
    require_columns,
    sniff,
)
from bert4rec_jax.data.sources.log import Roles, Scan
from bert4rec_jax.data.sources.row_filter import RowFilter
from bert4rec_jax.errors import UserError

_ENDINGS = ("", ".gz", ".bz2", ".zst")
_EXTENSIONS = (
    ".parquet",
    *(kind + ending for kind in (".csv", ".tsv", ".txt", ".dat") for ending in _ENDINGS),
)
_BATCH_ROWS = 1 << 20


def is_url(path: str) -> bool:
    """Whether only an engine can read a path, as in s3://bucket/log/*.parquet."""
    return "://" in path


def locate(config: DataConfig) -> tuple[list[str], str]:
    """Returns the paths of the log's files, in order, and of the item table ("" if none).

    A folder contains interactions.* and optionally items.*, or it contains parts: Parquet files, or
    text files of one layout, at any depth, read in the order of their paths.

    Raises:
      UserError: one of them does not exist.
    """
    paths = [config.path]
    items = config.items_path
    if os.path.isdir(config.path):
        items = items or _in_folder(config.path, "items")
        named = _in_folder(config.path, "interactions")
        paths = [named] if named else parts_of(config.path, items)
        if not paths:
            raise UserError(
                f"the folder {config.path} lacks interactions.parquet (.csv, .tsv, .txt, .dat, "
                "also .gz, .bz2, .zst) and parts in these formats; set config.data.path "
                "to the file itself."
            )
    for name, path in (("path", paths[0]), ("items_path", items)):
        if path and not is_url(path) and not os.path.isfile(path):
            raise UserError(f"the file {path} does not exist; check config.data.{name}.")
    return paths, items


def parts_of(folder: str, items: str) -> list[str]:
    """Returns the parts of a log: all .parquet files, else all text files except the item table."""
    found = sorted(glob.glob(os.path.join(glob.escape(folder), "**", "*"), recursive=True))
    found = [path for path in found if path != items and not _is_hidden(path, folder)]
    files = [path for path in found if path.lower().endswith(_EXTENSIONS) and os.path.isfile(path)]
    tables = [path for path in files if is_parquet(path)]
    texts = [path for path in files if not is_parquet(path)]
    if tables and texts:
        raise UserError(
            f"the folder {folder} has parts in Parquet and parts in text, such as "
            f"{os.path.relpath(tables[0], folder)} and {os.path.relpath(texts[0], folder)}; "
            "move one kind to another folder, or set config.data.path to one file."
        )
    return tables or texts


def is_parquet(path: str) -> bool:
    """Whether the extension is Parquet's."""
    return path.lower().endswith(".parquet")


def _is_hidden(path: str, folder: str) -> bool:
    """Whether a name on the path begins with a dot or an underscore, as uncommitted parts do."""
    names = os.path.relpath(path, folder).split(os.sep)
    # A Hive folder may be called _day=1.
    return any(name[0] == "." or (name[0] == "_" and "=" not in name) for name in names)


def hive_root(config: DataConfig) -> str:
    """Returns the folder below which folders named `name=value` are columns, or ""."""
    return config.path if os.path.isdir(config.path) else ""


def _in_folder(folder: str, stem: str) -> str:
    paths = (os.path.join(folder, stem + extension) for extension in _EXTENSIONS)
    return next((path for path in paths if os.path.isfile(path)), "")


def roles_of(config: DataConfig) -> Roles:
    """Returns the columns of the log that a config names.

    Raises:
      UserError: the column of the user or of the item is empty.
    """
    for role in ("user", "item"):
        if not getattr(config, f"{role}_column"):
            raise UserError(
                f"config.data.{role}_column is empty; name the column with the {role} of each row."
            )
    roles = Roles(config.user_column, config.item_column, config.time_column, config.rating_column)
    named = {role: name for role, name in roles.named().items() if role != "rating"}
    for role, name in named.items():
        same = [other for other in named if named[other] == name and other != role]
        if same:
            raise UserError(
                f"config.data.{role}_column and config.data.{same[0]}_column are both {name!r}; "
                "name a column of its own for each."
            )
    return roles


def open_table(
    config: DataConfig, paths: list[str], root: str = "", known: int = 0
) -> TextLog | ParquetLog:
    """Opens delimited text or Parquet with the columns of `config`.

    Args:
      config: names the columns.
      paths: of the files, all of one layout.
      root: the folder below which folders named `name=value` are columns.
      known: this many of the first files are not read; they only determine the types of columns.

    Raises:
      UserError: a file lacks a column; names the file.
    """
    roles = roles_of(config)
    row_filter = RowFilter(config.where) if config.where else None
    if is_parquet(paths[0]):
        return ParquetLog(paths, roles, row_filter, root, known)
    wanted = list(roles.named().values())
    positions = [name for name in wanted if name.isdigit()]
    if positions and len(positions) != len(wanted):
        raise UserError(
            "the columns of config.data must be all names, or all positions for a file without a "
            f"header, not: {', '.join(wanted)}. Set config.data.time_column to '' if there is no "
            "time."
        )
    return TextLog(
        [sniff(path, config.separator, wanted) for path in paths], roles, row_filter, known
    )


def scan_of(config: DataConfig, paths: list[str]) -> Scan | None:
    """Returns the files that an engine may read itself: Parquet of whole numbers, or a URL."""
    roles = roles_of(config)
    if is_url(paths[0]):
        return Scan(tuple(paths), roles, config.where)
    if not is_parquet(paths[0]):
        return None
    for path in paths:
        schema = _open_parquet(path).schema_arrow
        for role, name in roles.named().items():
            kind = schema.field(name).type if name in schema.names else None
            whole = kind is not None and pa.types.is_integer(kind) and kind != pa.uint64()
            if not whole and not (
                role == "rating" and kind is not None and pa.types.is_floating(kind)
            ):
                return None
    return Scan(tuple(paths), roles, config.where, hive_root(config))


def open_lines(config: DataConfig, paths: list[str]) -> TextLog:
    """Opens SASRec's format: a `user item` pair per line, ordered by time per user, no header."""
    line = text.first_line(paths[0]).strip()
    separator = next((s for s in ("\t", ",", " ") if s in line), " ")
    for path in paths:
        reject_header(path, separator, "remove it, or use source 'table'")
    files = [
        TextFile(path, separator, ("user", "item"), header=False, quotes=False) for path in paths
    ]
    return TextLog(files, Roles("user", "item"))


class SequencesLog:
    """One user per line: `user item item ...`, oldest first, no header.

    The separators are spaces, tabs or commas.
    """

    def __init__(self, config: DataConfig, paths: list[str]):
        """Checks that the files are text."""
        self._paths = paths
        for path in paths:
            text.check_text(path)
            line = text.first_line(path)
            separator = next((s for s in ("\t", ",") if s in line), " ")
            reject_header(path, separator, "remove it")
        self.bytes = sum(map(os.path.getsize, paths))

    def blocks(self) -> Iterator[pa.Table]:
        """Yields tables of `user` and `item`.

        Raises:
          UserError: with the number of the first faulty line.
        """
        has_rows = False
        for path in self._paths:
            users: list[str] = []
            counts: list[int] = []
            tokens: list[str] = []
            file = TextFile(path, "\n", ("line",), header=False, quotes=False)
            for number, (line,) in file.rows():
                fields = line.replace(",", " ").split()
                if len(fields) < 2:
                    found = "a user but no items" if fields else "neither a user nor items"
                    raise UserError(
                        f"{path} line {number} has {found}; each line is `user item item ...`. "
                        "Correct or remove that line."
                    )
                has_rows = True
                users.append(fields[0])
                counts.append(len(fields) - 1)
                tokens.extend(fields[1:])
                if len(tokens) >= _BATCH_ROWS:
                    yield _pairs(users, counts, tokens)
                    users = []
                    counts = []
                    tokens = []
            if users:
                yield _pairs(users, counts, tokens)
        if not has_rows:
            raise UserError(
                f"{self._paths[0]} does not contain any rows; it should contain interactions."
            )


def _pairs(users: list[str], counts: list[int], tokens: list[str]) -> pa.Table:
    user = pa.array(np.repeat(np.arange(len(users), dtype=np.int32), counts))
    names = pa.array(users, pa.string()).dictionary_encode()
    return pa.table(
        {
            "user": pa.DictionaryArray.from_arrays(names.indices.take(user), names.dictionary),
            "item": pa.array(tokens, pa.string()).dictionary_encode(),
        }
    )


def read_items(config: DataConfig, path: str) -> pa.Table:
    """Reads an item table: the ids; title, year and genres if they exist; and all other columns.

    The ids are in `key_column`. If that is empty, they are in `item_column`, or in the column
    `item` if `item_column` is a position in a log without a header.

    Raises:
      UserError: the file is damaged, or it lacks a column of the config.
    """
    key = config.key_column or config.item_column
    if key.isdigit() and not config.key_column and not config.title_column.isdigit():
        key = "item"  # the log has positions for columns, this table has names
    if is_parquet(path):
        table = _open_parquet(path).read()
    else:
        texts = (key, config.title_column, config.year_column, config.genres_column)
        file = sniff(
            path, "", [name for name in texts[:2] if name and name.isdigit() == key.isdigit()]
        )
        table = read_all(file, {name: pa.string() for name in texts if name in file.names})
    if key not in table.column_names:
        require_columns(
            path, table.column_names, {"key" if key != config.item_column else "item": key}
        )
    columns = {"item": _texts(table[key], f"{path}: column {key!r}")}
    defaults = DataConfig()
    for role in ("title", "year", "genres"):
        name = getattr(config, f"{role}_column")
        if name and name not in table.column_names:
            # A default name may be missing, but not a name that the user has set.
            if name != getattr(defaults, f"{role}_column"):
                require_columns(path, table.column_names, {role: name})
            name = ""
        if name:
            where = f"{path}: column {name!r}"
            columns[role] = (
                _years(table[name], where) if role == "year" else _texts(table[name], where)
            )
    used = {key, config.title_column, config.year_column, config.genres_column}
    for name in table.column_names:
        if name not in used:
            # An extra column must not replace a column with a meaning.
            columns[f"{name}_source" if name in ("item", "title", "year", "genres") else name] = (
                table[name]
            )
    return pa.table(columns)


def _texts(column: pa.ChunkedArray, where: str) -> pa.Array:
    """Returns a column as trimmed strings, null if empty; `where` is for the message."""
    column = pa.array(column.combine_chunks()) if column.num_chunks != 1 else column.chunk(0)
    if pa.types.is_floating(column.type):
        # pandas turns integers into floats if some are missing.
        whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**62))
        whole_texts = pc.if_else(whole, column, None).cast(pa.int64()).cast(pa.string())
        column = pc.coalesce(whole_texts, column.cast(pa.string()))
    try:
        texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(
            f"{where} is of type {column.type} and does not contain text; correct it."
        ) from None
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _years(column: pa.ChunkedArray, where: str) -> pa.Array:
    try:
        return _texts(column, where).cast(pa.float64()).cast(pa.int64())
    except pa.ArrowInvalid:
        raise UserError(
            f"{where} does not contain years; correct it, or set config.data.year_column to ''."
        ) from None


def _open_parquet(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, "", error) from None


def _damaged(path: str, where: str, error: Exception) -> UserError:
    reason = str(error).split("\n")[0]
    return UserError(
        f"{path}{where} is not a complete Parquet file ({reason}); create or download it again."
    )


def _time_kind(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "whole numbers"
    return "fractions" if pa.types.is_floating(kind) else str(kind)


class ParquetLog:
    """An interaction log in one or more Parquet files, read in canonical blocks."""

    def __init__(
        self,
        paths: list[str],
        roles: Roles,
        row_filter: RowFilter | None = None,
        root: str = "",
        known: int = 0,
    ):
        """Checks the columns; `root` and `known` as for `open_table`."""
        self.roles = roles
        self._paths = paths[known:]
        self._filter = row_filter
        self._root = root
        kinds = set()
        for path in paths:
            schema = _open_parquet(path).schema_arrow
            require_columns(path, schema.names + list(self._partition(path)), roles.named())
            if roles.time in schema.names:
                kinds.add(_time_kind(schema.field(roles.time).type))
        self._time_type = pa.float64() if kinds == {"whole numbers", "fractions"} else None
        if len(kinds) > 1 and not self._time_type:
            raise UserError(
                f"column {roles.time!r} contains {' and '.join(sorted(kinds))} in different files "
                f"of {root}; convert them to one type."
            )
        self.bytes = sum(map(os.path.getsize, self._paths))

    def _partition(self, path: str) -> dict[str, str]:
        inside = os.path.relpath(path, self._root).split(os.sep)[:-1] if self._root else []
        pairs = (part.partition("=") for part in inside if "=" in part)
        return {name: urllib.parse.unquote(value) for name, _, value in pairs}

    def blocks(self) -> Iterator[pa.Table]:
        """Yields tables as described in `sources.log.Blocks`, of at most a million rows each.

        Raises:
          UserError: names the row group and, if a value is invalid, the row.
        """
        rows = 0
        for path in self._paths:
            file = _open_parquet(path)
            row = 0
            for group in range(file.metadata.num_row_groups):
                for table in self._group(file, path, group):
                    yield self._canonical(table, path, group, row)
                    row += table.num_rows
            rows += row
        if not rows:
            raise UserError(
                f"{self._paths[0]} does not contain any rows; it should contain interactions."
            )

    def _group(self, file: pq.ParquetFile, path: str, group: int) -> Iterator[pa.Table]:
        partition = self._partition(path)
        names = file.schema_arrow.names
        extra = self._filter.columns_in([*names, *partition]) if self._filter else []
        wanted = list(dict.fromkeys([*self.roles.named().values(), *extra]))
        inside = [name for name in wanted if name in names]
        try:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=inside):
                table = pa.Table.from_batches([batch])
                for name in wanted:
                    if name not in names:
                        value = pa.scalar(partition[name])
                        # DuckDB and Spark also read whole numbers as such; ids stay as written.
                        if name in extra and re.fullmatch(r"-?\d{1,18}", partition[name]):
                            value = pa.scalar(int(partition[name]))
                        table = table.append_column(name, pa.repeat(value, len(table)))
                yield table
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            groups = file.metadata.num_row_groups
            raise _damaged(path, f" (row group {group + 1} of {groups})", error) from None

    def _canonical(self, table: pa.Table, path: str, group: int, row: int) -> pa.Table:
        """Checks values and converts columns; `row` rows of the file precede the table."""
        columns = {}
        rows = pa.array(np.arange(row + 1, row + len(table) + 1))
        if self._filter:
            filtered = self._filter.apply(table.append_column("__number", rows), path)
            table, rows = filtered.drop_columns("__number"), filtered["__number"].combine_chunks()
        for role, name in self.roles.named().items():
            column = table[name].combine_chunks()
            if isinstance(column, pa.ChunkedArray):
                column = column.chunk(0) if column.num_chunks else pa.array([], column.type)

            def refuse(faulty: pa.Array, fault: str) -> None:
                place = rows[pc.index(faulty, True).as_py()].as_py()
                raise UserError(
                    f"{path} row {place} (row group {group + 1}): {fault}; correct or remove that "
                    "row."
                )

            if role != "time" and column.null_count:
                refuse(pc.is_null(column), f"the {role} is missing")
            column = _column(role, column, f"{path}: column {name!r}")
            if role == "time" and self._time_type:
                column = column.cast(self._time_type, safe=False)
            if role in ("user", "item"):
                empty = pc.equal(column.dictionary, "")
                if pc.any(empty).as_py():
                    refuse(pc.take(empty, column.indices), f"the {role} is empty")
            if pa.types.is_floating(column.type):
                sane = pc.less(pc.abs(column), LARGEST_TIME)
                if pc.all(sane).as_py() is False:
                    wrong = pc.fill_null(pc.invert(sane), False)
                    value = column[pc.index(wrong, True).as_py()].as_py()
                    kind = "timestamp" if role == "time" else "rating"
                    refuse(wrong, f"{kind} {value} is not finite or far too large")
            columns[role] = column
        return pa.table(columns)


def _column(role: str, column: pa.Array, where: str) -> pa.Array:
    """Converts a Parquet column to the type of `sources.log.Blocks`."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if role in ("user", "item"):
        try:
            encoded = column.dictionary_encode()
        except pa.ArrowNotImplementedError:
            raise UserError(
                f"{where} is of type {column.type}, which cannot be an id; correct it."
            ) from None
        texts = pc.fill_null(_texts(pa.chunked_array([encoded.dictionary]), where), "")
        return pa.DictionaryArray.from_arrays(encoded.indices, texts)
    try:
        if role == "rating":
            return column.cast(pa.float32())
        if pa.types.is_boolean(column.type):
            raise pa.ArrowInvalid("true and false are not times")
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            try:
                return column.cast(pa.float64())
            except pa.ArrowInvalid:
                return column.cast(pa.timestamp("us"))
        if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            return column.cast(pa.timestamp("us"), safe=False)
        return column.cast(pa.float64() if pa.types.is_floating(column.type) else pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        kind = "numbers" if role == "rating" else "seconds or ISO dates"
        raise UserError(
            f"{where} is of type {column.type} and does not contain {kind}; correct it."
        ) from None
