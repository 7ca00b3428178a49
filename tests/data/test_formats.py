# SPDX-License-Identifier: Apache-2.0
"""Every format arrives at the same sequences, with titles and original ids."""

import pathlib
import runpy

import numpy as np
import pandas as pd
import pytest

from bert4rec_jax.config import DataConfig, resolve
from bert4rec_jax.data import load_dataset
from bert4rec_jax.data.sources.movielens import GENRES_100K, split_title

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
# user, item, rating, time, in file order; users out of order, a tie in time, times out of order.
ROWS = [(10, 7, 4, 300), (2, 5, 5, 100), (10, 5, 3, 200), (2, 9, 1, 100), (2, 7, 2, 50), (10, 9, 4, 200)]
SEQUENCES = {"2": ["7", "5", "9"], "10": ["5", "9", "7"]}
MOVIES = [(5, "Café au Lait (1993)", "Comedy|Drama"), (7, "Seven, The (a.k.a. 7) (1995)", ""), (9, "Nine", "War")]


def load(tmp_path, **options):
    return load_dataset(DataConfig(cache_dir=str(tmp_path / "cache"), **options))


def sequences(dataset):
    item, user = dataset.item_table()["item"], dataset.user_table()["user"]
    bounds = zip(dataset.offsets[:-1], dataset.offsets[1:])
    return {user[u]: [item[i] for i in dataset.items[a:b]] for u, (a, b) in enumerate(bounds)}


def write_movielens(folder, name):
    folder.mkdir()
    rows = ["{}|{}|{}|{}".format(*row) for row in ROWS]
    if name == "ml-100k":
        flags = ["|".join(str(int(g in genres.split("|"))) for g in GENRES_100K) for _, _, genres in MOVIES]
        movies = [f"{i}|{title}|01-Jan-1995||http://x|{f}" for (i, title, _), f in zip(MOVIES, flags)]
        (folder / "u.data").write_text("\n".join(rows).replace("|", "\t") + "\n")
        (folder / "u.item").write_text("\n".join(movies) + "\n", encoding="latin-1")
    elif name in ("ml-1m", "ml-10m"):
        movies = [f"{i}::{title}::{genres or '(no genres listed)'}" for i, title, genres in MOVIES]
        (folder / "ratings.dat").write_text("\n".join(rows).replace("|", "::") + "\n")
        encoding = "latin-1" if name == "ml-1m" else "utf-8"
        (folder / "movies.dat").write_text("\n".join(movies) + "\n", encoding=encoding)
    else:
        quoted = [f'{i},"{title}",{genres or "(no genres listed)"}' for i, title, genres in MOVIES]
        header = ["userId,movieId,rating,timestamp"]
        (folder / "ratings.csv").write_text("\r\n".join(header + rows).replace("|", ",") + "\r\n")
        (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *quoted]), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m", "ml-10m", "ml-25m"])
def test_movielens_original_files(tmp_path, name):
    dataset = load(tmp_path, source=name, path=write_movielens(tmp_path / name, name))
    assert sequences(dataset) == SEQUENCES
    assert list(dataset.timestamps) == [50, 100, 100, 200, 200, 300]
    table = dataset.item_table().set_index("item")
    assert table["title"].to_dict() == {"7": "Seven, The (a.k.a. 7)", "5": "Café au Lait", "9": "Nine"}
    assert table["year"].dropna().to_dict() == {"7": 1995, "5": 1993}
    assert table["genres"].dropna().to_dict() == {"5": "Comedy|Drama", "9": "War"}


@pytest.mark.parametrize(
    ("text", "title", "year"),
    [
        ("Matrix, The (1999)", "Matrix, The", 1999),
        ("  11'09\"01 -  September 11 (2002) ", "11'09\"01 - September 11", 2002),
        ("Death Note (2006–2007)", "Death Note", 2006),
        ("Doctor Who (2009– )", "Doctor Who", 2009),
        ("Mona (Mona ja aika) (1983))", "Mona (Mona ja aika)", 1983),
        ("1984 (Nineteen Eighty-Four)", "1984 (Nineteen Eighty-Four)", None),
        ("(1992)", "(1992)", None),
    ],
)
def test_titles_and_years_are_split(text, title, year):
    assert split_title(text) == (title, year)


