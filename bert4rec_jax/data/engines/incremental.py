# SPDX-License-Identifier: Apache-2.0
"""Incremental preparation: merges the new parts of a log into the folder of its older parts.

The result is the same, to the last byte, as the result of preparing all parts from scratch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data.dataset import FORMAT, Dataset, open_dataset
from bert4rec_jax.data.engines.ingest import are_whole_numbers
from bert4rec_jax.data.engines.pipeline import DUPLICATES_STEP, Account, write_arrays
from bert4rec_jax.data.engines.stage_cache import StageCache
from bert4rec_jax.data.ranges import split_by_size
from bert4rec_jax.data.sources import tables
from bert4rec_jax.data.sources.log import Source
from bert4rec_jax.data.writer import UserTable, Writer
from bert4rec_jax.errors import UserError
from bert4rec_jax.progress import ProgressBar

# {filter: largest absolute value that drops nothing}. A new event may change what these filters
# drop, and the folder does not contain the dropped events.
_HARMLESS = {"min_rating": 0, "user_core": 1, "item_core": 1, "first_users": 0}


def find_older_folder(parent: str, source: Source, options: dict) -> str:
    """Returns the folder that was prepared from the most of a log's first parts, or "".

    Prints a line if there is such a folder but it cannot be extended.

    Args:
      parent: contains all prepared folders.
      source: the log.
      options: of the preparation, as in the manifests.
    """
    files = source.identity.get("files", [])
    if source.open is None or len(files) < 2:
        return ""
    newest: dict = {}
    folder = ""
    most = 0
    for entry in os.scandir(parent):
        manifest = _read_manifest(entry.path)
        count = _count_known_files(manifest, source, options)
        if count > most:
            newest = manifest
            folder = entry.path
            most = count
    if not folder:
        return ""
    filters = [name for name, value in _HARMLESS.items() if abs(options[name]) > value]
    if filters:
        names = " and ".join(f"config.filter.{name}" for name in filters)
        _report_full_preparation(f"{names} left out events that may count again")
        return ""
    whole_seconds = newest.get("times", {}).get("whole_seconds", False)
    if not whole_seconds or "times_missing" in newest["counts"]:
        _report_full_preparation("not all of its times are whole seconds")
        return ""
    return folder


def _read_manifest(folder: str) -> dict:
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _count_known_files(manifest: dict, source: Source, options: dict) -> int:
    """Returns how many of the log's first files a folder contains; 0 if it does not fit."""
    # Tuples become lists, as in the manifest.
    identity = json.loads(json.dumps(source.identity))
    files = identity["files"]
    try:
        known = manifest["identity"]["files"]
        same_log = manifest["identity"] | {"files": files} == identity
        same_options = manifest["options"] == options
        same_format = manifest["format"] == FORMAT
        are_first = known == files[: len(known)]
    except (KeyError, TypeError):
        return 0
    fits = same_log and same_options and same_format and are_first and len(known) < len(files)
    return len(known) if fits else 0


def _report_full_preparation(reason: str) -> None:
    print(
        f"The log has new parts, but it has to be prepared from scratch: {reason}.",
        file=sys.stderr,
    )


def extend(
    folder: str,
    source: Source,
    config: DataConfig,
    filters: FilterConfig,
    facts: dict,
    out: str,
) -> bool:
    """Writes the files of a prepared folder from an older folder and the new parts of a log.

    Args:
      folder: the older one.
      source: the whole log.
      config: where the log is and which columns it has.
      filters: of the preparation.
      facts: written to the manifest.
      out: an empty folder.

    Returns:
      False if the new parts do not allow it: times are missing or have fractions, or the ids are of
      another kind.

    Raises:
      UserError: preparing the whole log would raise it as well.
    """
    try:
        old = open_dataset(folder)
    except UserError:
        return False
    with StageCache(f"{out}-new") as stages:
        try:
            added = _new_parts(source, config, len(old.manifest["identity"]["files"]))
            new = open_dataset(write_arrays(config, filters, added, facts, stages))
            obstacle = _obstacle(old, new)
            if obstacle:
                _report_full_preparation(obstacle)
                return False
            _merge(old, new, source, filters, facts, out)
            return True
        finally:
            stages.remove()


def _new_parts(source: Source, config: DataConfig, known: int) -> Source:
    """Returns the log without its first `known` files."""
    paths = [path for path, *_ in source.identity["files"]]
    root = os.path.abspath(os.path.expanduser(config.path))
    return dataclasses.replace(
        source,
        open=lambda: tables.open_table(config, paths, root, known),
        item_table=lambda: None,
        scan=lambda: None,
    )


