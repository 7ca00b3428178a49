# SPDX-License-Identifier: Apache-2.0
"""Every format arrives at the same sequences, with titles and original ids."""

import pathlib
import runpy

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import data_and_filter

from bert4rec_jax.config import resolve
from bert4rec_jax.data import load_dataset, split_dataset
from bert4rec_jax.data.sources.movielens import GENRES_100K, split_title
from bert4rec_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("every_engine")

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
# user, item, rating, time, in file order; users out of order, a tie in time, times out of order.
ROWS = [
    (10, 7, 4, 300),
    (2, 5, 5, 100),
    (10, 5, 3, 200),
    (2, 9, 1, 100),
    (2, 7, 2, 50),
    (10, 9, 4, 200),
]
SEQUENCES = {"2": ["7", "5", "9"], "10": ["5", "9", "7"]}
MOVIES = [
    (5, "Café au Lait (1993)", "Comedy|Drama"),
    (7, "Seven, The (a.k.a. 7) (1995)", ""),
    (9, "Nine", "War"),
]


def load(tmp_path, **options):
    options["cache_dir"] = str(tmp_path / "cache")
    return load_dataset(*data_and_filter(**options))


def sequences(dataset):
    item, user = dataset.item_table()["item"], dataset.user_table()["user"]
    bounds = zip(dataset.offsets[:-1], dataset.offsets[1:])
    return {user[u]: [item[i] for i in dataset.items[a:b]] for u, (a, b) in enumerate(bounds)}


def write_movielens(folder, name):
    folder.mkdir()
    rows = ["{}|{}|{}|{}".format(*row) for row in ROWS]
    if name == "ml-100k":
        flags = [
            "|".join(str(int(g in genres.split("|"))) for g in GENRES_100K)
            for _, _, genres in MOVIES
        ]
        movies = [
            f"{i}|{title}|01-Jan-1995||http://x|{f}" for (i, title, _), f in zip(MOVIES, flags)
        ]
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
        (folder / "movies.csv").write_text(
            "\n".join(["movieId,title,genres", *quoted]), encoding="utf-8"
        )
    return str(folder)


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m", "ml-10m", "ml-25m"])
def test_movielens_original_files(tmp_path, name):
    dataset = load(tmp_path, source=name, path=write_movielens(tmp_path / name, name))
    assert sequences(dataset) == SEQUENCES
    assert list(dataset.timestamps) == [50, 100, 100, 200, 200, 300]
    table = dataset.item_table().set_index("item")
    assert table["title"].to_dict() == {
        "7": "Seven, The (a.k.a. 7)",
        "5": "Café au Lait",
        "9": "Nine",
    }
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


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "txt", "semicolon", "colons", "bare", "parquet", "folder"]
)
def test_tables_of_every_kind(tmp_path, kind):
    frame = pd.DataFrame(ROWS, columns=["person", "thing", "stars", "when"])
    options = dict(
        user_column="person", item_column="thing", time_column="when", rating_column="stars"
    )
    path = tmp_path / f"log.{kind}"
    if kind in ("parquet", "folder"):
        path = (
            tmp_path / "log.parquet"
            if kind == "parquet"
            else tmp_path / "set" / "interactions.parquet"
        )
        path.parent.mkdir(exist_ok=True)
        frame.to_parquet(path)
    elif kind == "bare":
        frame.to_csv(path, header=False, index=False)
        options = dict(user_column="1", item_column="2", rating_column="3", time_column="4")
    else:
        text = frame.to_csv(index=False)
        path.write_text(
            text.replace(
                ",", {"csv": ",", "tsv": "\t", "txt": "|", "semicolon": ";", "colons": "::"}[kind]
            )
        )
    items = pd.DataFrame(
        {
            "thing": [9, 5, 4, 5],
            "title": ["Nine", "Five", "Four", "Again"],
            "colour": ["r", "g", "b", "x"],
        }
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
        (
            "amazon",
            "2023",
            "user_id,parent_asin,rating,timestamp\n{user},{item},{stars}.0,{when}123\n",
        ),
        ("original_files", "beauty", "{user} {item}\n"),
        ("original_files", "steam", "{user} {item}\n"),
        ("original_files", "ml-20m", "{user} {item}\n"),
    ],
)
def test_shipped_configs_read_the_files_of_their_publishers(tmp_path, config, argument, text):
    header, line = text.splitlines(keepends=True) if text.count("\n") == 2 else ("", text)
    rows = [
        (user, item, 5, when)
        for user in range(1, 6)
        for when, item in enumerate((3, 1, 5, 2, 4), 1)
    ]
    if config == "amazon":  # whose files are in no order
        rows = rows[::-1]
    path = tmp_path / "ratings.csv"
    path.write_text(
        header + "".join(line.format(user=u, item=i, stars=s, when=w) for u, i, s, w in rows)
    )
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
    assert sequences(dataset) == {
        "a": ["early", "late"]
    }  # the order uses the fraction, the array holds seconds
    assert list(dataset.timestamps) == seconds


