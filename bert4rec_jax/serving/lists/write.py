# SPDX-License-Identifier: Apache-2.0
"""Lists of all users into a file, part by part."""

import hashlib
import os
import time
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from bert4rec_jax.config import ParallelConfig
from bert4rec_jax.devices import Layout
from bert4rec_jax.errors import UserError
from bert4rec_jax.progress import ProgressBar
from bert4rec_jax.serving.lists.choices import Choice, read_choice
from bert4rec_jax.serving.lists.files import FORMATS, ListFile
from bert4rec_jax.serving.lists.histories import ALL, UserHistories, from_log, from_run, read_users
from bert4rec_jax.serving.lists.scorer import Lists, ListScorer
from bert4rec_jax.serving.recommender import Recommender
from bert4rec_jax.terminal import say

PART_USERS = 8192


def write_lists(
    recommender: Recommender,
    out: str,
    k: int,
    users: str = ALL,
    histories: str = "",
    candidates: str = "",
    exclude: str = "",
    include_seen: bool = False,
    catalogue: int = 1,
) -> dict:
    """Writes user, rank, item, title, score and probability of everybody's k best items.

    Args:
      recommender: the run.
      out: a Parquet or CSV file by its name.
      k: how many items for each user.
      users: "all", or a file with one user id a line.
      histories: a log whose users are served; empty: the data that the run was trained on.
      candidates: file of the only items that are recommended, see `choices.read_choice`; empty: all.
      exclude: file of items that are not.
      include_seen: whether items of a user's own history may be recommended.
      catalogue: devices that share the item table.

    Returns:
      `users`, and the `seconds` and `users_per_second` of the parts that this call made.

    Raises:
      UserError: a file cannot be read or written, or fits the run in nothing.
    """
    if os.path.splitext(out)[1] not in FORMATS:
        raise UserError(f"--out {out} must end in .parquet or .csv.")
    # The layout would speak of fields of the configuration, which are not set here.
    if catalogue > jax.device_count():
        raise UserError(
            f"--catalogue = {catalogue} must be at most {jax.device_count()}, the devices that there are."
        )
    layout = Layout(ParallelConfig(item_shards=catalogue))
    layout.check_table(len(recommender.params["items"]["bias"]), "--catalogue")
    wanted = None if users == ALL else read_users(users)
    people = from_log(recommender, histories) if histories else from_run(recommender)
    if wanted is not None:
        people = people.chosen(wanted)
    only, only_notes = _choice(candidates, "--candidates", recommender)
    never, never_notes = _choice(exclude, "--exclude", recommender)
    allowed, allowed_notes = _allowed(recommender, only, never)
    for note in [*people.notes, *only_notes, *never_notes, *allowed_notes]:
        say(f"note: {note}")
    # Made before the file is opened: what is wrong with it is then said before parts are thrown away.
    scorer = ListScorer(
        recommender.config,
        recommender.num_items,
        recommender.params,
        layout,
        k,
        allowed,
        only is not None and only.users is not None,
    )
    identity = {
        "step": recommender.step,
        "model": _model_digest(recommender.params),
        "k": k,
        "users": _digest(people.users),
        "histories": people.identity,
        "candidates": only and only.digest,
        "exclude": never and never.digest,
        "include_seen": include_seen,
        "part_users": PART_USERS,
    }
    return _write(recommender, ListFile(out, identity), scorer, people, only, never, include_seen)


