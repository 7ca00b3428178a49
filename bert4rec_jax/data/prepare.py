# SPDX-License-Identifier: Apache-2.0
"""Writes the prepared folder, once per source and options, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from absl import logging

from bert4rec_jax.config import DataConfig
from bert4rec_jax.data import arrange
from bert4rec_jax.data.dataset import FORMAT, Dataset, open_dataset
from bert4rec_jax.data.sources.find import cache_folder, find_source
from bert4rec_jax.data.sources.log import Log, Source
from bert4rec_jax.errors import UserError

_FILTERS = ("min_rating", "user_core", "item_core", "repeats", "first_users")
_STALE_SECONDS = 86400


def load_dataset(config: DataConfig) -> Dataset:
    """Opens the prepared folder of a config, preparing it first where there is none.

    The folder is `<cache_dir>/prepared/<name>-<12 digits>`; the digits change with the source (paths,
    sizes and times of its files) and with the options that shape it. It is written under another name and
    renamed when complete, so an interrupted preparation is never mistaken for one, and of two at once the
    first to finish wins.

    Raises:
      UserError: the source cannot be obtained or read, the filters leave nothing, or the disk refuses.
    """
    source = find_source(config)
    options = {name: getattr(config, name) for name in _FILTERS}
    key = {"format": FORMAT, "source": source.identity, "options": options}
    digits = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    parent = os.path.join(cache_folder(config), "prepared")
    folder = os.path.join(parent, f"{source.name}-{digits}")
    if os.path.isdir(folder):
        try:
            return open_dataset(folder)
        except UserError as error:
            logging.warning("%s Preparing it again.", error)
    with _disk_errors(parent):
        os.makedirs(parent, exist_ok=True)
        _remove_stale(parent)
    started = time.monotonic()
    log = source.read()
    arranged = arrange.arrange(log, config)
    with _disk_errors(parent):
        scratch = os.path.join(parent, f".{source.name}-{digits}-{uuid.uuid4().hex}")
        os.mkdir(scratch)
        try:
            _write(scratch, source, options, log, arranged)
            _publish(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    logging.info("Prepared %s in %.1f s: %s", source.description, time.monotonic() - started, folder)
    return open_dataset(folder)


@contextlib.contextmanager
def _disk_errors(folder: str):
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; free space there, or set "
            "config.data.cache_dir or $BERT4REC_DATA to another folder."
        ) from None


def _remove_stale(parent: str) -> None:
    """Removes what killed preparations left, once no running one can own it."""
    for entry in os.scandir(parent):
        if entry.name.startswith(".") and time.time() - entry.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(entry.path, ignore_errors=True)


def _publish(scratch: str, folder: str) -> None:
    """Renames a complete folder into place, unless a sound one got there first."""
    if os.path.isdir(folder):
        try:
            open_dataset(folder)
            return
        except UserError:
            damaged = os.path.join(os.path.dirname(folder), f".damaged-{uuid.uuid4().hex}")
            os.rename(folder, damaged)
            shutil.rmtree(damaged, ignore_errors=True)
    try:
        os.rename(scratch, folder)
    except OSError:
        # Another process was faster by less than the check above takes; its folder holds the same.
        if not os.path.isdir(folder):
            raise


def _write(folder: str, source: Source, options: dict, log: Log, arranged: arrange.Arranged) -> None:
    arrays = {"items": arranged.items, "offsets": arranged.offsets}
    if arranged.timestamps is not None:
        arrays["timestamps"] = arranged.timestamps
    content = hashlib.sha256()
    for name, array in arrays.items():
        np.save(os.path.join(folder, f"{name}.npy"), array)
        content.update(f"{name} {array.dtype.str} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).data)
    items, facts = _item_table(arranged.item_ids, log.item_table)
    pq.write_table(pa.table({"user": arranged.user_ids}), os.path.join(folder, "users.parquet"))
    pq.write_table(items, os.path.join(folder, "items.parquet"))
    names = [f"{name}.npy" for name in arrays] + ["users.parquet", "items.parquet"]
    manifest = {
        "format": FORMAT,
        "name": source.name,
        "source": source.description,
        "identity": source.identity,
        "options": options,
        "order": arrange.FILE_ORDER if arranged.timestamps is None else arrange.ORDER,
        "users": len(arranged.offsets) - 1,
        "items": len(arranged.item_ids),
        "interactions": len(arranged.items),
        "counts": arranged.counts | facts,
        "fingerprint": content.hexdigest()[:16],
        "files": {name: _facts(os.path.join(folder, name)) for name in names},
    }
    with open(os.path.join(folder, "manifest.json"), "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.write("\n")


def _facts(path: str) -> dict:
    with open(path, "rb") as file:
        return {"bytes": os.path.getsize(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _item_table(item_ids: pa.Array, known: pa.Table | None) -> tuple[pa.Table, dict]:
    """Returns one row per item, missing values where `known` has no row, and how well the two agree.

    Items only in the log are kept without title; items only in the table are left out; of several rows for
    one item the first counts.
    """
    if known is None:
        known = pa.table({"item": pa.array([], pa.string())})
    for name, kind in (("title", pa.string()), ("year", pa.int64()), ("genres", pa.string())):
        if name not in known.column_names:
            known = known.append_column(name, pa.nulls(len(known), kind))
    keys = known["item"].combine_chunks()
    rows = pc.index_in(item_ids, value_set=keys)
    order = ["title", "year", "genres"]
    order += [name for name in known.column_names if name not in ("item", *order)]
    table = known.take(rows).select(order).add_column(0, "item", item_ids)
    found = len(rows) - rows.null_count
    distinct = pc.count_distinct(keys).as_py()
    return table, {
        "items_without_row": rows.null_count,
        "items_only_in_table": distinct - found,
        "repeated_rows_in_item_table": len(keys) - distinct,
    }
