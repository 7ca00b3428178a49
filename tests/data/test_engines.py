# SPDX-License-Identifier: Apache-2.0
"""Every engine prepares what a plain Python preparation expects, for every source and filter."""

import gzip
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import SPARK, data_and_filter, load_and_check

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data import load_dataset
from bert4rec_jax.data.engines import pipeline
from bert4rec_jax.data.engines.duckdb_engine import DuckDB
from bert4rec_jax.data.engines.stage_cache import EngineFailed
from bert4rec_jax.errors import UserError


def engines(*cases, spark=None):
    """Returns parameters (engine, case): DuckDB for every case, Spark, which takes seconds to start, for some."""
    chosen = cases if spark is None else spark
    return [pytest.param("duckdb", case, id=f"duckdb-{case}") for case in cases] + [
        pytest.param("spark", case, marks=SPARK, id=f"spark-{case}") for case in chosen
    ]


FILTERS = {
    "none": {},
    "rated": {"min_rating": 2.5},
    "core": {"user_core": 9, "item_core": 12},
    "deep_core": {"user_core": 12, "item_core": 12},
    "repeats": {"duplicate_events": "drop"},
    "first": {"first_users": 7},
    "last": {"first_users": -5},
    "all": {
        "min_rating": 1.5,
        "duplicate_events": "drop",
        "user_core": 2,
        "item_core": 2,
        "first_users": 9,
    },
}


