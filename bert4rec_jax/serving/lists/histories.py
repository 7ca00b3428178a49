# SPDX-License-Identifier: Apache-2.0
"""Whose lists are wanted: all users of a run's data, some of them, or those of a new log."""

import dataclasses
import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bert4rec_jax.config import MOVIELENS, DataConfig
from bert4rec_jax.data import load_dataset
from bert4rec_jax.errors import UserError
from bert4rec_jax.serving.recommender import Recommender

ALL = "all"


@dataclass(frozen=True)
class UserHistories:
    """Histories of n users, one after another.

    Attributes:
      users: string array [n], original ids.
      items: int32, item numbers of the run, oldest first within a user; possibly memory-mapped.
      starts: int64[n], first event of each user.
      stops: int64[n], the event after the last.
      identity: changes whenever the histories may have changed; plain JSON values.
      notes: what was left out, for people.
    """

    users: pa.Array
    items: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    identity: dict
    notes: list[str]

    def chosen(self, users: pa.Array) -> "UserHistories":
        """Returns only these users, in this order.

        Raises:
          UserError: one of them is not there.
        """
        places = pc.index_in(users, value_set=self.users)
        if places.null_count:
            unknown = users.filter(pc.is_null(places)).to_pylist()
            raise UserError(
                f"{len(unknown)} of the {len(users)} users of --users have no history: "
                f"{', '.join(unknown[:5])}{', ...' if unknown[5:] else ''}; take them out, or give a "
                "log that has them with --histories."
            )
        rows = places.to_numpy()
        return dataclasses.replace(
            self, users=users, starts=self.starts[rows], stops=self.stops[rows]
        )


def from_run(recommender: Recommender) -> UserHistories:
    """Returns the histories of all users of the data that the run was trained on, test items included.

    Raises:
      UserError: the data cannot be obtained, or are no longer those of the run.
    """
    try:
        dataset = load_dataset(recommender.config.data, recommender.config.filter)
    except UserError as error:
        raise UserError(
            f"the data that the run was trained on are not here ({str(error).rstrip('.')}); start this in "
            "the folder where it was trained, or give a log with --histories."
        ) from None
    items = pa.array(recommender.catalogue["item"].astype(str), pa.string())
    if not pa.array(dataset.item_table()["item"].astype(str), pa.string()).equals(items):
        raise UserError(
            f"{dataset.folder} holds other items than the run; its data have changed since. Give the log "
            "with --histories."
        )
    users = pa.array(dataset.user_table()["user"].astype(str), pa.string())
    return UserHistories(
        users,
        dataset.items,
        dataset.offsets[:-1],
        dataset.offsets[1:],
        {"fingerprint": dataset.fingerprint},
        [],
    )


def from_log(recommender: Recommender, path: str) -> UserHistories:
    """Returns the histories of a log in a format that training reads; items unknown to the run are left out.

    A log in the format of the run's own data is read with the same columns; beside MovieLens and synthetic data, a
    file is a table with the columns user, item and, where known, timestamp.

    Raises:
      UserError: it cannot be read, or has none of the run's items.
    """
    config = recommender.config
    filters = dataclasses.replace(config.filter, user_core=0, item_core=0, first_users=0)
    dataset = load_dataset(_log_config(config.data, path), filters)
    log_items = pa.array(dataset.item_table()["item"].astype(str), pa.string())
    users = pa.array(dataset.user_table()["user"].astype(str), pa.string())
    catalogue = pa.array(recommender.catalogue["item"].astype(str), pa.string())
    number = pc.fill_null(pc.index_in(log_items, value_set=catalogue), -1).to_numpy() + 1
    items = number[dataset.items - 1].astype(np.int32)
    known = items > 0
    if not known.any():
        raise UserError(
            f"{path} has none of the {recommender.num_items:,} items that this run knows; item ids must be "
            "those of its training data."
        )
    owner = np.repeat(np.arange(len(users)), np.diff(dataset.offsets))[known]
    stops = np.cumsum(np.bincount(owner, minlength=len(users))).astype(np.int64)
    starts = np.concatenate([[0], stops[:-1]])
    some = stops > starts
    notes = []
    if not known.all():
        notes.append(
            f"{(~known).sum():,} of {len(known):,} events are of {(number == 0).sum():,} items that were not "
            "in the training data; the model cannot read or recommend them, and they are left out."
        )
    if not some.all():
        notes.append(
            f"{(~some).sum():,} of {len(some):,} users have no item that the model knows and get no list."
        )
    return UserHistories(
        users.filter(pa.array(some)),
        items[known],
        starts[some],
        stops[some],
        {"log": dataset.manifest["identity"]},
        notes,
    )


def _log_config(data: DataConfig, path: str) -> DataConfig:
    own = data.source in ("table", "lines", "sequences") or (
        data.source in MOVIELENS and os.path.isdir(path)
    )
    source = data.source if own else "table"
    return dataclasses.replace(data, source=source, path=path, items_path="", features="")


def read_users(path: str) -> pa.Array:
    """Returns the ids of a file, one a line.

    Raises:
      UserError: it cannot be read, is empty or names a user twice.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            users = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--users {path} cannot be read ({error}); give 'all' or a file with one user id a "
            "line."
        ) from None
    if not users:
        raise UserError(f"--users {path} names no user; give one id a line.")
    if len(set(users)) < len(users):
        twice = next(user for user in users if users.count(user) > 1)
        raise UserError(f"--users {path} names {twice!r} twice; name every user once.")
    return pa.array(users, pa.string())