def _obstacle(old: Dataset, new: Dataset) -> str:
    """Returns why two folders cannot be merged, or ""."""
    if new.timestamps is None or "times_missing" in new.manifest["counts"]:
        return "some of the new events lack a time"
    if not new.manifest["times"]["whole_seconds"]:
        return "some of the new times have fractions"
    if are_whole_numbers(_ids(old, "user")) != are_whole_numbers(_ids(new, "user")):
        return "some user ids are numbers and others are text"
    return ""


def _ids(dataset: Dataset, role: str) -> pa.Array:
    path = os.path.join(dataset.folder, f"{role}s.parquet")
    return pq.read_table(path, columns=[role])[role].combine_chunks()


class _Part:
    """One of the two folders to merge, in terms of the merged users and items.

    Attributes:
      dataset: the folder.
      codes_of: int64[num_items + 1], code of each of its items; items keep their codes in both
        parts.
      offsets: int64[merged users + 1], first event of each merged user.
    """

    def __init__(self, dataset: Dataset, users: pa.Array, items: pa.Array):
        self.dataset = dataset
        codes = _positions(_ids(dataset, "item"), items) + 1
        self.codes_of = np.concatenate([[0], codes])
        lengths = np.zeros(len(users), np.int64)
        lengths[_positions(_ids(dataset, "user"), users)] = np.diff(dataset.offsets)
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])

    def events(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns users (from 0), codes and times of the events of users first..stop-1."""
        span = slice(self.offsets[first], self.offsets[stop])
        lengths = np.diff(self.offsets[first : stop + 1])
        users = np.repeat(np.arange(stop - first), lengths)
        assert self.dataset.timestamps is not None, "`_obstacle` rejects parts without times"
        codes = self.codes_of[self.dataset.items[span]]
        return users, codes, np.asarray(self.dataset.timestamps[span])


def _merge(
    old: Dataset, new: Dataset, source: Source, filters: FilterConfig, facts: dict, out: str
) -> None:
    users = pc.unique(pa.concat_arrays([_ids(old, "user"), _ids(new, "user")]))
    users = users.take(pa.array(_ascending(users)))
    # The codes of old items are their old numbers; new items get codes after them.
    items = pc.unique(pa.concat_arrays([_ids(old, "item"), _ids(new, "item")]))
    old_part = _Part(old, users, items)
    new_part = _Part(new, users, items)
    offsets = old_part.offsets + new_part.offsets
    drop_duplicates = filters.duplicate_events == "drop"
    arrays = Writer(out, True, len(items) + 1)
    try:
        with ProgressBar("adding new events", int(offsets[-1]), "events") as progress:
            for first, stop in split_by_size(offsets):
                block = _merge_block(old_part, new_part, first, stop, drop_duplicates)
                block_users, codes, times = block
                lengths = np.bincount(block_users, minlength=stop - first)
                arrays.add(lengths, codes, times)
                progress.advance(len(codes))
        with UserTable(out) as table:
            table.add(users)
        account = Account()
        read = sum(part.manifest["counts"]["filters"][0]["interactions"] for part in (old, new))
        account.add("read", read, arrays.users, arrays.items)
        if drop_duplicates:
            account.add(DUPLICATES_STEP, arrays.interactions, arrays.users, arrays.items)
        item_ids = items.take(pa.array(arrays.codes_in_order() - 1))
        arrays.finish(facts, item_ids, source.item_table(), {"filters": account.steps})
    finally:
        arrays.close()


def _merge_block(
    old: _Part, new: _Part, first: int, stop: int, drop_duplicates: bool
) -> tuple[np.ndarray, ...]:
    """Returns users, codes and times of the events of users first..stop-1, in order."""
    old_events = old.events(first, stop)
    new_events = new.events(first, stop)
    if not len(new_events[0]):
        return old_events
    users, codes, times = (np.concatenate(pair) for pair in zip(old_events, new_events))
    # Stable: of events at the same time, those of earlier files stay first.
    order = np.lexsort((times, users))
    if drop_duplicates:
        keys = users[order] * np.int64(codes.max() + 1) + codes[order]
        _, first_places = np.unique(keys, return_index=True)
        order = order[np.sort(first_places)]
    return users[order], codes[order], times[order]


def _positions(ids: pa.Array, among: pa.Array) -> np.ndarray:
    found = pc.index_in(ids, value_set=among)
    return found.to_numpy(zero_copy_only=False).astype(np.int64)


def _ascending(ids: pa.Array) -> np.ndarray:
    """Returns the order of ids: as numbers if all are whole numbers, and then as text."""
    if not are_whole_numbers(ids):
        return pc.sort_indices(ids).to_numpy()
    table = pa.table({"number": pc.cast(ids, pa.int64()), "text": ids})
    return pc.sort_indices(table, [("number", "ascending"), ("text", "ascending")]).to_numpy()