def log(seed=0, rows=900, users=60, items=40):
    """A log with ties in time, repeats, copies of rows, and users and items in no order."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "user": np.floor(users * random.random(rows) ** 2).astype(int) * 7 % 1009,
            "item": np.floor(items * random.random(rows) ** 3).astype(int) * 13 % 997,
            "timestamp": random.integers(10, 60, rows),
            "rating": random.integers(1, 11, rows) / 2,
        }
    )
    return pd.concat([frame, frame.iloc[::50]])


def load(engine, tmp_path, **options):
    """Prepares a log with an engine and compares it with the plain preparation."""
    options |= {"engine": engine, "memory": "1GiB", "cache_dir": str(tmp_path / "cache")}
    return load_and_check(*data_and_filter(**options))


@pytest.mark.parametrize(
    ("engine", "case"),
    engines(
        *[f"{name} {kind}" for name in FILTERS for kind in ("numbers", "texts")],
        spark=["all numbers", "deep_core texts", "repeats texts", "last numbers"],
    ),
)
def test_filters(tmp_path, engine, case):
    frame, (filters, kind) = log(), case.split()
    if kind == "texts":
        frame = frame.assign(
            user="u" + frame["user"].astype(str), item="i" + frame["item"].astype(str)
        )
    frame.to_parquet(tmp_path / "log.parquet", row_group_size=100)
    dataset = load(
        engine,
        tmp_path,
        source="table",
        path=str(tmp_path / "log.parquet"),
        rating_column="rating",
        **FILTERS[filters],
    )
    assert dataset.manifest["ties"]["events"] > 0
    assert dataset.manifest["counts"]["exact_duplicates"] > 0 or filters in (
        "repeats",
        "all",
        "last",
    )


def numbers_as_text(frame):
    return frame.assign(user=[f"{u:0{3 + u % 2}d}" for u in frame["user"]])


def mixed_texts(frame):
    return frame.assign(
        user=["é" * (u % 3) + f" {u}" for u in frame["user"]],
        item=[f" B{i}" for i in frame["item"]],
    )


def huge_numbers(frame):
    """Ids of up to 64 bits, of which some exceed int64; they sort as text."""
    large = lambda ids: ids.astype(np.uint64) * np.uint64(2**64 // int(ids.max() + 1))  # noqa: E731
    return frame.assign(user=large(frame["user"]), item=large(frame["item"]))


def late_text(frame):
    users = frame["user"].astype(object)
    users.iloc[-1] = "last"
    return frame.assign(user=users)


def gaps(frame):
    times = frame["timestamp"].astype("Int64").mask(np.arange(len(frame)) % 3 == 0)
    return frame.assign(timestamp=times.mask(frame["user"] % 5 == 0))


def fractions(frame):
    return frame.assign(timestamp=frame["timestamp"] + np.arange(len(frame)) % 4 / 4)


def dates(frame):
    return frame.assign(
        timestamp=pd.to_datetime(frame["timestamp"] * 1_234_567, unit="ms", utc=True)
    )


SHAPES = {
    "plain": lambda frame: frame,
    "numbers_as_text": numbers_as_text,
    "mixed_texts": mixed_texts,
    "huge_numbers": huge_numbers,
    "late_text": late_text,
    "gaps": gaps,
    "no_times": lambda frame: frame.assign(timestamp=pd.array([pd.NA] * len(frame), "Int64")),
    "fractions": fractions,
    "dates": dates,
    "negative": lambda frame: frame.assign(
        user=frame["user"] - 30, timestamp=frame["timestamp"] - 35
    ),
    "floats": lambda frame: frame.assign(
        user=frame["user"].astype(float), item=frame["item"].astype(float)
    ),
}


@pytest.mark.parametrize(
    ("engine", "case"),
    engines(
        *[f"{shape} {form}" for shape in SHAPES for form in ("csv", "parquet")],
        spark=[
            "numbers_as_text csv",
            "mixed_texts parquet",
            "gaps csv",
            "gaps parquet",
            "no_times parquet",
            "fractions csv",
            "dates parquet",
            "negative parquet",
        ],
    ),
)
def test_columns_of_every_kind(tmp_path, monkeypatch, engine, case):
    shape, form = case.split()
    monkeypatch.setattr("bert4rec_jax.data.sources.text._BLOCK_BYTES", 3000)
    frame = SHAPES[shape](log())
    path = tmp_path / f"log.{form}"
    if form == "parquet":
        if shape == "late_text":
            frame["user"] = frame["user"].astype(str)
        frame.to_parquet(path, row_group_size=77)
    else:
        frame.to_csv(path, index=False)
    items = pd.DataFrame({"item": np.arange(0, 997, 3), "title": "T", "year": 1999})
    items.to_csv(tmp_path / "items.csv", index=False)
    dataset = load(
        engine,
        tmp_path,
        source="table",
        path=str(path),
        items_path=str(tmp_path / "items.csv"),
        user_core=2,
    )
    assert (dataset.timestamps is None) == (shape == "no_times")


QUOTES = {
    "quotes": lambda frame: frame.assign(user=["'" * (u % 3) + f"\\{u}%" for u in frame["user"]])
}


@pytest.mark.parametrize(
    "shape", ["plain", "numbers_as_text", "mixed_texts", "no_times", "negative", "quotes"]
)
@pytest.mark.parametrize("rows", [1, 60, 500, 5000])
def test_users_of_a_long_log_are_sorted_a_range_at_a_time(tmp_path, monkeypatch, shape, rows):
    """One row: a range for every user; 500: two ranges; 5,000: a single one."""
    for name, value in (("_LONG_ROWS", 0), ("_RANGE_ROWS", rows), ("_MOST_RANGES", 1000)):
        monkeypatch.setattr(pipeline, name, value)
    saved = []
    save = DuckDB.save
    monkeypatch.setattr(
        DuckDB,
        "save",
        lambda self, sql, path, title: (saved.append(title), save(self, sql, path, title)),
    )
    frame = (SHAPES | QUOTES)[shape](log())
    frame.to_parquet(tmp_path / "log.parquet", row_group_size=77)
    config = DataConfig(
        "table",
        str(tmp_path / "log.parquet"),
        cache_dir=str(tmp_path / "uid=7" / "[1]*? 'it'"),
    )
    dataset = load_and_check(config, FilterConfig(item_core=3))
    parts = [title for title in saved if title.startswith("sorting events")]
    # A range has the requested length, up to the rest of its last user.
    longest = int(np.diff(dataset.offsets).max())
    assert (
        len(dataset.items) / (rows + longest)
        <= len(parts)
        <= min(len(dataset.items) / rows + 1, dataset.num_users)
    )
    assert parts[-1] == f"sorting events, part {len(parts)} of {len(parts)}"


@pytest.mark.parametrize(
    ("engine", "source"),
    engines(
        "ml-100k",
        "ml-1m",
        "ml-25m",
        "lines",
        "sequences",
        "synthetic",
        "tsv.gz",
        "parts",
        "hive",
        "no_time_column",
        spark=["ml-1m", "lines", "synthetic", "parts", "hive", "no_time_column"],
    ),
)
def test_sources_of_every_kind(tmp_path, engine, source):
    frame = log()
    path, options = tmp_path / "set", {"source": "table"}
    path.mkdir()
    if source.startswith("ml-"):
        separator, names = {
            "ml-100k": ("\t", ("u.data", "u.item")),
            "ml-1m": ("::", ("ratings.dat", "movies.dat")),
            "ml-25m": (",", ("ratings.csv", "movies.csv")),
        }[source]
        header = "userId,movieId,rating,timestamp\n" if source == "ml-25m" else ""
        rows = zip(frame["user"], frame["item"], frame["rating"], frame["timestamp"])
        (path / names[0]).write_text(
            header + "".join(separator.join(map(str, row)) + "\n" for row in rows)
        )
        movie = {
            "ml-100k": "13|A (1990)|x||u" + "|0" * 19,
            "ml-1m": "13::A (1990)::War",
            "ml-25m": "m,t,g\n13,A,War",
        }
        (path / names[1]).write_text(movie[source] + "\n")
        options = {"source": source, "min_rating": 2.0}
    elif source == "lines":
        path = path / "log.txt"
        path.write_text("".join(f"{u} {i}\n" for u, i in zip(frame["user"], frame["item"])))
        options = {"source": "lines"}
    elif source == "sequences":
        path = path / "log.txt"
        path.write_text(
            "".join(
                f"{u} {' '.join(map(str, part))}\n" for u, part in frame.groupby("user")["item"]
            )
        )
        options = {"source": "sequences", "first_users": 20}
    elif source == "synthetic":
        path, options = "", {"source": "synthetic", "user_core": 20}
    elif source == "tsv.gz":
        path = path / "log.tsv.gz"
        path.write_bytes(gzip.compress(frame.to_csv(index=False, sep="\t").encode()))
    elif source == "no_time_column":
        frame.to_parquet(path / "interactions.parquet")
        options = {"source": "table", "time_column": ""}
    else:
        for number in range(12):
            part = (
                path / (f"day={number + 1}" if source == "hive" else "") / f"part-{number}.parquet"
            )
            part.parent.mkdir(exist_ok=True)
            frame.iloc[number * 70 : (number + 1) * 70].to_parquet(part, row_group_size=20)
        if source == "hive":
            options["where"] = "day >= 3 AND rating > 1"
            options["time_column"] = "timestamp"
    load(engine, tmp_path, path=str(path), **options)


@pytest.mark.parametrize(("engine", "form"), engines("csv", "parquet", "texts", spark=["parquet"]))
def test_rows_are_filtered_by_an_sql_condition(tmp_path, engine, form):
    frame = log().assign(played=lambda f: f["rating"] * 10)
    path = str(tmp_path / ("log.csv" if form == "csv" else "log.parquet"))
    if form == "csv":
        frame.to_csv(path, index=False)
    else:
        (frame.assign(user=frame["user"].astype(str)) if form == "texts" else frame).to_parquet(
            path
        )
    dataset = load(
        engine, tmp_path, source="table", path=path, where="played >= 25 AND timestamp < 50"
    )
    assert (
        dataset.manifest["interactions"]
        == ((frame["played"] >= 25) & (frame["timestamp"] < 50)).sum()
    )
    with pytest.raises(UserError, match="config.data.where = 'plaid > 1' cannot be applied to"):
        load_dataset(
            DataConfig(
                source="table", path=path, where="plaid > 1", engine=engine, cache_dir=str(tmp_path)
            )
        )


@pytest.mark.parametrize(
    ("early", "late", "where", "kept"),
    [
        ("55", "55.5", "extra > 55", "late"),
        ("55.5", "55", "extra >= 55", "both"),
        ("", "55", "extra = 55", "late"),
        ("", "text", "extra = 'text'", "late"),
        ("55", "text", "extra = '55'", "early"),
        ("55", "", "extra = 55", "early"),
        ("true", "maybe", "CAST(extra AS VARCHAR) = 'maybe'", "late"),
        ("2020-01-01", "2020-01-02 10:00:00", "extra >= '2020-01-01'", "both"),
        ("1.5", "0x1F", "CAST(extra AS VARCHAR) = '0x1F'", "late"),
    ],
)
def test_a_condition_means_the_same_in_all_blocks_of_a_text(
    tmp_path, monkeypatch, early, late, where, kept
):
    frame = log().assign(extra=lambda f: np.where(np.arange(len(f)) < len(f) // 2, early, late))
    frame.to_csv(tmp_path / "log.csv", index=False)
    options = dict(source="table", path=str(tmp_path / "log.csv"), where=where)
    values = {"early": [early], "late": [late], "both": [early, late]}[kept]
    for size in (1 << 24, 3000):
        monkeypatch.setattr("bert4rec_jax.data.sources.text._BLOCK_BYTES", size)
        dataset = load("duckdb", tmp_path, **options)
        assert dataset.manifest["interactions"] == frame["extra"].isin(values).sum()


def test_a_failing_engine_is_told_although_a_text_is_read_twice(tmp_path, monkeypatch):
    def fail(*_):
        raise EngineFailed("out of order")

    monkeypatch.setattr(DuckDB, "rows", fail)
    log().to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(UserError, match="cannot be read: out of order"):
        load_dataset(
            DataConfig(
                source="table",
                path=str(tmp_path / "log.csv"),
                where="rating > 1",
                engine="duckdb",
                cache_dir=str(tmp_path / "c"),
            )
        )


def test_a_number_among_texts_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr("bert4rec_jax.data.sources.text._BLOCK_BYTES", 3000)
    frame = log().assign(extra=lambda f: np.where(np.arange(len(f)) < len(f) // 2, "55", "text"))
    frame.to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(UserError, match="config.data.where = 'extra > 50' cannot be applied to"):
        load_dataset(
            DataConfig(
                source="table",
                path=str(tmp_path / "log.csv"),
                where="extra > 50",
                cache_dir=str(tmp_path / "c"),
            )
        )


@pytest.mark.parametrize(("engine", "form"), engines("parquet", "csv"))
def test_names_of_files_are_no_patterns(tmp_path, engine, form):
    folder = tmp_path / "it's [a] {b} *? %20"
    (folder / "log").mkdir(parents=True)
    frame = log()
    # Of names, not of how a URL would write them: "part b" comes before "part!a". All events tie in time.
    for number, name in enumerate(("part!a", "part b", "part[1]", "part1")):
        part = frame.iloc[number * 200 : number * 200 + 200].assign(timestamp=7)
        if form == "parquet":
            part.to_parquet(folder / "log" / f"{name}.parquet")
        else:
            part.to_csv(folder / "log" / f"{name}.csv", index=False)
    dataset = load_and_check(
        DataConfig(
            source="table",
            engine=engine,
            path=str(folder / "log"),
            spill_dir=str(folder / "spill"),
            cache_dir=str(folder / "cache"),
        ),
        FilterConfig(user_core=2),
    )
    assert dataset.manifest["counts"]["filters"][0]["interactions"] == 800


FAULTS = {
    "no_user": (
        lambda f: f.assign(user=[None, *f["user"][1:]]).astype({"user": "Int64"}),
        "row 1 .*the user is missing",
    ),
    "no_rating": (
        lambda f: f.assign(rating=[*f["rating"][:-1], float("nan")]),
        "row 918 .row group 10.: .*rating",
    ),
    "no_item": (lambda f: f.assign(item=""), "row 1 .row group 1.: the item is empty"),
    "no_rows": (lambda f: f.head(0), "does not contain any rows"),
}


@pytest.mark.parametrize(("engine", "fault"), engines(*FAULTS, spark=["no_user", "no_rating"]))
def test_faulty_rows_have_the_same_names(tmp_path, engine, fault):
    change, message = FAULTS[fault]
    change(log()).to_parquet(tmp_path / "log.parquet", row_group_size=100)
    options = dict(source="table", path=str(tmp_path / "log.parquet"), rating_column="rating")
    assert load(engine, tmp_path, **options) is None
    with pytest.raises(UserError, match=message):
        load_dataset(DataConfig(engine=engine, cache_dir=str(tmp_path / "c"), **options))


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("spark", marks=SPARK)])
def test_a_damaged_row_group_is_named(tmp_path, engine):
    path = tmp_path / "log.parquet"
    log().to_parquet(path, row_group_size=100, compression="zstd")
    start = pq.ParquetFile(path).metadata.row_group(4).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"log.parquet \(row group 5 of 10\) is not a complete Parquet file"
    ):
        load_dataset(
            DataConfig(source="table", path=str(path), engine=engine, cache_dir=str(tmp_path / "c"))
        )


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("spark", marks=SPARK)])
def test_faulty_lines_have_the_same_names(tmp_path, engine):
    text = log().to_csv(index=False) + "1,2,soon,3\n"
    (tmp_path / "log.csv").write_text(text)
    assert (
        load(
            engine, tmp_path, source="table", path=str(tmp_path / "log.csv"), rating_column="rating"
        )
        is None
    )


ROW = st.tuples(
    st.sampled_from(["a", "b", "1", "02", "2"]),
    st.integers(0, 4),
    st.none() | st.integers(0, 3),
    st.integers(0, 4),
)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(ROW, min_size=1, max_size=30),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["keep", "drop"]),
)
def test_any_log(tmp_path_factory, rows, user_core, item_core, repeats):
    folder = tmp_path_factory.mktemp("log")
    lines = [",".join("" if x is None else str(x) for x in row) for row in rows]
    (folder / "log.csv").write_text("\n".join(["user,item,timestamp,rating", *lines]))
    load(
        "duckdb",
        folder,
        source="table",
        path=str(folder / "log.csv"),
        user_core=user_core,
        item_core=item_core,
        duplicate_events=repeats,
        rating_column="rating",
        min_rating=1.0,
    )
    shutil.rmtree(folder)


def test_what_an_engine_reads_by_url(tmp_path):
    frame = log()
    frame.to_parquet(tmp_path / "log.parquet")
    options = dict(source="table", cache_dir=str(tmp_path / "c"))
    local = load_dataset(DataConfig(path=str(tmp_path / "log.parquet"), **options))
    remote = load_dataset(DataConfig(path=f"file://{tmp_path}/log.parquet", **options))
    assert remote.fingerprint == local.fingerprint and remote.folder != local.folder


def test_ids_beyond_what_is_dense(tmp_path):
    frame = log().assign(item=lambda f: f["item"] * 10**9, user=lambda f: f["user"] * 10**12)
    pq.write_table(pa.table(frame.to_dict("list")), tmp_path / "log.parquet")
    load("duckdb", tmp_path, source="table", path=str(tmp_path / "log.parquet"), item_core=2)