def test_ids_are_kept_as_written(tmp_path):
    (tmp_path / "log.csv").write_text(
        'user,item,timestamp\nü,0001, 1\nü,"1",2\nü,B00A,3\nü, B00A ,4\n'
    )
    dataset = load(tmp_path, source="table", path=str(tmp_path / "log.csv"))
    assert sequences(dataset) == {"ü": ["0001", "1", "B00A", "B00A"]}


def test_large_files_are_read_in_blocks(tmp_path, monkeypatch):
    """Ids get the same code in every block, and a line break inside quotes does not end a block."""
    monkeypatch.setattr("bert4rec_jax.data.sources.text._BLOCK_BYTES", 100)
    rows = [(i % 7, f'"item\n{i % 11}"', i) for i in range(500)]
    (tmp_path / "log.csv").write_text(
        "user,item,timestamp\n" + "".join("{},{},{}\n".format(*row) for row in rows)
    )
    dataset = load(tmp_path, source="table", path=str(tmp_path / "log.csv"))
    assert (dataset.num_users, dataset.num_items) == (7, 11)
    assert sequences(dataset)["3"] == [f"item\n{i % 11}" for i in range(3, 500, 7)]


def table_of(tmp_path, name, content, **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load(tmp_path, source="table", path=str(path), **options)


def test_tsv_from_pandas_and_r_is_quoted(tmp_path):
    r = '"user"\t"item"\t"timestamp"\n"1"\t"a b"\t1\n"1"\t"c"\t2\n'
    assert sequences(table_of(tmp_path, "r.tsv", r)) == {"1": ["a b", "c"]}
    pandas = 'user\titem\ttimestamp\n1\tplain\t1\n1\t"tab\there, ""quoted"""\t2\n'
    assert sequences(table_of(tmp_path, "pandas.tsv", pandas)) == {
        "1": ["plain", 'tab\there, "quoted"']
    }
    (tmp_path / "items.tsv").write_text('item\ttitle\na\tPlain\nb\t"Say ""Yes"""\n')
    dataset = table_of(
        tmp_path,
        "log.tsv",
        "user\titem\ttimestamp\n1\ta\t1\n1\tb\t2\n",
        items_path=str(tmp_path / "items.tsv"),
    )
    assert dataset.item_table()["title"].tolist() == ["Plain", 'Say "Yes"']


def test_quotation_marks_that_quote_nothing_stay_in_a_tsv(tmp_path):
    text = 'user\titem\ttimestamp\n1\t7" single\t1\n1\t"Heroes\t2\n1\t"a" b"\t3\n'
    assert sequences(table_of(tmp_path, "log.tsv", text)) == {
        "1": ['7" single', '"Heroes', '"a" b"']
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("u|Heat, The|x\nu|Alien, The|y\n", ["Heat, The", "Alien, The"]),
        ("u,Heat,2020-01-01 10:00:00\nu,Up,2020-01-02 10:00:00\n", ["Heat", "Up"]),
        ("u\ta,b\tx,y\nu\tc,d\tx,y\n", ["a,b", "c,d"]),
        ("u a,b\nu c,d,e\n", ["a,b", "c,d,e"]),
    ],
)
def test_the_separator_splits_all_first_lines_alike(tmp_path, text, expected):
    columns = dict(user_column="1", item_column="2", time_column="")
    assert sequences(table_of(tmp_path, "log.txt", text, **columns)) == {"u": expected}


def test_the_first_row_may_have_a_long_text(tmp_path):
    text = "user,item,timestamp,review\nu,b,2," + "x" * 200_000 + "\nu,a,1,\n"
    assert sequences(table_of(tmp_path, "log.csv", text)) == {"u": ["a", "b"]}


