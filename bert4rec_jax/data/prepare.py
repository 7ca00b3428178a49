# SPDX-License-Identifier: Apache-2.0
"""Opens the prepared folder of a config; prepares the data first if it does not exist."""

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
from collections.abc import Iterator
from types import FrameType

from absl import logging

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data import engines, item_features
from bert4rec_jax.data.dataset import FORMAT, Dataset, open_dataset
from bert4rec_jax.data.publish import publish
from bert4rec_jax.data.sources.find import cache_folder, find_source
from bert4rec_jax.data.sources.log import Source
from bert4rec_jax.errors import STOPPING, Stopped, UserError
from bert4rec_jax.terminal import say, shortened

_STALE_SECONDS = 86400
_STALE_STAGES_SECONDS = 14 * 86400
# From these on, a line recommends to remove prepared folders.
_MANY_FOLDERS = 20
_MANY_BYTES = 10 * 2**30


def load_dataset(config: DataConfig, filters: FilterConfig = FilterConfig()) -> Dataset:
    """Opens the prepared folder of a config; prepares the data first if it does not exist.

    The folder is `<cache_dir>/prepared/<name>-<12 digits>`. The digits depend on the source (paths,
    sizes and times of its files) and on the options that change the result, not on the engine. The
    folder is written under another name and renamed when it is complete. So an interrupted
    preparation never looks complete, and if two processes prepare the same data, the first to
    finish wins.

    Raises:
      UserError: the source cannot be obtained or read, the filters leave no events, the disk is
        full, or the item table lacks a feature column.
      Stopped: a signal stopped the preparation.
    """
    with _stop_on_signals():
        dataset = _open_or_prepare(config, filters)
        if not config.feature_columns:
            return dataset
        if not dataset.manifest["counts"]["item_table"]:
            raise UserError(
                "config.data.features needs an item table; set config.data.items_path to its file."
            )
        features = item_features.from_columns(dataset.item_table(), config.feature_columns)
        return dataclasses.replace(dataset, features=features)


def _open_or_prepare(config: DataConfig, filters: FilterConfig) -> Dataset:
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
    started = time.monotonic()
    facts = {
        "name": source.name,
        "source": source.description,
        "identity": source.identity,
        "options": options,
    }
    with _disk_errors(parent):
        os.makedirs(parent, exist_ok=True)
        _remove_stale_folders(parent)
        if not _extend_older(config, filters, source, facts, folder):
            engines.prepare(config, filters, source, facts, folder)
    dataset = open_dataset(folder)
    seconds = time.monotonic() - started
    say(f"Prepared {source.description} in {seconds:.1f} s: {account(dataset)}")
    _report_large_cache(parent)
    return dataset


def _extend_older(
    config: DataConfig, filters: FilterConfig, source: Source, facts: dict, folder: str
) -> bool:
    """Publishes the folder if the log has grown and an older folder can be extended."""
    parent, name = os.path.split(folder)
    older = engines.find_older_folder(parent, source, facts["options"])
    if not older:
        return False
    scratch = os.path.join(parent, f".{name}-{uuid.uuid4().hex}")
    os.mkdir(scratch)
    try:
        if not engines.extend(older, source, config, filters, facts, scratch):
            return False
        publish(scratch, folder)
        return True
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Stops the preparation at the first stop signal.

    The training loop's handler would only act after the next step.
    """
    stops: list[Stopped] = []

    def stop(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        stops.append(
            Stopped(
                number,
                f"{name}: preparation has stopped, and nothing half-made is left; the same command "
                "continues after the finished stages.",
            )
        )
        raise stops[-1]

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Ignored signals stay ignored, such as a lost connection under nohup.
    handled = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stops:
        # The exception was raised in a place that ignores exceptions, such as a finalizer.
        raise stops[0]


@contextlib.contextmanager
def _disk_errors(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; free space there, or set "
            "config.data.cache_dir or $BERT4REC_DATA to another folder."
        ) from None


def _remove_stale_folders(parent: str) -> None:
    """Removes the hidden folders of killed preparations, once they are too old to be in use."""
    for entry in os.scandir(parent):
        if not entry.name.startswith("."):
            continue
        has_stages = entry.name.startswith(engines.STAGE_PREFIX)
        limit = _STALE_STAGES_SECONDS if has_stages else _STALE_SECONDS
        if time.time() - entry.stat().st_mtime > limit:
            shutil.rmtree(entry.path, ignore_errors=True)


def account(dataset: Dataset) -> str:
    """Returns one line: what was kept, dropped and filled in, and how the item table matches."""
    manifest = dataset.manifest
    counts = manifest["counts"]
    sizes = [f"{manifest[name]:,}" for name in ("interactions", "users", "items")]
    parts = ["{} interactions of {} users with {} items".format(*sizes)]
    for before, after in itertools.pairwise(counts["filters"]):
        interactions, users, items = (
            f"{before[name] - after[name]:,} of {before[name]:,} {name}"
            for name in ("interactions", "users", "items")
        )
        parts.append(f"{after['after']} dropped {interactions}, {users} and {items}")
    if missing := counts.get("times_missing"):
        parts.append(f"{missing:,} had no time and took the time of the row before")
    if copies := counts.get("exact_duplicates"):
        parts.append(f"{copies:,} repeat user, item and time of another and were kept")
    if ties := manifest.get("ties", {}).get("events"):
        parts.append(f"{ties / manifest['interactions']:.1%} tie in time with the one before")
    if counts["item_table"]:
        parts.extend(_item_table_account(counts))
    return "; ".join(parts)


def _item_table_account(counts: dict) -> Iterator[str]:
    if counts.get("item_table_lacks_titles"):
        yield "the item table lacks a title column (name it with config.data.title_column)"
    if unmatched := counts["items_without_row"]:
        example = shortened(repr(counts["item_without_row"]))
        floats = counts["items_written_as_floats"]
        cause = "ids of the log went through a column of floats"
        reason = f" ({floats:,} would match without '.0': {cause})" if floats else ""
        yield f"{unmatched:,} items are missing from the item table, such as {example}{reason}"
    if unused := counts["items_only_in_table"]:
        yield f"{unused:,} of its rows are items without interactions"


def _report_large_cache(parent: str) -> None:
    """Prints a line if the prepared folders are many or large."""
    folders = [entry.path for entry in os.scandir(parent) if entry.is_dir()]
    files = itertools.chain.from_iterable(map(os.scandir, folders))
    size = sum(file.stat().st_size for file in files if file.is_file())
    if len(folders) >= _MANY_FOLDERS or size >= _MANY_BYTES:
        say(
            f"{parent} contains {len(folders)} prepared folders, {size / 2**30:.1f} GiB. "
            "Folders of data that have changed since are not used again; "
            "`python -m bert4rec_jax.data.clean` lists them and removes those you confirm."
        )
