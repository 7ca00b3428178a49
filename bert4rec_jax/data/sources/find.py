# SPDX-License-Identifier: Apache-2.0
"""Finds the log of a config: MovieLens, files in a general format, or a generated log."""

from __future__ import annotations

import dataclasses
import os
import re

from bert4rec_jax.config import MOVIELENS, DataConfig, FilterConfig
from bert4rec_jax.data.sources import download, movielens, synthetic, tables, text
from bert4rec_jax.data.sources.log import Source
from bert4rec_jax.errors import UserError


def cache_folder(config: DataConfig) -> str:
    """Returns the folder of downloads and prepared folders."""
    folder = config.cache_dir or os.environ.get("BERT4REC_DATA") or "~/.cache/bert4rec_jax"
    return os.path.abspath(os.path.expanduser(folder))


def find_source(config: DataConfig, filters: FilterConfig = FilterConfig()) -> Source:
    """Finds the log without reading it; downloads MovieLens if `config.path` is empty.

    Raises:
      UserError: the log does not exist, or a field is set that its source cannot use.
    """
    _reject_unused_fields(config, filters.min_rating)
    config = dataclasses.replace(
        config, path=_absolute(config.path), items_path=_absolute(config.items_path)
    )
    if config.source == "synthetic":
        return _synthetic(config)
    return _movielens(config) if config.source in MOVIELENS else _tables(config)


def _absolute(path: str) -> str:
    return path if not path or tables.is_url(path) else os.path.abspath(os.path.expanduser(path))


def _reject_unused_fields(config: DataConfig, min_rating: float) -> None:
    by_name = config.source in MOVIELENS
    rated = by_name or (config.source == "table" and config.rating_column)
    if min_rating and not rated:
        remedy = "name config.data.rating_column" if config.source == "table" else "set it to 0"
        raise UserError(
            f"config.filter.min_rating = {min_rating} needs ratings, but the data lack them; "
            f"{remedy}."
        )
    if config.items_path and (by_name or config.source == "synthetic"):
        raise UserError(
            f"config.data.items_path is not used with source {config.source!r}; set it to ''."
        )
    if config.where and config.source != "table":
        raise UserError("config.data.where is used with source 'table' only; set it to ''.")
    if config.path and config.source == "synthetic":
        raise UserError("config.data.path is not used with source 'synthetic'; set it to ''.")


def _movielens(config: DataConfig) -> Source:
    if config.path:
        folder = config.path
        description = f"{config.source}, original files in {folder}"
    else:
        folder, description = download.movielens(config.source, cache_folder(config))
    ratings, movies = movielens.files_in(config.source, folder)
    return Source(
        name=config.source,
        description=description,
        identity={"files": [_facts(ratings), _facts(movies)]},
        open=lambda: movielens.open_ratings(config.source, ratings),
        item_table=lambda: movielens.read_movies(config.source, movies),
    )


def _tables(config: DataConfig) -> Source:
    paths, items = tables.locate(config)
    first = paths[0]
    opened = {
        "table": lambda: tables.open_table(config, paths, tables.hive_root(config)),
        "lines": lambda: tables.open_lines(config, paths),
        "sequences": lambda: tables.SequencesLog(config, paths),
    }[config.source]
    label = (
        config.path
        if len(paths) > 1 or os.path.isdir(config.path)
        else text.plain_name(first).rpartition(".")[0]
    )
    columns = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.name.endswith("_column")
    }
    what = first if len(paths) == 1 else f"{len(paths)} files in {config.path}"
    return Source(
        name=re.sub(r"[^A-Za-z0-9._-]+", "_", os.path.basename(label.rstrip("/*"))) or "log",
        description=f"{config.source} {what}" + (f", items {items}" if items else ""),
        identity={
            "source": config.source,
            "files": [_facts(path) for path in paths],
            "items": [_facts(items)] if items else [],
            "columns": columns | {"separator": config.separator, "where": config.where},
        },
        open=None if tables.is_url(first) else opened,
        item_table=lambda: tables.read_items(config, items) if items else None,
        scan=lambda: tables.scan_of(config, paths) if config.source == "table" else None,
    )


def _facts(path: str) -> list:
    """Returns path, size and modification time, to detect changes."""
    if tables.is_url(path):
        return [path]
    facts = os.stat(path)
    return [path, facts.st_size, facts.st_mtime_ns]


def _synthetic(config: DataConfig) -> Source:
    options = dataclasses.asdict(config.synthetic)
    described = "synthetic: " + ", ".join(f"{name} {value}" for name, value in options.items())
    identity = {"synthetic": options, "version": synthetic.VERSION}
    return Source(
        "synthetic",
        described,
        identity,
        lambda: synthetic.SyntheticLog(config.synthetic),
        lambda: synthetic.item_table(config.synthetic),
    )
