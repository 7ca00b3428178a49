# SPDX-License-Identifier: Apache-2.0
"""A new day for an old folder: where a log in parts has grown by parts at its end, their events are merged into the
arrays that were prepared before, and the result is what a preparation of all parts would be, to the last byte."""

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
from bert4rec_jax.data.arrange import add_step, are_whole_numbers, arrange, ascending
from bert4rec_jax.data.dataset import FORMAT, Dataset, open_dataset
from bert4rec_jax.data.sources import log, tables
from bert4rec_jax.data.sources.log import Source
from bert4rec_jax.data.writer import UserTable, Writer
from bert4rec_jax.errors import UserError
from bert4rec_jax.progress import ProgressBar

_EVENTS_AT_ONCE = 1 << 22
# Filters that need the events they left out, and the value up to which they leave out none.
_NEED_ALL_EVENTS = {"min_rating": 0, "user_core": 1, "item_core": 1, "first_users": 0}


def older_folder(parent: str, source: Source, options: dict) -> str:
    """Returns the prepared folder of the most of a log's first parts, or "".

    Says in a line where there is one that cannot be added to: the folder holds no event that a filter left out, and
    after the filters by number an event of the new day may bring such a one back; a rating filter leaves out users and
    items that the account of a preparation counts.
    """
    files = source.identity.get("files", [])
    if source.open is None or len(files) < 2:
        return ""
    best, most, exact = "", 0, False
    for entry in os.scandir(parent):
        try:
            with open(os.path.join(entry.path, "manifest.json"), encoding="utf-8") as file:
                manifest = json.load(file)
            before = manifest["identity"]["files"]
            same = manifest["identity"] | {"files": files} == json.loads(
                json.dumps(source.identity)
            )
            same = same and manifest["format"] == FORMAT and manifest["options"] == options
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if same and most < len(before) < len(files) and before == files[: len(before)]:
            best, most = entry.path, len(before)
            exact = (
                manifest.get("times", {}).get("whole_seconds", False)
                and "times_missing" not in manifest["counts"]
            )
    filters = [name for name, none in _NEED_ALL_EVENTS.items() if abs(options[name]) > none]
    if best and filters:
        _start_over(
            f"{' and '.join(f'config.filter.{name}' for name in filters)} left out events that may count again"
        )
    elif best and not exact:
        _start_over("not all of its times are whole seconds")
    return "" if filters or not exact else best


def _start_over(reason: str) -> None:
    print(f"The log has new parts, but all of it is prepared anew: {reason}.", file=sys.stderr)


def add(
    folder: str,
    source: Source,
    config: DataConfig,
    filters: FilterConfig,
    facts: dict,
    out: str,
) -> bool:
    """Writes the files of a prepared folder from an older one and the parts that are new.

    Args:
      folder: the older one.
      source: the whole log.
      config: where the log is and which columns it has.
      filters: of the preparation.
      facts: what the manifest says of the whole log.
      out: an empty folder.

    Returns:
      False where the new parts do not allow it: times are missing or have fractions, or ids are of another kind.

    Raises:
      UserError: what a preparation of the whole log would refuse; times of two kinds are such.
    """
    try:
        old = open_dataset(folder)
    except UserError:
        return False
    paths = [path for path, *_ in source.identity["files"]]
    known = len(old.manifest["identity"]["files"])
    root = os.path.abspath(os.path.expanduser(config.path))
    added = log.read_log(
        dataclasses.replace(
            source,
            open=lambda: tables.open_table(config, paths, root, known),
            item_table=lambda: None,
        )
    )
    if added.times is None or added.times_missing is not None:
        _start_over("some of the new events have no time")
        return False
    new = arrange(added, filters)
    old_users, old_items = (_ids(old, name) for name in ("user", "item"))
    if not new.whole_seconds or are_whole_numbers(old_users) != are_whole_numbers(new.user_ids):
        _start_over("the new times have fractions, or some users' ids are numbers and others text")
        return False
    _merge(old, old_users, old_items, new, source, filters, facts, out)
    return True


def _ids(dataset: Dataset, name: str) -> pa.Array:
    return pq.read_table(os.path.join(dataset.folder, f"{name}s.parquet"), columns=[name])[
        name
    ].combine_chunks()


def _merge(
    old: Dataset, old_users: pa.Array, old_items: pa.Array, new, source, filters, facts, out: str
) -> None:
    users = pc.unique(_joined(old_users, new.user_ids))
    users = users.take(pa.array(ascending(users)))
    old_place, new_place = (_places(ids, users) for ids in (old_users, new.user_ids))
    # Codes: the old numbers, and more for items that are new.
    items = pc.unique(_joined(old_items, new.item_ids))
    new_codes = (_places(new.item_ids, items) + 1)[new.items - 1]
    lengths = np.zeros((2, len(users)), np.int64)
    lengths[0, old_place], lengths[1, new_place] = np.diff(old.offsets), np.diff(new.offsets)
    ends = np.cumsum(lengths, axis=1)
    arrays = Writer(out, True, len(items) + 1)
    try:
        with (
            UserTable(out) as table,
            ProgressBar("adding new events", int(ends[:, -1].sum()), "events") as phase,
        ):
            first, total = 0, ends.sum(axis=0)
            while first < len(users):
                before = total[first - 1] if first else 0
                last = max(
                    first + 1, int(np.searchsorted(total, before + _EVENTS_AT_ONCE, "right"))
                )
                spans = [
                    slice(ends[k, first] - lengths[k, first], ends[k, last - 1]) for k in (0, 1)
                ]
                who = np.concatenate(
                    [np.repeat(np.arange(last - first), lengths[k, first:last]) for k in (0, 1)]
                )
                codes = np.concatenate([old.items[spans[0]], new_codes[spans[1]]])
                times = np.concatenate([old.timestamps[spans[0]], new.timestamps[spans[1]]])
                if spans[1].start < spans[1].stop:
                    # Stable, so that of events at one time the old ones, of earlier files, stay first.
                    order = np.lexsort((times, who))
                    who, codes, times = who[order], codes[order], times[order]
                    if filters.duplicate_events == "drop":
                        _, met = np.unique(
                            who * np.int64(len(items) + 1) + codes, return_index=True
                        )
                        kept = np.sort(met)
                        who, codes, times = who[kept], codes[kept], times[kept]
                arrays.add(np.bincount(who, minlength=last - first), codes, times)
                phase.advance(len(codes))
                first = last
            table.add(users)
        trail: list[dict] = []
        read = (
            old.manifest["counts"]["filters"][0]["interactions"]
            + new.counts["filters"][0]["interactions"]
        )
        add_step(trail, "read", read, arrays.users, arrays.items)
        if filters.duplicate_events == "drop":
            add_step(trail, "repeats dropped", arrays.interactions, arrays.users, arrays.items)
        arrays.finish(
            facts,
            items.take(pa.array(arrays.codes_in_order() - 1)),
            source.item_table(),
            {"filters": trail},
        )
    finally:
        arrays.close()


def _joined(first: pa.Array, second: pa.Array) -> pa.Array:
    whole = [
        array if isinstance(array, pa.Array) else array.combine_chunks()
        for array in (first, second)
    ]
    return pa.concat_arrays(whole)


def _places(ids: pa.Array, among: pa.Array) -> np.ndarray:
    return pc.index_in(ids, value_set=among).to_numpy(zero_copy_only=False).astype(np.int64)
