# SPDX-License-Identifier: Apache-2.0
"""Writes the prepared folder, once per source and options, whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable

import numpy as np
from absl import logging

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data import arrange, engines, item_features, writer
from bert4rec_jax.data.dataset import FORMAT, Dataset, open_dataset
from bert4rec_jax.data.engines import additions
from bert4rec_jax.data.sources.delimited import short
from bert4rec_jax.data.sources.find import cache_folder, find_source
from bert4rec_jax.data.sources.log import Log, read_log
from bert4rec_jax.errors import STOPPING, Stopped, UserError
from bert4rec_jax.terminal import say

_STALE_SECONDS = 86400
_WORK_STALE_SECONDS = 14 * 86400
_EVENTS_AT_ONCE = 1 << 22
_MANY_FOLDERS, _MUCH = 20, 10 * 2**30


def load_dataset(config: DataConfig, filters: FilterConfig = FilterConfig()) -> Dataset:
    """Opens the prepared folder of a config, preparing it first where there is none.

    The folder is `<cache_dir>/prepared/<name>-<12 digits>`; the digits change with the source (paths,
    sizes and times of its files) and with the options that shape it, not with the engine. It is written under another
    name and renamed when complete, so an interrupted preparation is never mistaken for one, and of two at once the
    first to finish wins.

    Raises:
      UserError: the source cannot be obtained or read, the filters leave nothing, the disk refuses, or the item table
        has not the features that were asked for.
      Stopped: by a signal.
    """
    with _ending_on_signals():
        dataset = _load(config, filters)
        if not config.feature_columns:
            return dataset
        if not dataset.manifest["counts"]["item_table"]:
            raise UserError(
                "config.data.features needs an item table, and there is none; name its file with "
                "config.data.items_path."
            )
        found = item_features.from_columns(dataset.item_table(), config.feature_columns)
        return dataclasses.replace(dataset, features=found)


def _load(config: DataConfig, filters: FilterConfig) -> Dataset:
    source = find_source(config, filters)
    options = dataclasses.asdict(filters)
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
    facts = {
        "name": source.name,
        "source": source.description,
        "identity": source.identity,
        "options": options,
    }
    with _disk_errors(parent):
        older = additions.older_folder(parent, source, options)
        scratch = os.path.join(parent, f".{source.name}-{digits}-{uuid.uuid4().hex}")
        if older and _in_scratch(
            scratch, folder, lambda: additions.add(older, source, config, filters, facts, scratch)
        ):
            pass
        elif engines.choose(config, source) == "memory":
            log = read_log(source)
            arranged = arrange.arrange(log, filters)
            _in_scratch(scratch, folder, lambda: _write(scratch, facts, log, arranged))
        else:
            engines.prepare(config, filters, source, facts, folder, _publish)
    dataset = open_dataset(folder)
    say(f"Prepared {source.description} in {time.monotonic() - started:.1f} s: {account(dataset)}")
    _mention_size(parent)
    return dataset


@contextlib.contextmanager
def _ending_on_signals():
    """Ends a preparation at the first signal that asks to stop: what a run does with it comes only at its next step."""

    stops = []

    def stop(number, _):
        stops.append(
            Stopped(
                number,
                f"{signal.Signals(number).name}: preparation has stopped, and nothing half-made is left; the same command "
                "prepares the data, from the stage that was under way if an engine does it.",
            )
        )
        raise stops[-1]

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # What is ignored stays ignored, as a lost connection under nohup.
    heard = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stops:  # raised where nothing can be, as in a callback of the garbage collector
        raise stops[0]


def _in_scratch(scratch: str, folder: str, write: Callable[[], bool | None]) -> bool:
    """Publishes what write() puts into a scratch folder, unless it returns False."""
    os.mkdir(scratch)
    try:
        if write() is False:
            return False
        _publish(scratch, folder)
        return True
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
        # Work folders of engines hold stages that a second start goes on from; a running one touches its own.
        limit = (
            _WORK_STALE_SECONDS if entry.name.startswith(engines.WORK_PREFIX) else _STALE_SECONDS
        )
        if entry.name.startswith(".") and time.time() - entry.stat().st_mtime > limit:
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


def _write(folder: str, facts: dict, log: Log, arranged: arrange.Arranged) -> None:
    arrays = writer.Writer(folder, arranged.timestamps is not None, len(arranged.item_ids) + 1)
    offsets = arranged.offsets
    first = 0
    try:
        while first < len(offsets) - 1:
            # Whole users, about so many events at once.
            last = max(
                first + 1,
                int(np.searchsorted(offsets, offsets[first] + _EVENTS_AT_ONCE, "right")) - 1,
            )
            span = slice(offsets[first], offsets[last])
            seconds = None if arranged.timestamps is None else arranged.timestamps[span]
            arrays.add(
                np.diff(offsets[first : last + 1]),
                arranged.items[span],
                seconds,
                arranged.whole_seconds,
            )
            first = last
        with writer.UserTable(folder) as users:
            users.add(arranged.user_ids)
        arrays.finish(facts, arranged.item_ids, log.item_table, arranged.counts)
    finally:
        arrays.close()


def account(dataset: Dataset) -> str:
    """Returns what was kept, dropped, filled, repeated and unmatched, in one line."""
    manifest = dataset.manifest
    counts, steps = manifest["counts"], manifest["counts"]["filters"]
    sizes = [f"{manifest[name]:,}" for name in ("interactions", "users", "items")]
    parts = ["{} interactions of {} users with {} items".format(*sizes)]
    for before, after in itertools.pairwise(steps):
        interactions, users, items = (
            f"{before[name] - after[name]:,} of {before[name]:,} {name}"
            for name in ("interactions", "users", "items")
        )
        parts.append(f"{after['after']} dropped {interactions}, {users} and {items}")
    if missing := counts.get("times_missing"):
        parts.append(f"{missing:,} had no time and took that of the row before")
    if copies := counts.get("exact_duplicates"):
        parts.append(f"{copies:,} repeat user, item and time of another and were kept")
    if ties := manifest.get("ties", {}).get("events"):
        parts.append(f"{ties / manifest['interactions']:.1%} tie in time with the one before")
    if counts["item_table"]:
        if counts.get("item_table_lacks_titles"):
            parts.append(
                "the item table has no title column (name it with config.data.title_column)"
            )
        if lost := counts["items_without_row"]:
            example = short(repr(counts["item_without_row"]))
            floats = counts["items_written_as_floats"]
            cause = "ids of the log went through a column of floats"
            why = f" ({floats:,} would match without '.0': {cause})" if floats else ""
            parts.append(f"{lost:,} items have no row in the item table, such as {example}{why}")
        if unused := counts["items_only_in_table"]:
            parts.append(f"{unused:,} of its rows have no interactions")
    return "; ".join(parts)


def _mention_size(parent: str) -> None:
    """Says how large the prepared folders have grown, where that is worth a thought."""
    folders = [entry.path for entry in os.scandir(parent) if entry.is_dir()]
    size = sum(
        entry.stat().st_size for path in folders for entry in os.scandir(path) if entry.is_file()
    )
    if len(folders) >= _MANY_FOLDERS or size >= _MUCH:
        say(
            f"{parent} holds {len(folders)} prepared folders, {size / 2**30:.1f} GiB; those of data that changed since "
            "are not used again: `python -m bert4rec_jax.data.clean` lists them and removes what you agree to."
        )
