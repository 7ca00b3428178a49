# SPDX-License-Identifier: Apache-2.0
"""Generic logs: delimited text or Parquet with a column mapping, `user item` lines, and one-line-per-user
sequences."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert4rec_jax.config import DataConfig
from bert4rec_jax.data.sources import delimited
from bert4rec_jax.data.sources.delimited import Roles, TextFile
from bert4rec_jax.data.sources.log import Ids, Log
from bert4rec_jax.errors import UserError

_EXTENSIONS = (".parquet", ".csv", ".tsv", ".txt", ".dat")


def locate(config: DataConfig) -> tuple[str, str]:
    """Returns the paths of the interactions and of the item table ("" where there is none).

    Raises:
      UserError: one of them does not exist.
    """
    interactions, items = config.path, config.items_path
    if os.path.isdir(config.path):
        interactions = _in_folder(config.path, "interactions")
        items = items or _in_folder(config.path, "items")
        if not interactions:
            raise UserError(
                f"the folder {config.path} has no interactions{', interactions'.join(_EXTENSIONS)}; "
                "set config.data.path to the file itself."
            )
    for name, path in (("path", interactions), ("items_path", items)):
        if path and not os.path.isfile(path):
            raise UserError(f"there is no file {path}; check config.data.{name}.")
    return interactions, items


def _in_folder(folder: str, stem: str) -> str:
    paths = (os.path.join(folder, stem + extension) for extension in _EXTENSIONS)
    return next((path for path in paths if os.path.isfile(path)), "")


def read_table(config: DataConfig, interactions: str, items: str) -> Log:
    """Reads delimited text or Parquet with the columns that `config` names.

    Raises:
      UserError: with the file and, for text, the line.
    """
    roles = Roles(config.user_column, config.item_column, config.time_column, config.rating_column)
    if interactions.endswith(".parquet"):
        table = _read_parquet(interactions, roles)
    else:
        wanted = list(roles.named().values())
        positions = [name for name in wanted if name.isdigit()]
        if positions and len(positions) != len(wanted):
            raise UserError(
                "the columns of config.data must be all names, or all positions for a file without a header, "
                f"not: {', '.join(wanted)}. Set config.data.time_column to '' if there is no time."
            )
        table = delimited.read_interactions(delimited.sniff(interactions, config.separator, wanted), roles)
    return to_log(table, read_items(config, items) if items else None, interactions)


def read_lines(config: DataConfig, interactions: str, items: str) -> Log:
    """Reads SASRec's format: one `user item` pair a line, in chronological order per user, no header."""
    line = delimited.first_line(interactions).strip()
    separator = next((s for s in ("\t", ",", " ") if s in line), " ")
    file = TextFile(interactions, separator, ("user", "item"), header=False, quotes=False)
    table = delimited.read_interactions(file, Roles("user", "item"))
    return to_log(table, read_items(config, items) if items else None, interactions)


def read_sequences(config: DataConfig, interactions: str, items: str) -> Log:
    """Reads one user a line: `user item item ...`, by spaces, tabs or commas, oldest first, no header."""
    delimited.check_text(interactions)
    users, counts, tokens = [], [], []
    for number, (line,) in TextFile(interactions, "\n", ("line",), header=False, quotes=False).rows():
        fields = line.replace(",", " ").split()
        if len(fields) == 1:
            raise UserError(
                f"{interactions} line {number} has a user but no items; each line is `user item item ...`. "
                "Correct or remove that line."
            )
        if fields:
            users.append(fields[0])
            counts.append(len(fields) - 1)
            tokens.extend(fields[1:])
    user = pa.array(np.repeat(np.arange(len(users), dtype=np.int32), counts))
    names = pa.array(users, pa.string()).dictionary_encode()
    table = pa.table(
        {
            "user": pa.DictionaryArray.from_arrays(names.indices.take(user), names.dictionary),
            "item": pa.array(tokens, pa.string()).dictionary_encode(),
        }
    )
    return to_log(table, read_items(config, items) if items else None, interactions)


def read_items(config: DataConfig, path: str) -> pa.Table:
    """Reads an item table: `item_column`, title, year and genres where they exist, and all other columns.

    Raises:
      UserError: the file is broken, or a column that the config names is not there.
    """
    if path.endswith(".parquet"):
        table = _open_parquet(path).read()
    else:
        names = [config.item_column, config.title_column]
        file = delimited.sniff(path, "", [name for name in names if name])
        texts = (config.item_column, config.title_column, config.year_column, config.genres_column)
        table = delimited.read_all(file, {name: pa.string() for name in texts if name in file.names})
    if config.item_column not in table.column_names:
        delimited.require_columns(path, table.column_names, {"item": config.item_column})
    columns = {"item": _texts(table[config.item_column], f"{path}: column {config.item_column!r}")}
    defaults = DataConfig()
    for role in ("title", "year", "genres"):
        name = getattr(config, f"{role}_column")
        if name and name not in table.column_names:
            # A default name may be absent; a name that somebody typed may not.
            if name != getattr(defaults, f"{role}_column"):
                delimited.require_columns(path, table.column_names, {role: name})
            name = ""
        if name:
            where = f"{path}: column {name!r}"
            columns[role] = _years(table[name], where) if role == "year" else _texts(table[name], where)
    used = {config.item_column, config.title_column, config.year_column, config.genres_column}
    for name in table.column_names:
        if name not in used:
            # An extra column must not take the place of one that has a meaning here.
            columns[f"{name}_source" if name in ("item", "title", "year", "genres") else name] = table[name]
    return pa.table(columns)


