# SPDX-License-Identifier: Apache-2.0
"""The users who get lists, with their histories: from the data of the run or from a new log."""

import collections
import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bert4rec_jax.config import MOVIELENS, DataConfig
from bert4rec_jax.data import load_dataset
from bert4rec_jax.errors import UserError
from bert4rec_jax.ranking import HistorySpans
from bert4rec_jax.serving.recommender import Recommender

ALL = "all"
_SHOWN = 5  # users in a note


@dataclass(frozen=True)
class UserHistories:
    """Histories of n users.

    Attributes:
      users: string array [n], original ids.
      spans: their histories, of item numbers of the run.
      source_key: JSON values that change whenever the histories may have changed.
      notes: notes for the user about skipped users and events.
    """

    users: pa.Array
    spans: HistorySpans
    source_key: dict[str, Any]
    notes: list[str]

    def select(self, users: pa.Array) -> "UserHistories":
        """Returns the histories of these users, in this order; users without a history are skipped
        with a note.

        Raises:
          UserError: none of them has a history.
        """
        rows = pc.index_in(users, value_set=self.users)
        has_history = pc.is_valid(rows)
        missing = users.filter(pc.invert(has_history)).to_pylist()
        notes = list(self.notes)
        if missing:
            shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            if len(missing) == len(users):
                raise UserError(
                    f"none of the {len(users):,} users of --users has a history ({shown}); use "
                    "user ids of the "
                    "data, or give a log that contains these users with --histories."
                )
            notes.append(
                f"{len(missing):,} of {len(users):,} users of --users lack a history and get no "
                f"list: {shown}. "
                "They are not in the data, or a filter (config.filter) dropped them."
            )
        rows = rows.drop_null().to_numpy()
        spans = dataclasses.replace(
            self.spans, starts=self.spans.starts[rows], stops=self.spans.stops[rows]
        )
        return dataclasses.replace(self, users=users.filter(has_history), spans=spans, notes=notes)


def from_run(recommender: Recommender) -> UserHistories:
    """Returns the histories of all users of the data that the run was trained on, test items
    included.

    Raises:
      UserError: the data cannot be obtained, or differ from the data of the run.
    """
    try:
        dataset = load_dataset(recommender.config.data, recommender.config.filter)
    except UserError as error:
        raise UserError(
            f"the data that the run was trained on are not here ({str(error).rstrip('.')}); run "
            "this command in "
            "the folder where the run was trained, or give a log with --histories."
        ) from None
    items = pa.array(recommender.items_table["item"].astype(str), pa.string())
    if not pa.array(dataset.item_table()["item"].astype(str), pa.string()).equals(items):
        raise UserError(
            f"{dataset.folder} contains other items than the run: the data have changed since "
            "training. Give "
            "the log with --histories."
        )
    users = pa.array(dataset.user_table()["user"].astype(str), pa.string())
    spans = HistorySpans(dataset.items, dataset.offsets[:-1], dataset.offsets[1:])
    return UserHistories(users, spans, {"fingerprint": dataset.fingerprint}, [])


def from_log(recommender: Recommender, path: str) -> UserHistories:
    """Returns the histories of a log in a format that training reads; items unknown to the run are
    skipped.

    A log in the format of the run's own data is read with the same columns. If the run was trained
    on MovieLens or synthetic data, the log is a table with the columns user, item and, if known,
    timestamp.

    Raises:
      UserError: the log cannot be read, or contains no item of the run.
    """
    config = recommender.config
    filters = dataclasses.replace(config.filter, user_core=0, item_core=0, first_users=0)
    dataset = load_dataset(_log_config(config.data, path), filters)
    log_items = pa.array(dataset.item_table()["item"].astype(str), pa.string())
    log_users = pa.array(dataset.user_table()["user"].astype(str), pa.string())
    known_items = pa.array(recommender.items_table["item"].astype(str), pa.string())
    number = pc.fill_null(pc.index_in(log_items, value_set=known_items), -1).to_numpy() + 1
    items = number[dataset.items - 1].astype(np.int32)
    is_known = items > 0
    if not is_known.any():
        raise UserError(
            f"{path} contains none of the {recommender.num_items:,} items of this run; use the "
            "item ids of its "
            "training data."
        )
    users = len(log_users)
    owner = np.repeat(np.arange(users), np.diff(dataset.offsets))[is_known]
    stops = np.cumsum(np.bincount(owner, minlength=users)).astype(np.int64)
    starts = np.append(0, stops[:-1])
    has_items = stops > starts
    notes = []
    if not is_known.all():
        notes.append(
            f"{(~is_known).sum():,} of {len(is_known):,} events are of {(number == 0).sum():,} "
            "items that were not "
            "in the training data; the model cannot read or recommend these items, and they are "
            "skipped."
        )
    if not has_items.all():
        notes.append(
            f"{(~has_items).sum():,} of {users:,} users lack an item that the model knows and get "
            "no list."
        )
    spans = HistorySpans(items[is_known], starts[has_items], stops[has_items])
    ids = log_users.filter(pa.array(has_items))
    return UserHistories(ids, spans, {"log": dataset.manifest["identity"]}, notes)


def _log_config(data: DataConfig, path: str) -> DataConfig:
    same_format = data.source in ("table", "lines", "sequences")
    if data.source in MOVIELENS and os.path.isdir(path):
        same_format = True
    source = data.source if same_format else "table"
    return dataclasses.replace(data, source=source, path=path, items_path="", features="")


def read_users(path: str) -> pa.Array:
    """Returns the user ids of a file, one per line.

    Raises:
      UserError: the file cannot be read, is empty or contains a user twice.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            users = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--users {path} cannot be read ({error}); give 'all' or a file with one user id per "
            "line."
        ) from None
    if not users:
        raise UserError(f"--users {path} is empty; give one user id per line.")
    counts = collections.Counter(users)
    user, count = counts.most_common(1)[0]
    if count > 1:
        raise UserError(f"--users {path} contains {user!r} {count} times; list every user once.")
    return pa.array(users, pa.string())