def test_zstandard_may_begin_with_a_skippable_frame(tmp_path):
    content = pa.Codec("zstd").compress(b"user,item,timestamp\nu,a,1\n", asbytes=True)
    frame = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    assert sequences(table_of(tmp_path, "log.csv.zst", frame + content)) == {"u": ["a"]}


@pytest.mark.parametrize("kind", ["gz", "bz2", "zst"])
@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "misnamed"])
def test_compressed_logs(tmp_path, monkeypatch, kind, name):
    monkeypatch.setattr("bert4rec_jax.data.sources.text._BLOCK_BYTES", 50)
    separator = "\t" if name == "log.tsv" else ","
    rows = [(i % 7, i % 11, i) for i in range(100)]
    text = (
        separator.join(["user", "item", "timestamp"])
        + "\n"
        + "".join(f"{separator.join(map(str, r))}\n" for r in rows)
    )
    codec = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}[kind]
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(text.encode())
    packed = sink.getvalue().to_pybytes()
    items = tmp_path / f"items.csv.{kind}"
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(b"item,title\n3,Three\n")
    items.write_bytes(sink.getvalue().to_pybytes())
    name = name if name == "misnamed" else f"{name}.{kind}"
    dataset = table_of(tmp_path, name, packed, items_path=str(items))
    assert (
        dataset.manifest["interactions"] == 100 and dataset.item_table()["title"].notna().sum() == 1
    )
    with pytest.raises(UserError, match=r"cut short.*create or download it again"):
        table_of(tmp_path, name, packed[: len(packed) // 2])


def test_lines_of_blanks_are_as_good_as_empty_ones(tmp_path):
    text = "  \n\nuser\titem\ttimestamp\n1\ta\t1\n   \n1\tb\t2\n\t\t\n \t\r\n1\tc\t3\n"
    assert sequences(table_of(tmp_path, "log.tsv", text)) == {"1": ["a", "b", "c"]}
    assert sequences(table_of(tmp_path, "log.csv", "user,item,timestamp\n1,a,1\n  \n1,b,2\n")) == {
        "1": ["a", "b"]
    }
    (tmp_path / "pairs.txt").write_text("1 a\n  \n1 b\n")
    assert sequences(load(tmp_path, source="lines", path=str(tmp_path / "pairs.txt"))) == {
        "1": ["a", "b"]
    }
    (tmp_path / "rows.txt").write_text("1 a b\n  \n2 b\n")
    assert load(tmp_path, source="sequences", path=str(tmp_path / "rows.txt")).num_users == 2


def test_a_log_without_header_may_have_an_item_table_with_one(tmp_path):
    (tmp_path / "items.csv").write_text("item,title\na,An A\n")
    (tmp_path / "films.csv").write_text("film,title\na,An A\n")
    (tmp_path / "bare.csv").write_text("a,An A\n")
    columns = dict(user_column="1", item_column="2", time_column="3")
    for name, more in (
        ("items", {}),
        ("films", {"key_column": "film"}),
        ("bare", {"key_column": "1", "title_column": "2"}),
    ):
        dataset = table_of(
            tmp_path,
            "log.csv",
            "1,a,1\n1,b,2\n",
            items_path=str(tmp_path / f"{name}.csv"),
            **columns,
            **more,
        )
        assert dataset.item_table()["title"].tolist()[0] == "An A"
    with pytest.raises(
        UserError, match=r"films.csv lacks the column 'item'.*Set config.data.key_column"
    ):
        table_of(tmp_path, "log.csv", "1,a,1\n", items_path=str(tmp_path / "films.csv"), **columns)


def test_preparation_says_what_it_dropped_filled_repeated_and_did_not_find(tmp_path, capsys):
    (tmp_path / "items.csv").write_text("item,title\n5,Five\n6,Six\n8,Eight\n")
    text = "user,item,timestamp,rating\n1,5.0,10,5\n1,5.0,10,5\n1,6.0,,5\n2,5.0,3,1\n"
    table_of(
        tmp_path,
        "log.csv",
        text,
        items_path=str(tmp_path / "items.csv"),
        rating_column="rating",
        min_rating=2.0,
    )
    (line,) = capsys.readouterr().err.splitlines()
    for part in (
        "3 interactions of 1 users with 2 items",
        "min_rating 2 dropped 1 of 4 interactions, 1 of 2 users and 0 of 2 items",
        "1 had no time and took the time of the row before",
        "1 repeat user, item and time of another and were kept",
        "2 items are missing from the item table, such as '5.0'",
        "2 would match without '.0'",
        "3 of its rows are items without interactions",
    ):
        assert part in line
    (tmp_path / "names.csv").write_text("item,name\n5,Five\n")
    table_of(
        tmp_path, "log2.csv", "user,item,timestamp\n1,5,1\n", items_path=str(tmp_path / "names.csv")
    )
    assert (
        "the item table lacks a title column (name it with config.data.title_column)"
        in capsys.readouterr().err
    )


def test_the_manifest_says_how_many_events_and_targets_tie_in_time(tmp_path):
    rows = [(1, 1, 5), (1, 2, 5), (1, 3, 6), (2, 1, 6), (2, 2, 7), (2, 3, 7), (3, 1, 7), (3, 2, 7)]
    text = "user,item,timestamp\n" + "".join("{},{},{}\n".format(*row) for row in rows)
    ties = table_of(tmp_path, "log.csv", text).manifest["ties"]
    assert ties == {
        "events": 3,
        "share_of_events": 3 / 8,
        "leave_one_out_targets": 1,
        "share_of_leave_one_out_targets": 1 / 2,
    }


def test_old_prepared_folders_are_found_and_removed(tmp_path, monkeypatch, capsys):
    from bert4rec_jax.data import clean

    kept = load(tmp_path, source="lines", path=write(tmp_path / "a.txt"))
    stale = load(tmp_path, source="lines", path=write(tmp_path / "b.txt"))
    (tmp_path / "b.txt").write_text("3 4\n")
    monkeypatch.setattr("sys.argv", ["clean", f"--cache_dir={tmp_path}/cache"])
    clean.main()
    said = capsys.readouterr().out
    assert (
        "b.txt has changed" in said
        and "a.txt has" not in said
        and pathlib.Path(stale.folder).exists()
    )
    monkeypatch.setattr("sys.argv", ["clean", f"--cache_dir={tmp_path}/cache", "--remove"])
    clean.main()
    assert pathlib.Path(kept.folder).exists() and not pathlib.Path(stale.folder).exists()


def write(path):
    path.write_text("1 2\n1 3\n")
    return str(path)


def test_a_cache_that_has_grown_is_mentioned(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bert4rec_jax.data.prepare._MANY_FOLDERS", 2)
    load(tmp_path, source="lines", path=write(tmp_path / "a.txt"))
    assert "prepared folders" not in capsys.readouterr().err
    load(tmp_path, source="lines", path=write(tmp_path / "b.txt"))
    assert "contains 2 prepared folders, 0.0 GiB" in capsys.readouterr().err


def test_yambda_in_its_schema(tmp_path):
    random, day, rows = np.random.default_rng(0), 86_400, 3000
    end = 301 * day + 30 * 60
    frame = pd.DataFrame(
        {
            "uid": random.integers(1, 30, rows) * 10,
            "timestamp": random.integers(0, end // 5, rows) * 5,
            "item_id": random.integers(1, 99, rows),
            "is_organic": 1,
            "played_ratio_pct": random.integers(0, 150, rows),
            "track_length_seconds": 200,
        }
    )
    frame.loc[0, ["timestamp", "played_ratio_pct"]] = [end - 5, 99]
    kinds = {
        "uid": pa.uint32(),
        "timestamp": pa.uint32(),
        "item_id": pa.uint32(),
        "is_organic": pa.uint8(),
        "played_ratio_pct": pa.uint16(),
        "track_length_seconds": pa.uint32(),
    }
    pq.write_table(
        pa.Table.from_pandas(frame, pa.schema(kinds), preserve_index=False),
        tmp_path / "listens.parquet",
    )
    values = runpy.run_path(f"{CONFIGS}/yambda.py")["get_config"]("5B")
    values.data.update(
        path=str(tmp_path / "listens.parquet"), cache_dir=str(tmp_path / "cache"), memory="1GiB"
    )
    config = resolve(values)
    dataset = load_dataset(config.data, config.filter)
    heard = frame[frame["played_ratio_pct"] >= 50]
    assert (
        dataset.manifest["interactions"] == len(heard)
        and dataset.num_users == heard["uid"].nunique()
    )
    split = split_dataset(dataset, config.split)
    test_cut, gap_cut = end - 5 + 1 - day, end - 5 + 1 - day - 30 * 60
    trained = np.concatenate(
        [dataset.timestamps[a:b] for a, b in zip(dataset.offsets, split.train_stop)]
    )
    assert len(trained) == (heard["timestamp"] < gap_cut - day).sum()
    assert (dataset.timestamps[split.test_targets] >= test_cut).all() and len(split.test_users) > 1
    valid = dataset.timestamps[split.valid_targets]
    assert ((valid >= gap_cut - day) & (valid < gap_cut)).all() and len(valid) > 1
    assert "neither trained on nor predicted, but belong to the test histories" in split.description


def test_amazon_2023_in_parts(tmp_path):
    random = np.random.default_rng(0)
    values = runpy.run_path(f"{CONFIGS}/amazon.py")["get_config"]("2023")
    (tmp_path / "rating_only").mkdir()
    for name in ("Books", "All_Beauty"):
        frame = pd.DataFrame(
            {
                "user_id": [f"AE{n:020X}" for n in random.integers(0, 30, 800)],
                "parent_asin": [f"B0{n:08d}" for n in random.integers(0, 40, 800)],
                "rating": random.integers(1, 6, 800).astype(float),
                "timestamp": random.integers(1.6e12, 1.7e12, 800),
            }
        )
        frame.to_csv(tmp_path / "rating_only" / f"{name}.csv.gz", index=False)
    values.data.update(path=str(tmp_path / "rating_only"), cache_dir=str(tmp_path / "cache"))
    dataset = load_dataset(resolve(values).data)
    assert dataset.manifest["counts"]["filters"][0]["interactions"] == 1600
    assert dataset.timestamps.max() > 1.6e12


def write_parts(folder, *names):
    """Writes parts of one event each, by user "u", of the items "0", "1" and so on."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = pd.DataFrame({"user": ["u"], "item": [str(number)], "timestamp": [number]})
        if name.lower().endswith(".parquet"):
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False)


@pytest.mark.parametrize(
    ("names", "items"),
    [
        (["part1.csv", "PART2.CSV"], ["0", "1"]),
        (["a.parquet", "B.PARQUET"], ["0", "1"]),
        (["part-0.parquet", "_temporary/0/part-1.parquet", ".old/part-2.parquet"], ["0"]),
        (["_day=1/part-0.parquet", "_day=2/part-1.parquet"], ["0", "1"]),
    ],
)
def test_parts_with_capital_extensions_are_read_and_uncommitted_parts_are_not(
    tmp_path, names, items
):
    write_parts(tmp_path / "log", *names)
    dataset = load(tmp_path, source="table", path=str(tmp_path / "log"))
    assert dataset.item_table()["item"].tolist() == items


def test_a_folder_with_parts_in_parquet_and_in_text_is_rejected(tmp_path):
    write_parts(tmp_path / "log", "1.csv", "2.parquet")
    with pytest.raises(UserError, match=r"such as 2.parquet and 1.csv; move one kind"):
        load(tmp_path, source="table", path=str(tmp_path / "log"))


def test_a_single_hive_part_has_the_columns_of_its_folder(tmp_path):
    (tmp_path / "log" / "user=7").mkdir(parents=True)
    frame = pd.DataFrame({"item": ["a", "b"], "timestamp": [1, 2]})
    frame.to_parquet(tmp_path / "log" / "user=7" / "part.parquet")
    dataset = load(tmp_path, source="table", path=str(tmp_path / "log"))
    assert dataset.user_table()["user"].tolist() == ["7"]
    assert dataset.item_table()["item"].tolist() == ["a", "b"]


@pytest.mark.parametrize("columns", [{"item_column": "user"}, {"time_column": "item"}])
def test_one_column_for_two_roles_is_rejected(tmp_path, columns):
    write_parts(tmp_path, "log.csv")
    with pytest.raises(UserError, match=r"config.data.\w+_column are both '(user|item)'"):
        load(tmp_path, source="table", path=str(tmp_path / "log.csv"), **columns)