def _write(
    recommender: Recommender,
    file: ListFile,
    scorer: ListScorer,
    people: UserHistories,
    only: Choice | None,
    never: Choice | None,
    include_seen: bool,
) -> dict:
    n = len(people.users)
    item_ids = pa.array(recommender.catalogue["item"].astype(str), pa.string())
    titles = pa.array(recommender.titles.labels(), pa.string())
    begin, made, short = time.perf_counter(), 0, 0
    parts = -(-n // PART_USERS)
    with ProgressBar("recommending", n, "users") as phase:
        for part in range(parts):
            here = slice(part * PART_USERS, min((part + 1) * PART_USERS, n))
            if file.has(part):
                phase.advance(here.stop - here.start)
                continue
            starts, stops, users = people.starts[here], people.stops[here], people.users[here]
            lists = scorer.lists(
                people.items,
                starts,
                stops,
                _removed(people.items, starts, stops, users, never, include_seen),
                _pairs_of(only, users) if only is not None else None,
                phase.advance,
            )
            file.write(part, _table(users, lists, item_ids, titles))
            made += len(users)
            short += int((lists.items[:, -1] == 0).sum())
    seconds = time.perf_counter() - begin
    file.finish(parts)
    if short:
        say(f"note: {short:,} users have fewer candidates than --k; their lists are shorter.")
    return {"users": n, "seconds": seconds, "users_per_second": made / seconds if made else 0.0}


def _choice(path: str, flag: str, recommender: Recommender) -> tuple[Choice | None, list[str]]:
    return read_choice(path, flag, recommender.catalogue) if path else (None, [])


def _allowed(
    recommender: Recommender, only: Choice | None, never: Choice | None
) -> tuple[np.ndarray | None, list[str]]:
    """Returns bool[num_items + 1], which items may be in anybody's list (None: all), and what is to be said of it."""
    allowed, notes = np.ones(recommender.num_items + 1, bool), []
    if only is not None and only.everybody is not None:
        allowed[:] = False
        allowed[only.everybody] = True
    if never is not None and never.everybody is not None:
        allowed[never.everybody] = False
    if "training_interactions" in recommender.catalogue:
        known = recommender.catalogue["training_interactions"].to_numpy() > 0
        if "features" in recommender.catalogue:
            known |= recommender.catalogue["features"].str.len().to_numpy() > 0
        unknown = np.flatnonzero(~known) + 1
        if len(unknown):
            allowed[unknown] = False
            features = " and have no features" if "features" in recommender.catalogue else ""
            notes.append(
                f"{len(unknown):,} of {recommender.num_items:,} items occur in no training history{features}; "
                "the model has learned nothing about them, and they are not recommended."
            )
    if not allowed[1:].any():
        raise UserError(
            "--candidates and --exclude leave no item to recommend; take one of them away."
        )
    return (None if allowed[1:].all() else allowed), notes


def _pairs_of(choice: Choice, users: pa.Array):
    return lambda cases: choice.pairs(users.take(pa.array(cases)))


def _removed(
    items: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    users: pa.Array,
    never: Choice | None,
    include_seen: bool,
):
    """Returns what maps numbers of histories to (place, item) pairs that they are not recommended; None: none are."""
    own = never is not None and never.users is not None
    if include_seen and not own:
        return None

    def removed(cases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place, item = np.empty(0, np.int64), np.empty(0, np.int32)
        if own:
            place, item = never.pairs(users.take(pa.array(cases)))
        if not include_seen:
            seen = [np.unique(items[starts[case] : stops[case]]) for case in cases]
            place = np.concatenate(
                [place, np.repeat(np.arange(len(cases)), [len(x) for x in seen])]
            )
            item = np.concatenate([item, *seen])
        return place, item

    return removed


def _table(users: pa.Array, lists: Lists, item_ids: pa.Array, titles: pa.Array) -> pa.Table:
    there = lists.items > 0
    row, place = np.nonzero(there)
    numbers = pa.array(lists.items[there] - 1)
    return pa.table(
        {
            "user": users.take(pa.array(row)),
            "rank": pa.array((place + 1).astype(np.int32)),
            "item": item_ids.take(numbers),
            "title": titles.take(numbers),
            "score": pa.array(lists.scores[there]),
            "probability": pa.array(lists.probabilities[there]),
        }
    )


def _model_digest(params: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()[:16]


def _digest(users: pa.Array) -> str:
    digest = hashlib.sha256()
    for part in (len(users), *users.to_pylist()):
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()[:16]
