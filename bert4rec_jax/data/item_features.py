# SPDX-License-Identifier: Apache-2.0
"""Features of items: words and values in columns of the item table, each with a number."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bert4rec_jax.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# Rarer features are dropped: they add little to the embeddings of their items.
MIN_ITEMS = 5
_BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}]+"  # anything but letters, combining accents and digits


@dataclass(frozen=True)
class ItemFeatures:
    """The features of all items, as P distinct pairs of an item and a feature.

    Attributes:
      items: int32[P], item ids, ascending.
      features: int32[P], feature numbers; ascending within an item.
      names: name of each feature, such as `genres: Comedy`, in the order of the numbers.
    """

    items: np.ndarray = field(repr=False)
    features: np.ndarray = field(repr=False)
    names: tuple[str, ...] = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the names and pairs."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(self.items.tobytes())
        digest.update(self.features.tobytes())
        return digest.hexdigest()[:16]

    def lists(self, num_items: int) -> list[np.ndarray]:
        """Returns the feature names of each of the items 1..num_items."""
        starts = np.searchsorted(self.items, np.arange(2, num_items + 1))
        names = np.array(self.names, object)
        return np.split(names[self.features], starts)

    @staticmethod
    def from_lists(lists: pd.Series) -> ItemFeatures:
        """Restores the features from a column of `lists`, indexed by item id."""
        import pyarrow as pa

        pairs = lists.explode().dropna()
        return _numbered(pairs.index.to_numpy(np.int64), pa.array(pairs, pa.string()))


def feature_count(features: ItemFeatures | None) -> int:
    """Returns the number of features; 0 if the run has none."""
    return 0 if features is None else len(features.names)


def from_columns(table: pd.DataFrame, columns: tuple[str, ...]) -> ItemFeatures:
    """Returns the features in columns of the item table that at least `MIN_ITEMS` items share.

    Text is split at `|` if any text in its column contains one; the parts are features. Otherwise,
    and in titles, the words in lower case are features. Numbers are features, and so are the
    elements of lists.

    Args:
      table: the item table, see `Dataset.item_table`.
      columns: names of its columns.

    Raises:
      UserError: a column is missing, has another type, or contains no shared feature.
    """
    import pyarrow as pa

    pairs = [_pairs(table, column) for column in columns]
    items = np.concatenate([ids for ids, _ in pairs])
    found = _numbered(items, pa.concat_arrays([names for _, names in pairs]))
    shared = np.bincount(found.features, minlength=len(found.names)) >= MIN_ITEMS
    names = tuple(name for name, is_shared in zip(found.names, shared) if is_shared)
    for column in columns:
        if not any(name.startswith(f"{column}: ") for name in names):
            raise UserError(
                f"config.data.features contains the column {column!r} of the item table, but none "
                f"of its values is shared by {MIN_ITEMS} items; remove it."
            )
    kept = shared[found.features]
    new_numbers = np.cumsum(shared, dtype=np.int32) - 1
    return ItemFeatures(found.items[kept], new_numbers[found.features[kept]], names)


def _pairs(table: pd.DataFrame, column: str) -> tuple[np.ndarray, pa.Array]:
    """Returns pairs of an item id, int64, and the name of a feature from one column."""
    import pyarrow.compute as pc

    if column not in table.columns or column == "item":
        others = ", ".join(name for name in table.columns if name != "item")
        raise UserError(
            f"config.data.features contains the column {column!r}, which is not in the item table; "
            f"its columns are: {others}."
        )
    lists = _feature_lists(table[column], column)
    values = pc.utf8_trim_whitespace(_as_text(lists.flatten(), column))
    present = pc.fill_null(pc.not_equal(values, ""), False)
    rows = pc.list_parent_indices(lists).filter(present)
    names = pc.binary_join_element_wise(column, values.filter(present), ": ")
    return table.index.to_numpy(np.int64)[rows], names


def _feature_lists(values: pd.Series, column: str) -> pa.Array:
    """Returns the values of each item in one column, as lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = pa.array(values, from_pandas=True)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_list(array.type):
        return array
    texts = _as_text(array, column)
    is_text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    has_bars = column != "title" and pc.any(pc.match_substring(texts, "|")).as_py()
    if is_text and not has_bars:
        return pc.split_pattern_regex(pc.utf8_lower(texts), _BETWEEN_WORDS)
    return pc.split_pattern(texts, "|")


def _as_text(array: pa.Array, column: str) -> pa.Array:
    """Converts whole numbers, dates and booleans to text."""
    import pyarrow as pa

    try:
        # pandas turns a column of whole numbers into floats if some are missing.
        if pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
            array = array.cast(pa.int64())
        return array.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(
            f"config.data.features contains the column {column!r} of the item table, which is of "
            f"type {array.type} and holds neither text nor whole numbers; remove it."
        ) from None


def _numbered(items: np.ndarray, names: pa.Array) -> ItemFeatures:
    """Returns the features of pairs that may repeat, numbered in the order of their names."""
    import pyarrow.compute as pc

    encoded = names.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    count = len(order)
    number_of_code = np.empty(count, np.int64)
    number_of_code[order] = np.arange(count)
    pairs = np.unique(items * count + number_of_code[encoded.indices.to_numpy()])
    unique_items, features = np.divmod(pairs, max(count, 1))
    return ItemFeatures(
        unique_items.astype(np.int32),
        features.astype(np.int32),
        tuple(encoded.dictionary.take(order).to_pylist()),
    )