def _texts(column: pa.ChunkedArray, where: str) -> pa.Array:
    """Returns a column as trimmed strings, empty ones missing; `where` is for the message."""
    column = pa.array(column.combine_chunks()) if column.num_chunks != 1 else column.chunk(0)
    if pa.types.is_floating(column.type) and pc.all(pc.equal(pc.floor(column), column)).as_py():
        column = column.cast(pa.int64())  # integers that pandas made floats because some were missing
    try:
        text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"{where} is of type {column.type} and does not hold text; correct it.") from None
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _years(column: pa.ChunkedArray, where: str) -> pa.Array:
    try:
        return _texts(column, where).cast(pa.float64()).cast(pa.int64())
    except pa.ArrowInvalid:
        raise UserError(
            f"{where} does not hold years; correct it, or set config.data.year_column to ''."
        ) from None


def _open_parquet(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path} is not a whole Parquet file ({reason}); make or download it again."
        ) from None


def _read_parquet(path: str, roles: Roles) -> pa.Table:
    file = _open_parquet(path)
    named = roles.named()
    delimited.require_columns(path, file.schema_arrow.names, named)
    try:
        table = file.read(columns=list(named.values()))
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path} is not a whole Parquet file ({reason}); make or download it again."
        ) from None
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows; it should hold interactions.")
    columns = {}
    for role, name in named.items():
        column = table[name].combine_chunks()
        if role != "time" and column.null_count:
            row = pc.index(pc.is_null(column), True).as_py() + 1
            raise UserError(f"{path} row {row}: the {role} is missing; correct or remove that row.")
        columns[role] = _column(role, column, f"{path}: column {name!r}")
    return pa.table(columns)


def _column(role: str, column: pa.Array, where: str) -> pa.Array:
    """Brings a Parquet column to the type that `to_log` expects."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if role in ("user", "item"):
        try:
            encoded = column.dictionary_encode()
        except pa.ArrowNotImplementedError:
            raise UserError(f"{where} is of type {column.type}, which cannot be an id; correct it.") from None
        return pa.DictionaryArray.from_arrays(encoded.indices, _texts(pa.chunked_array([encoded.dictionary]), where))
    try:
        if role == "rating":
            return column.cast(pa.float32())
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
        raise UserError(f"{where} is of type {column.type} and does not hold {kind}; correct it.") from None


def to_log(table: pa.Table, item_table: pa.Table | None, path: str) -> Log:
    """Turns a table with the columns user, item and perhaps time and rating into a `Log`."""
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    times, missing = _times(columns["time"], path) if "time" in columns else (None, None)
    return Log(
        users=_ids(columns["user"], path, "user"),
        items=_ids(columns["item"], path, "item"),
        times=times,
        times_missing=missing,
        ratings=columns["rating"].to_numpy() if "rating" in columns else None,
        item_table=item_table,
    )


def _ids(column: pa.Array, path: str, role: str) -> Ids:
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    codes = column.indices.to_numpy()
    trimmed = pc.utf8_trim_whitespace(column.dictionary.cast(pa.string())).dictionary_encode()
    if trimmed.null_count or "" in trimmed.dictionary.to_pylist():
        raise UserError(f"{path} has an empty {role}; correct or remove those rows.")
    if len(trimmed.dictionary) < len(column.dictionary):
        codes = trimmed.indices.to_numpy()[codes]
    return Ids(codes, trimmed.dictionary)


def _times(column: pa.Array, path: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns times in seconds (None if all are missing) and where they are missing (None if nowhere)."""
    if column.null_count == len(column):
        return None, None
    missing = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    if pa.types.is_timestamp(column.type):
        micros = column.cast(pa.int64()).fill_null(0).to_numpy()
        whole = not np.any(micros % 1_000_000)
        return (micros // 1_000_000 if whole else micros / 1e6), missing
    times = column.fill_null(0).to_numpy()
    if times.dtype.kind == "f":
        sane = np.isfinite(times) & (np.abs(times) < 2.0**62)  # what rounding to whole seconds can hold
        if not np.all(sane):
            row = int(np.argmin(sane)) + 1
            raise UserError(
                f"{path}: timestamp {times[row - 1]} of row {row} is not finite or far too large; correct or "
                "remove that row."
            )
        if np.all(times == np.floor(times)) and np.all(np.abs(times) < 2**53):
            times = times.astype(np.int64)
    return times, missing
