# SPDX-License-Identifier: Apache-2.0
"""Features of items: what of a column becomes one, how they are numbered, and what is refused."""

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
def two_items_share(monkeypatch):
    monkeypatch.setattr(item_features, "MIN_ITEMS", 2)


@pytest.mark.parametrize("column", LISTS)
def test_words_values_and_elements_that_items_share_are_features(column):
    bags = item_features.from_columns(TABLE, (column,))
    assert [list(x) for x in bags.lists(5)] == [
        [f"{column}: {value}" for value in values] for values in LISTS[column]
    ]
    assert list(bags.names) == sorted(bags.names)


def test_columns_come_together_and_lists_give_the_bags_again(tmp_path):
    bags = item_features.from_columns(TABLE, ("tags", "title"))
    assert bags.lists(5)[0].tolist() == [
        "tags: a b",
        "tags: c",
        "title: nail",
        "title: oil",
        "title: élan",
    ]
    assert bags.items.tolist() == [1] * 5 + [2] + [4] * 3 + [5] * 2
    pd.DataFrame({"features": bags.lists(5)}, index=range(1, 6)).to_parquet(
        tmp_path / "catalogue.parquet"
    )
    again = ItemFeatures.from_lists(pd.read_parquet(tmp_path / "catalogue.parquet")["features"])
    assert again.names == bags.names and again.fingerprint == bags.fingerprint
    other = item_features.from_columns(TABLE, ("title",))
    assert other.fingerprint != bags.fingerprint


@pytest.mark.parametrize(
    "column, named",
    [
        ("colour", "'colour', which the item table has not; its columns are: title, genres"),
        ("item", "its columns are"),
        ("alone", "no word or value in it belongs to 2 items"),
        ("maker", "of type struct"),
        ("price", "type double and holds neither"),
    ],
)
def test_what_is_no_feature_is_refused_in_a_line(column, named):
    with pytest.raises(UserError, match=named) as raised:
        item_features.from_columns(TABLE, ("title", column))
    assert "\n" not in str(raised.value)


def test_a_log_without_an_item_table_has_no_features(tmp_path):
    (tmp_path / "log.csv").write_text(
        "user,item,timestamp\n" + "".join(f"{i % 4},{i % 7},{i}\n" for i in range(40))
    )
    config = DataConfig(
        cache_dir=str(tmp_path), source="table", path=str(tmp_path / "log.csv"), features="genres"
    )
    with pytest.raises(UserError, match="needs an item table.*config.data.items_path"):
        load_dataset(config)


def test_features_change_nothing_of_the_data_but_themselves(cache):
    plain, rich = (
        load_dataset(small_config(cache, **{"data.features": names}).data)
        for names in ("", " genres,title,")
    )
    assert (
        plain.features is None
        and plain.folder == rich.folder
        and plain.fingerprint == rich.fingerprint
    )
    assert "genres: 4" in rich.features.names and rich.statistics()["features"] == len(
        rich.features.names
    )
    assert "features" not in plain.statistics()
    assert feature_count(plain.features) == 0 and feature_count(rich.features) == len(
        rich.features.names
    )
