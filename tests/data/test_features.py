# SPDX-License-Identifier: Apache-2.0
"""Item features: which values become features, their numbers, and rejected columns."""

import pandas as pd
import pytest
from conftest import small_config

from bert4rec_jax.config import DataConfig
from bert4rec_jax.data import ItemFeatures, feature_count, item_features, load_dataset
from bert4rec_jax.errors import UserError

TITLES = ["Nail Oil | Élan", "Oil, 2oz", None, "nail-oil, oil", "élan"]
GENRES = ["Sci-Fi|Drama", " Drama ", "", None, "Sci-Fi|"]
TABLE = pd.DataFrame(
    {
        "item": list("abcde"),
        "title": TITLES,
        "genres": GENRES,
        "brand": ["Wet Wild", None, "wet", "X", "Wild"],
        "year": pd.array([1999, None, 1999, 2001, None], "Int64"),
        "shop": [3.0, None, 3.0, 4.0, 5.0],
        "tags": [["a b", "c"], None, [], ["c", "c"], ["a b"]],
        "maker": [{"name": "X"}] * 5,
        "price": [1.5] * 5,
        "alone": list("vwxyz"),
    },
    index=range(1, 6),
)
LISTS = {
    "title": [["nail", "oil", "élan"], ["oil"], [], ["nail", "oil"], ["élan"]],
    "genres": [["Drama", "Sci-Fi"], ["Drama"], [], [], ["Sci-Fi"]],
    "brand": [["wet", "wild"], [], ["wet"], [], ["wild"]],
    "year": [["1999"], [], ["1999"], [], []],
    "shop": [["3"], [], ["3"], [], []],
    "tags": [["a b", "c"], [], [], ["c"], ["a b"]],
}


@pytest.fixture(autouse=True)
def features_of_two_items(monkeypatch):
    monkeypatch.setattr(item_features, "MIN_ITEMS", 2)


@pytest.mark.parametrize("column", LISTS)
def test_shared_words_values_and_elements_are_features(column):
    features = item_features.from_columns(TABLE, (column,))
    expected = [[f"{column}: {value}" for value in values] for values in LISTS[column]]
    assert [list(names) for names in features.lists(5)] == expected
    assert list(features.names) == sorted(features.names)


def test_several_columns_and_restoring_from_lists(tmp_path):
    features = item_features.from_columns(TABLE, ("tags", "title"))
    lists = features.lists(5)
    assert lists[0].tolist() == ["tags: a b", "tags: c", "title: nail", "title: oil", "title: élan"]
    assert features.items.tolist() == [1] * 5 + [2] + [4] * 3 + [5] * 2
    path = tmp_path / "catalogue.parquet"
    pd.DataFrame({"features": lists}, index=range(1, 6)).to_parquet(path)
    restored = ItemFeatures.from_lists(pd.read_parquet(path)["features"])
    assert restored.names == features.names
    assert restored.fingerprint == features.fingerprint
    other = item_features.from_columns(TABLE, ("title",))
    assert other.fingerprint != features.fingerprint


@pytest.mark.parametrize(
    "column, message",
    [
        ("colour", "'colour', which is not in the item table; its columns are: title, genres"),
        ("item", "its columns are"),
        ("alone", "none of its values is shared by 2 items"),
        ("maker", "of type struct"),
        ("price", "type double and holds neither"),
    ],
)
def test_unusable_columns_are_rejected_in_one_line(column, message):
    with pytest.raises(UserError, match=message) as raised:
        item_features.from_columns(TABLE, ("title", column))
    assert "\n" not in str(raised.value)


def test_features_need_an_item_table(tmp_path):
    lines = [f"{i % 4},{i % 7},{i}" for i in range(40)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user,item,timestamp", *lines]))
    config = DataConfig(cache_dir=str(tmp_path), source="table", path=str(path), features="genres")
    with pytest.raises(UserError, match=r"needs an item table.*config.data.items_path"):
        load_dataset(config)


def test_features_do_not_change_the_prepared_data(cache):
    plain, rich = (
        load_dataset(small_config(cache, **{"data.features": names}).data)
        for names in ("", " genres,title,")
    )
    assert plain.features is None
    assert plain.folder == rich.folder
    assert plain.fingerprint == rich.fingerprint
    assert "genres: 4" in rich.features.names
    assert "features" not in plain.statistics()
    assert rich.statistics()["features"] == len(rich.features.names)
    assert feature_count(plain.features) == 0
    assert feature_count(rich.features) == len(rich.features.names)
