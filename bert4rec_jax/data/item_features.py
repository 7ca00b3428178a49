# SPDX-License-Identifier: Apache-2.0
"""Features of items: the words and values that stand in columns of their table, each as a number."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bert4rec_jax.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MIN_ITEMS = 5  # that share a feature; with fewer, it says little that their own embeddings do not
_NO_WORD = r"[^\p{L}\p{M}\p{N}]+"  # no letters, accents of their own, or digits


@dataclass(frozen=True)
class ItemFeatures:
    """Which features items have: P pairs of an item and a feature, each once.

    Attributes:
      items: int32[P], item ids, rising.
      features: int32[P], numbers of features; those of one item rise.
      names: of the features, as `genres: Comedy`, in the order of their numbers.
    """

    items: np.ndarray = field(repr=False)
    features: np.ndarray = field(repr=False)
    names: tuple[str, ...] = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the names and pairs."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        for array in (self.items, self.features):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def lists(self, num_items: int) -> list[np.ndarray]:
        """Returns the names of the features of items 1..num_items."""
        starts = np.searchsorted(self.items, np.arange(2, num_items + 1))
        return np.split(np.array(self.names, object)[self.features], starts)

    @staticmethod
    def from_lists(lists: pd.Series) -> ItemFeatures:
        """Returns the bags of what `lists` returned, as a column whose index holds item ids."""
        import pyarrow as pa

        pairs = lists.explode().dropna()
        return _numbered(pairs.index.to_numpy(np.int64), pa.array(pairs, pa.string()))


def feature_count(bags: ItemFeatures | None) -> int:
    """Returns how many features there are; 0 where none were asked for."""
    return 0 if bags is None else len(bags.names)


def from_columns(table: pd.DataFrame, columns: tuple[str, ...]) -> ItemFeatures:
    """Returns the features of items that stand in columns of their table, as far as `MIN_ITEMS` items share them.

    Text with `|` anywhere in its column is split there, and its parts are features. Other text, and every title, gives
    its words in small letters. A number is a feature, and so is each element of a list.

    Args:
      table: as `Dataset.item_table` returns it.
      columns: some of its names.

    Raises:
      UserError: there is no such column, it holds something else, or its items share nothing.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    items, names = [], []
    for column in columns:
        if column not in table.columns or column == "item":
            others = ", ".join(name for name in table.columns if name != "item")
            raise UserError(
                f"config.data.features names the column {column!r}, which the item table has not; its "
                f"columns are: {others}."
            )
        lists = _split(table[column], column)
        parts = pc.utf8_trim_whitespace(_texts(lists.flatten(), column))
        some = pc.fill_null(pc.not_equal(parts, ""), False)
        items.append(table.index.to_numpy(np.int64)[pc.list_parent_indices(lists).filter(some)])
        names.append(pc.binary_join_element_wise(column, parts.filter(some), ": "))
    bags = _numbered(np.concatenate(items), pa.concat_arrays(names))
    shared = np.bincount(bags.features, minlength=len(bags.names)) >= MIN_ITEMS
    kept = shared[bags.features]
    left = tuple(name for name, is_shared in zip(bags.names, shared) if is_shared)
    for column in columns:
        if not any(name.startswith(f"{column}: ") for name in left):
            raise UserError(
                f"config.data.features names the column {column!r} of the item table, and no word or value "
                f"in it belongs to {MIN_ITEMS} items; leave it out."
            )
    numbers = np.cumsum(shared, dtype=np.int32) - 1
    return ItemFeatures(bags.items[kept], numbers[bags.features[kept]], left)


def _split(values: pd.Series, column: str) -> pa.Array:
    """Returns the features of each item in one column, as lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = pa.array(values, from_pandas=True)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_list(array.type):
        return array
    is_text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    texts = _texts(array, column)
    joined = column != "title" and pc.any(pc.match_substring(texts, "|")).as_py()
    if is_text and not joined:
        return pc.split_pattern_regex(pc.utf8_lower(texts), _NO_WORD)
    return pc.split_pattern(texts, "|")


def _texts(array: pa.Array, column: str) -> pa.Array:
    """Returns text as it is, and whole numbers, dates and truth values as text."""
    import pyarrow as pa

    try:
        # Whole numbers become floats where some are missing.
        whole = array.cast(pa.int64()) if pa.types.is_floating(array.type) else array
        if pa.types.is_decimal(whole.type):
            whole = whole.cast(pa.int64())
        return whole.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(
            f"config.data.features names the column {column!r} of the item table, which is of type "
            f"{array.type} and holds neither text nor whole numbers; leave it out."
        ) from None


def _numbered(items: np.ndarray, names: pa.Array) -> ItemFeatures:
    """Returns the bags of pairs that may come twice; features are numbered in the order of their names."""
    import pyarrow.compute as pc

    encoded = names.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(len(order))
    pairs = np.unique(items * len(order) + numbers[encoded.indices.to_numpy()])
    items, features = np.divmod(pairs, max(len(order), 1))
    return ItemFeatures(
        items.astype(np.int32),
        features.astype(np.int32),
        tuple(encoded.dictionary.take(order).to_pylist()),
    )
