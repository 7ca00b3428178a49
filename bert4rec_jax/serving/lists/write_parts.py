# SPDX-License-Identifier: Apache-2.0
"""Writes the lists of all users into one file, part by part."""

import hashlib
import os
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from bert4rec_jax.config import ParallelConfig
from bert4rec_jax.devices import Layout
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import Params
from bert4rec_jax.progress import ProgressBar
from bert4rec_jax.ranking import PairFunction
from bert4rec_jax.serving.list_scorer import Lists, ListScorer, seen_or_excluded
from bert4rec_jax.serving.lists.item_filters import ItemFilter, UserItems, read_item_filter
from bert4rec_jax.serving.lists.list_file import FORMATS, ListFile
from bert4rec_jax.serving.lists.user_histories import (
    ALL,
    UserHistories,
    from_log,
    from_run,
    read_users,
)
from bert4rec_jax.serving.recommender import Recommender
from bert4rec_jax.terminal import say

PART_USERS = 8192


@dataclass(frozen=True)
class ListOptions:
    """The users who get lists, and the items in them.

    Attributes:
      k: length of the lists.
      users: "all", or a file with one user id per line.
      histories: a log whose users get lists; empty: the data that the run was trained on.
      candidates: file of the only items to recommend, see `read_item_filter`; empty: all items.
      exclude: file of items that are not recommended; empty: none.
      include_seen: whether items of a user's own history may be recommended.
      item_shards: devices over which the item table is split.
    """

    k: int = 10
    users: str = ALL
    histories: str = ""
    candidates: str = ""
    exclude: str = ""
    include_seen: bool = False
    item_shards: int = 1


def write_lists(
    recommender: Recommender, out: str, options: ListOptions = ListOptions()
) -> dict[str, float]:
    """Writes user, rank, item, title, score and probability of the k best items of every user.

    Args:
      recommender: the run.
      out: path of a Parquet or CSV file; its extension selects the format.
      options: the users and the items.

    Returns:
      `users`, and the `seconds` and `users_per_second` of the parts that this call made.

    Raises:
      UserError: a file cannot be read or written, or contains no item of the run.
    """
    if os.path.splitext(out)[1] not in FORMATS:
        raise UserError(f"--out {out} must end in .parquet or .csv.")
    layout = _layout(recommender, options.item_shards)
    histories = _histories(recommender, options)
    candidates = _item_filter(options.candidates, "--candidates", recommender)
    excluded = _item_filter(options.exclude, "--exclude", recommender)
    allowed, notes = _allowed(recommender, candidates, excluded)
    for item_filter in (candidates, excluded):
        if item_filter is not None:
            notes = item_filter.notes + notes
    for note in histories.notes + notes:
        say(f"note: {note}")
    # Before the file is opened, since errors of the model must not cost existing parts.
    scorer = ListScorer(
        recommender.config, recommender.num_items, recommender.params, layout, allowed
    )
    source_key = {
        "step": recommender.step,
        "model": _params_fingerprint(recommender.params),
        "k": options.k,
        "users": _users_fingerprint(histories.users),
        "histories": histories.source_key,
        "candidates": candidates and candidates.fingerprint,
        "exclude": excluded and excluded.fingerprint,
        "include_seen": options.include_seen,
        "part_users": PART_USERS,
    }
    writer = _Writer(recommender, scorer, histories, options, candidates, excluded)
    return writer.write(ListFile(out, source_key))


def _layout(recommender: Recommender, item_shards: int) -> Layout:
    # The errors of the layout name fields of the configuration, which is not set here.
    if item_shards > jax.device_count():
        raise UserError(
            f"--item_shards = {item_shards} must be at most {jax.device_count()}, the number of "
            "devices."
        )
    layout = Layout(ParallelConfig(item_shards=item_shards))
    layout.check_table(len(recommender.params["items"]["bias"]), "--item_shards")
    return layout


def _histories(recommender: Recommender, options: ListOptions) -> UserHistories:
    # A file that cannot be read is reported before the data are loaded.
    users = None if options.users == ALL else read_users(options.users)
    if options.histories:
        histories = from_log(recommender, options.histories)
    else:
        histories = from_run(recommender)
    return histories if users is None else histories.select(users)


def _item_filter(path: str, flag: str, recommender: Recommender) -> ItemFilter | None:
    return read_item_filter(path, flag, recommender.items_table) if path else None


