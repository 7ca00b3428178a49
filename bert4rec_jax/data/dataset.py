# SPDX-License-Identifier: Apache-2.0
"""A prepared folder, opened memory-mapped. Only NumPy is imported until a table is asked for."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bert4rec_jax.data.item_features import ItemFeatures
from bert4rec_jax.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

# Raised when the same log and options would no longer give the same folder.
FORMAT = 2
_KEPT_FROM = 1 << 24  # events; a pass over fewer takes no longer than reading its result


@dataclass(frozen=True)
class Dataset:
    """Sequences of items, users one after another.

    Attributes:
      items: int32[interactions], ids 1..num_items in chronological order within a user; memory-mapped.
      offsets: int64[num_users + 1]; user u has items[offsets[u]:offsets[u + 1]].
      timestamps: int64[interactions], Unix seconds; None where the source has none.
      num_users: number of users.
      num_items: number of items; 0 is free for padding, num_items + 1 for [MASK].
      folder: the prepared folder.
      manifest: where the data came from and what was done to it.
      fingerprint: 16 hex digits of the arrays' content; the same data have the same fingerprint wherever
        they are.
      features: of the items, in columns of the item table; None: none were asked for.
    """

    items: np.ndarray = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    timestamps: np.ndarray | None = field(repr=False)
    num_users: int
    num_items: int
    folder: str
    manifest: dict = field(repr=False)
    fingerprint: str
    features: ItemFeatures | None = None

    def item_table(self) -> pd.DataFrame:
        """Returns one row per item, index 1..num_items.

        Columns: item (original id, as a string), title, year (nullable integer), genres (joined by `|`),
        then what else the source had. Missing where unknown.
        """
        return _read_table(os.path.join(self.folder, "items.parquet"), first=1)

    def user_table(self) -> pd.DataFrame:
        """Returns one row per user, index 0..num_users-1, with the column user (original id, as a string)."""
        return _read_table(os.path.join(self.folder, "users.parquet"), first=0)

    def cached(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns what a pass over all events computes, from a file of an earlier start where there is one.

        Args:
          name: of the result; it must say all that the result depends on beside the data.
          compute: makes the pass.
        """
        path = os.path.join(self.folder, "kept", f"{name}.npy")
        try:
            return np.load(path)
        except (OSError, ValueError, EOFError):
            result = compute()
        if len(self.items) >= _KEPT_FROM:
            # A folder that cannot be written to, or a full disk, costs the pass again.
            with contextlib.suppress(OSError):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                temporary = f"{path}.{os.getpid()}.tmp"
                with open(temporary, "wb") as file:
                    np.save(file, result)
                os.replace(temporary, path)
        return result

    def statistics(self) -> dict:
        """Returns name, fingerprint, users, items, interactions, density and lengths of histories."""
        lengths = np.diff(self.offsets)
        return {
            "name": self.manifest["name"],
            "fingerprint": self.fingerprint,
            "users": self.num_users,
            "items": self.num_items,
            "interactions": int(self.offsets[-1]),
            "mean_length": float(lengths.mean()),
            "median_length": float(np.median(lengths)),
            "min_length": int(lengths.min()),
            "max_length": int(lengths.max()),
            "density": float(self.offsets[-1] / (self.num_users * self.num_items)),
            **({} if self.features is None else {"features": len(self.features.names)}),
        }


def open_dataset(folder: str) -> Dataset:
    """Opens a prepared folder.

    Raises:
      UserError: the folder is missing, incomplete, damaged or of another format.
    """
    folder = os.path.abspath(folder)
    remedy = "delete it, and it will be prepared again"
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{folder} was prepared by another version (format {manifest['format']}); {remedy}."
            )
        for name, facts in manifest["files"].items():
            if os.path.getsize(os.path.join(folder, name)) != facts["bytes"]:
                raise UserError(
                    f"{folder} is damaged: {name} is not {facts['bytes']} bytes long; {remedy}."
                )
        arrays = {
            name: _map(folder, name)
            for name in ("items", "offsets", "timestamps")
            if f"{name}.npy" in manifest["files"]
        }
        return Dataset(
            items=arrays["items"],
            offsets=arrays["offsets"],
            timestamps=arrays.get("timestamps"),
            num_users=manifest["users"],
            num_items=manifest["items"],
            folder=folder,
            manifest=manifest,
            fingerprint=manifest["fingerprint"],
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is no prepared folder: there is no {error.filename}; {remedy}."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is damaged ({type(error).__name__}: {error}); {remedy}."
        ) from None


def _map(folder: str, name: str) -> np.ndarray:
    return np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r")


def _read_table(path: str, first: int) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{os.path.dirname(path)} is damaged ({reason}); delete it, and it will be prepared again."
        ) from None
    # Nullable integers: a missing year must not turn the others into 1995.0.
    frame = table.to_pandas(
        types_mapper=lambda kind: pd.Int64Dtype() if pa.types.is_integer(kind) else None
    )
    frame.index = pd.RangeIndex(first, first + len(frame))
    return frame
