# SPDX-License-Identifier: Apache-2.0
"""A prepared folder, opened memory-mapped.

Opening it imports NumPy only; pandas is imported when a table is read.
"""

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

# Increase this number when the same log and options would produce a different folder.
FORMAT = 2
_CACHE_FROM = 1 << 24  # events; for smaller logs, a pass is as fast as reading a cached result
_REMEDY = "delete it, and it will be prepared again"


@dataclass(frozen=True)
class Dataset:
    """Sequences of items, one user after another.

    Attributes:
      items: int32[interactions], ids 1..num_items in chronological order within a user;
        memory-mapped.
      offsets: int64[num_users + 1]; the events of user u are items[offsets[u]:offsets[u + 1]].
      timestamps: int64[interactions], Unix seconds; None if the source lacks times.
      num_users: number of users.
      num_items: number of items; 0 is the padding id, num_items + 1 is [MASK].
      folder: the prepared folder.
      manifest: the source of the data and all steps of their preparation.
      fingerprint: 16 hex digits of the content of the arrays; it does not depend on paths.
      features: features of the items (`config.data.features`), or None.
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

    def times(self) -> np.ndarray:
        """Returns `timestamps` of data that have them.

        Raises:
          ValueError: the data lack timestamps.
        """
        if self.timestamps is None:
            raise ValueError(f"{self.folder} lacks timestamps")
        return self.timestamps

    def item_table(self) -> pd.DataFrame:
        """Returns one row per item, with the index 1..num_items.

        The columns are item (the original id as a string), title, year (nullable integer) and
        genres (joined by `|`), followed by the other columns of the source. Unknown values are
        missing.
        """
        return _read_table(os.path.join(self.folder, "items.parquet"), first=1)

    def user_table(self) -> pd.DataFrame:
        """Returns one row per user, index 0..num_users-1, column user (original id, a string)."""
        return _read_table(os.path.join(self.folder, "users.parquet"), first=0)

    def cached(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns the result of a pass over all events, cached on disk for large logs.

        Args:
          name: file name of the result; must contain everything that the result depends on except
            the data.
          compute: makes the pass.
        """
        path = os.path.join(self.folder, "kept", f"{name}.npy")
        try:
            return np.load(path)
        except (OSError, ValueError, EOFError):
            result = compute()
        if len(self.items) >= _CACHE_FROM:
            # If the folder is read-only or the disk is full, the next run makes the pass again.
            with contextlib.suppress(OSError):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                temporary = f"{path}.{os.getpid()}.tmp"
                with open(temporary, "wb") as file:
                    np.save(file, result)
                os.replace(temporary, path)
        return result

    def statistics(self) -> dict:
        """Returns name, fingerprint, users, items, interactions, density and history lengths."""
        lengths = np.diff(self.offsets)
        result = {
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
        }
        if self.features is not None:
            result["features"] = len(self.features.names)
        return result


def open_dataset(folder: str) -> Dataset:
    """Opens a prepared folder.

    Raises:
      UserError: the folder is missing, incomplete, damaged or of another format.
    """
    folder = os.path.abspath(folder)
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        _check(folder, manifest)
        arrays = {
            name: np.load(os.path.join(folder, f"{name}.npy"), mmap_mode="r")
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
            f"{folder} is not a prepared folder: {error.filename} is missing; {_REMEDY}."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder} is damaged ({reason}); {_REMEDY}.") from None


def _check(folder: str, manifest: dict) -> None:
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{folder} was prepared by another version (format {manifest['format']}); {_REMEDY}."
        )
    for name, facts in manifest["files"].items():
        expected = facts["bytes"]
        if os.path.getsize(os.path.join(folder, name)) != expected:
            raise UserError(f"{folder} is damaged: {name} is not {expected} bytes long; {_REMEDY}.")


def _read_table(path: str, first: int) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{os.path.dirname(path)} is damaged ({reason}); {_REMEDY}.") from None
    # Nullable integers: a missing year must not turn the other years into floats.
    frame = table.to_pandas(
        types_mapper=lambda kind: pd.Int64Dtype() if pa.types.is_integer(kind) else None
    )
    frame.index = pd.RangeIndex(first, first + len(frame))
    return frame