def _allowed(
    recommender: Recommender, candidates: ItemFilter | None, excluded: ItemFilter | None
) -> tuple[np.ndarray | None, list[str]]:
    """Returns bool[num_items + 1], items allowed in any list (None: all), and notes for the
    user.
    """
    allowed = np.ones(recommender.num_items + 1, bool)
    if candidates is not None and candidates.for_all is not None:
        allowed[:] = False
        allowed[candidates.for_all] = True
    if excluded is not None and excluded.for_all is not None:
        allowed[excluded.for_all] = False
    table = recommender.items_table
    has_features = "features" in table
    is_trained = recommender.popularity > 0
    if has_features:
        is_trained |= table["features"].str.len().to_numpy() > 0
    untrained = np.flatnonzero(~is_trained) + 1
    allowed[untrained] = False
    notes = []
    if len(untrained):
        without = " and without features" if has_features else ""
        notes.append(
            f"{len(untrained):,} of {recommender.num_items:,} items occur in no training "
            f"history{without}; the "
            "model has learned nothing about them, and they are not recommended."
        )
    if not allowed[1:].any():
        raise UserError(
            "--candidates and --exclude leave no item to recommend; remove one of these flags."
        )
    return (None if allowed[1:].all() else allowed), notes


class _Writer:
    """Computes the lists of all users, in parts of `PART_USERS`."""

    def __init__(
        self,
        recommender: Recommender,
        scorer: ListScorer,
        histories: UserHistories,
        options: ListOptions,
        candidates: ItemFilter | None,
        excluded: ItemFilter | None,
    ):
        self._item_ids = pa.array(recommender.items_table["item"].astype(str), pa.string())
        self._titles = pa.array(recommender.titles.labels(), pa.string())
        self._scorer = scorer
        self._histories = histories
        self._options = options
        self._candidates = candidates.per_user if candidates else None
        self._excluded = excluded.per_user if excluded else None

    def write(self, file: ListFile) -> dict[str, float]:
        """Writes the parts that the file lacks, and joins all of them."""
        begin = time.perf_counter()
        count = len(self._histories.users)
        parts = range(-(-count // PART_USERS))
        written = 0
        short = 0
        with ProgressBar("recommending", count, "users") as progress:
            for part in parts:
                first = part * PART_USERS
                last = min(first + PART_USERS, count)
                if file.has(part):
                    progress.advance(last - first)
                    continue
                users = self._histories.users[first:last]
                lists = self._lists(users, slice(first, last), progress)
                file.write(part, self._table(users, lists))
                written += last - first
                short += int((lists.items[:, -1] == 0).sum())
        seconds = time.perf_counter() - begin
        file.finish(len(parts))
        if short:
            say(f"note: {short:,} users have fewer candidates than --k; their lists are shorter.")
        return {"users": count, "seconds": seconds, "users_per_second": written / seconds}

    def _lists(self, users: pa.Array, chosen: slice, progress: ProgressBar) -> Lists:
        spans = self._histories.spans[chosen]
        excluded = _pairs_of(self._excluded, users)
        removed = seen_or_excluded(spans, self._options.include_seen, excluded)
        candidates = _pairs_of(self._candidates, users)
        return self._scorer.lists(spans, self._options.k, removed, candidates, progress.advance)

    def _table(self, users: pa.Array, lists: Lists) -> pa.Table:
        is_item = lists.items > 0
        row, place = np.nonzero(is_item)
        index = pa.array(lists.items[is_item] - 1)
        return pa.table(
            {
                "user": users.take(pa.array(row)),
                "rank": pa.array((place + 1).astype(np.int32)),
                "item": self._item_ids.take(index),
                "title": self._titles.take(index),
                "score": pa.array(lists.scores[is_item]),
                "probability": pa.array(lists.probabilities[is_item]),
            }
        )


def _pairs_of(user_items: UserItems | None, users: pa.Array) -> PairFunction | None:
    """Returns the function that finds the items of users by their index in `users`."""
    if user_items is None:
        return None

    def pairs(cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return user_items.pairs(users.take(pa.array(cases)))

    return pairs


def _params_fingerprint(params: Params) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()[:16]


def _users_fingerprint(users: pa.Array) -> str:
    values: list[Any] = [len(users), *users.to_pylist()]
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value}\n".encode())
    return digest.hexdigest()[:16]