@pytest.mark.parametrize("kind", ["csv", "tsv", "txt", "semicolon", "colons", "bare", "parquet", "folder"])
def test_tables_of_every_kind(tmp_path, kind):
    frame = pd.DataFrame(ROWS, columns=["person", "thing", "stars", "when"])
    options = dict(user_column="person", item_column="thing", time_column="when", rating_column="stars")
    path = tmp_path / f"log.{kind}"
    if kind in ("parquet", "folder"):
        path = tmp_path / "log.parquet" if kind == "parquet" else tmp_path / "set" / "interactions.parquet"
        path.parent.mkdir(exist_ok=True)
        frame.to_parquet(path)
    elif kind == "bare":
        frame.to_csv(path, header=False, index=False)
        options = dict(user_column="1", item_column="2", rating_column="3", time_column="4")
    else:
        text = frame.to_csv(index=False)
        path.write_text(
            text.replace(",", {"csv": ",", "tsv": "\t", "txt": "|", "semicolon": ";", "colons": "::"}[kind])
        )
    items = pd.DataFrame(
        {"thing": [9, 5, 4, 5], "title": ["Nine", "Five", "Four", "Again"], "colour": ["r", "g", "b", "x"]}
    )
    if kind == "folder":
        items.to_parquet(tmp_path / "set" / "items.parquet")
        path = tmp_path / "set"
    elif kind != "bare":
        items.to_csv(tmp_path / "things.csv", index=False)
        options["items_path"] = str(tmp_path / "things.csv")
    dataset = load(tmp_path, source="table", path=str(path), **options)
    assert sequences(dataset) == SEQUENCES
    assert dataset.num_items == 3 and dataset.items.max() == 3 and dataset.items.dtype == np.int32
    if kind != "bare":
        # An item without a row is kept without title; a row without interactions is left out; the first of two counts.
        table = dataset.item_table().set_index("item")
        assert table["title"].dropna().to_dict() == {"9": "Nine", "5": "Five"}
        assert table["colour"].dropna().to_dict() == {"9": "r", "5": "g"}
        counts = dataset.manifest["counts"]
        assert (counts["items_without_row"], counts["items_only_in_table"]) == (1, 1)
        assert counts["repeated_rows_in_item_table"] == 1


def test_lines_and_sequences(tmp_path):
    (tmp_path / "pairs.txt").write_text("10 5\n2 7\n2 5\n10 9\n10 7\n2 9\n")
    (tmp_path / "rows.txt").write_text("2 7 5 9\n10 5 9\n\n10 7\n")
    for source, path in (("lines", "pairs.txt"), ("sequences", "rows.txt")):
        dataset = load(tmp_path, source=source, path=str(tmp_path / path))
        assert sequences(dataset) == SEQUENCES
        assert dataset.timestamps is None


@pytest.mark.parametrize(
    ("config", "argument", "text"),
    [
        ("amazon", "2014", "{user},{item},{stars}.0,{when}\n"),
        ("amazon", "2023", "user_id,parent_asin,rating,timestamp\n{user},{item},{stars}.0,{when}123\n"),
        ("original_files", "beauty", "{user} {item}\n"),
        ("original_files", "steam", "{user} {item}\n"),
        ("original_files", "ml-20m", "{user} {item}\n"),
    ],
)
def test_shipped_configs_read_the_files_of_their_publishers(tmp_path, config, argument, text):
    header, line = text.splitlines(keepends=True) if text.count("\n") == 2 else ("", text)
    rows = [(user, item, 5, when) for user in range(1, 6) for when, item in enumerate((3, 1, 5, 2, 4), 1)]
    if config == "amazon":  # whose files are in no order
        rows = rows[::-1]
    path = tmp_path / "ratings.csv"
    path.write_text(header + "".join(line.format(user=u, item=i, stars=s, when=w) for u, i, s, w in rows))
    values = runpy.run_path(f"{CONFIGS}/{config}.py")["get_config"](argument)
    values.data.update(path=str(path), cache_dir=str(tmp_path / "cache"))
    dataset = load_dataset(resolve(values).data)
    assert sequences(dataset) == {str(user): list("31524") for user in range(1, 6)}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        (["2020-01-02", "2020-01-01"], [1577836800, 1577923200]),
        (["2020-01-01T00:00:01.9Z", "2020-01-01T01:00:01.2+01:00"], [1577836801, 1577836801]),
        ([1.7, 1.2], [1, 1]),
    ],
)
def test_times_may_be_dates_or_fractions(tmp_path, suffix, values, seconds):
    frame = pd.DataFrame({"user": ["a", "a"], "item": ["late", "early"], "timestamp": values})
    if suffix == "csv":
        frame.to_csv(tmp_path / "log.csv", index=False)
    else:
        if isinstance(values[0], str):
            frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True, format="ISO8601")
        frame.to_parquet(tmp_path / "log.parquet")
    dataset = load(tmp_path, source="table", path=str(tmp_path / f"log.{suffix}"))
    assert sequences(dataset) == {"a": ["early", "late"]}  # the order uses the fraction, the array holds seconds
    assert list(dataset.timestamps) == seconds


def test_ids_are_kept_as_written(tmp_path):
    (tmp_path / "log.csv").write_text('user,item,timestamp\nü,0001, 1\nü,"1",2\nü,B00A,3\nü, B00A ,4\n')
    dataset = load(tmp_path, source="table", path=str(tmp_path / "log.csv"))
    assert sequences(dataset) == {"ü": ["0001", "1", "B00A", "B00A"]}


def test_large_files_are_read_in_blocks(tmp_path, monkeypatch):
    """Ids get the same code in every block, and a line break inside quotes does not end a block."""
    monkeypatch.setattr("bert4rec_jax.data.sources.delimited._BLOCK_BYTES", 100)
    rows = [(i % 7, f'"item\n{i % 11}"', i) for i in range(500)]
    (tmp_path / "log.csv").write_text("user,item,timestamp\n" + "".join("{},{},{}\n".format(*row) for row in rows))
    dataset = load(tmp_path, source="table", path=str(tmp_path / "log.csv"))
    assert (dataset.num_users, dataset.num_items) == (7, 11)
    assert sequences(dataset)["3"] == [f"item\n{i % 11}" for i in range(3, 500, 7)]
