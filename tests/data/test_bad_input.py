# SPDX-License-Identifier: Apache-2.0
"""Bad input ends in one line that names the problem and the remedy, and leaves nothing half-written."""

import os

import pandas as pd
import pytest
from prepared import data_and_filter

from bert4rec_jax.data import load_dataset
from bert4rec_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("every_engine")

HEAD = "user,item,timestamp,rating\n"
GOOD = "".join(f"{i % 3},{i},{i},3.5\n" for i in range(40))


def refused(tmp_path, message, **options):
    """Asserts that loading raises a one-line `UserError` that matches, and that nothing was prepared."""
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(*data_and_filter(cache_dir=str(cache), **options))
    assert "\n" not in str(caught.value)
    assert not (cache / "prepared").exists() or not os.listdir(cache / "prepared")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "log.csv is empty"),
        (HEAD, "has a header but no rows"),
        (
            "person,item,timestamp,rating\n1,2,3,4\n",
            r"lacks the column 'user'; its columns are: person, item.*user_column",
        ),
        ("user,item,when,rating\n1,2,3,4\n", r"lacks the column 'timestamp'.*time_column"),
        (HEAD + GOOD + "1,2,3\n", "line 42 has 3 fields where 4 are expected"),
        (HEAD + GOOD + "1,2,3,4,5\n" + GOOD, "line 42 has 5 fields where 4 are expected"),
        (
            HEAD + GOOD + "1,2,soon,4\n" + GOOD,
            "line 42: timestamp 'soon' is not a number of seconds",
        ),
        (HEAD + "1,2,soon,4\n" + GOOD, "line 2: timestamp 'soon' is not a number of seconds"),
        (HEAD + GOOD + "1,2,inf,4\n", "line 42: timestamp 'inf' is not a number of seconds"),
        (
            HEAD + "1,2,2020-01-01,4\n1,3,2020-13-01,4\n",
            "line 3: timestamp '2020-13-01' is not an ISO date",
        ),
        (HEAD + GOOD + "1,2,3,good\n" + GOOD, "line 42: rating 'good' is not a number"),
        (HEAD + GOOD + "1,2,3,\n" + GOOD, "line 42: rating '' is not a number"),
        (HEAD + GOOD + ",2,3,4\n" + GOOD, "line 42: the user is empty"),
        (HEAD + GOOD + "1, ,3,4\n" + GOOD, "line 42: the item is empty"),
        (HEAD + '1,"a\nb",3,4\n' + "1,2,3\n", "line 4 has 3 fields"),
        (HEAD + '1,"a\nb",soon,4\n' + GOOD, "line 2: timestamp 'soon'"),
        (
            HEAD + GOOD + "1,2," + "x" * 10_000 + ",4\n",
            r"timestamp 'x{60}\.\.\. \(10,000 characters\)' is not",
        ),
        (
            GOOD,
            r"lacks the column 'user': its first line is '0,0,0,3.5', which looks like data, not a header.* by number, starting at 1, as in "
            "--config.data.user_column=1 --config.data.item_column=2 --config.data.time_column=3 --config.data.rating_column=4",
        ),
        (
            "7,0,3.5,99,x\n" * 40,
            r"_column=1 --config.data.item_column=2 --config.data.time_column=N --config.data.rating_column=N",
        ),
        (
            "a::7\nb::8\n",
            r"first line is 'a::7', which .*item_column=2 --config.data.time_column='' ",
        ),
        ("person,film,1999\n1,2,3\n", "looks like data"),
        (
            "person,item,1999\n1,2,3\n",
            "lacks the column 'user'; its columns are: person, item, 1999",
        ),
        ("x" * 10_000 + "\n1\n", r"lacks the column 'user'; its columns are: x{400}\.\.\. "),
        (HEAD + "caf\xe9,2,3,4\n", "is not UTF-8 text"),
        ("\x89PNG\x00\x01\x02", "is not plain text"),
        ("\x1f\x8b\x08\x00zipped", "is damaged or cut short"),
        ("PK\x03\x04zipped", "is not plain text .*archive"),
    ],
)
def test_faulty_text(tmp_path, text, message):
    (tmp_path / "log.csv").write_bytes(text.encode("latin-1"))
    refused(
        tmp_path, message, source="table", path=str(tmp_path / "log.csv"), rating_column="rating"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f.drop(columns="item"),
            r"lacks the column 'item'; its columns are: user, timestamp",
        ),
        (
            lambda f: f.assign(user=[None, *f.user[1:]]),
            r"row 1 \(row group 1\): the user is missing",
        ),
        (
            lambda f: f.assign(item=[*f.item[:-1].astype(str), "  "]),
            r"row 3 \(row group 1\): the item is empty",
        ),
        (lambda f: f.assign(timestamp="soon"), "column 'timestamp' is of type .*string.*ISO dates"),
        (
            lambda f: f.assign(timestamp=[float("inf"), *f.timestamp[1:]]),
            r"row 1 \(row group 1\): timestamp inf is not finite",
        ),
        (lambda f: f.head(0), "does not contain any rows"),
    ],
)
def test_faulty_parquet(tmp_path, change, message):
    frame = pd.DataFrame({"user": [1, 1, 2], "item": [5, 6, 7], "timestamp": [1, 2, 3]})
    change(frame).to_parquet(tmp_path / "log.parquet")
    refused(tmp_path, message, source="table", path=str(tmp_path / "log.parquet"))


def test_truncated_parquet(tmp_path):
    path = tmp_path / "log.parquet"
    pd.DataFrame({"user": range(999), "item": 1, "timestamp": 1}).to_parquet(path)
    os.truncate(path, path.stat().st_size // 2)
    refused(tmp_path, "not a complete Parquet file", source="table", path=str(path))


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        ("lines", "1 2\n1 3\n1\n", "line 3 has 1 fields where 2 are expected"),
        ("sequences", "1 2 3\n2\n", "line 2 has a user but no items"),
        ("sequences", "1 2 3\n, ,\n", "line 2 has neither a user nor items"),
        ("sequences", "\x1f\n \n", "does not contain any rows; it should contain interactions"),
        ("lines", "\x1f\n \n", "cannot be read: CSV parse error"),
        ("lines", "user item\n1 2\n", "line 1 is 'user item', which is a header; remove it"),
        ("lines", "who what\n1 2\n1 3\n", "line 1 is 'who what', which is a header"),
        ("lines", '{"user": "a", "item": "b"}\n', "is JSON; convert it.*lines=True"),
        ("sequences", "user_id items\n1 2 3\n", "line 1 is 'user_id items', which is a header"),
    ],
)
def test_faulty_lines(tmp_path, source, text, message):
    (tmp_path / "log.txt").write_text(text)
    refused(tmp_path, message, source=source, path=str(tmp_path / "log.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("userId,movieId,rating\n1,2,3\n", "line 1 is 'userId,movieId,rating', which is a header"),
        ("a,b,c\n1,2,3\n4,5,6\n", "line 1 is 'a,b,c', which is a header; name the columns"),
        ("u1;i1;4,5\nu1;i2;3,0\n", "can be split at ',' or ';'.*config.data.separator=';'"),
        ('{"user": "a", "item": "b"}\n', "is JSON; convert it.*lines=True"),
        ('[\n {"user": "a", "item": "b"}]\n', "is JSON; convert it.*lines=False"),
    ],
)
def test_text_that_columns_by_position_would_misread(tmp_path, text, message):
    path = tmp_path / "log.csv"
    path.write_text(text)
    columns = dict(user_column="1", item_column="2", time_column="")
    refused(tmp_path, message, source="table", path=str(path), **columns)


def test_parts_with_different_columns_are_rejected_by_position(tmp_path):
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "movies.dat").write_text("1193::Heat::Crime\n")
    (folder / "ratings.dat").write_text("1::1193::5::978300760\n")
    columns = dict(user_column="1", item_column="2", time_column="")
    message = "ratings.dat has 4 columns, but .*movies.dat has 3; set config.data.path"
    refused(tmp_path, message, source="table", path=str(folder), **columns)


def test_a_repeated_header_is_rejected(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\na,x\nuser,item\nb,y\n")
    message = "line 3: the header is repeated"
    path = str(tmp_path / "log.csv")
    refused(tmp_path, message, source="table", path=path, time_column="")


def test_faulty_movielens(tmp_path):
    refused(
        tmp_path, r"ml-1m needs .*ratings.dat and movies.dat", source="ml-1m", path=str(tmp_path)
    )
    (tmp_path / "movies.dat").write_text("1::One (1990)::War\n2::Two (1990)\n")
    (tmp_path / "ratings.dat").write_text("1::1::5::10\n1::2::5\n")
    refused(tmp_path, "ratings.dat line 2 has 3 fields where 4", source="ml-1m", path=str(tmp_path))
    (tmp_path / "ratings.dat").write_text("1::1::5::10\n")
    refused(tmp_path, "movies.dat line 2 has 2 fields where 3", source="ml-1m", path=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "absent.csv"}, r"the file .*absent.csv does not exist; check config.data.path"),
        (
            {"items_path": "absent.csv"},
            r"the file .*absent.csv does not exist; check config.data.items_path",
        ),
        ({"path": "empty"}, "lacks interactions.parquet"),
        (
            {"user_core": 99},
            r"leave no interactions \(read: 40 by 3 users; user_core 99, item_core 0: 0 by 0 users",
        ),
        ({"min_rating": 5.0, "rating_column": "rating"}, r"min_rating 5: 0 by 0 users"),
        ({"min_rating": 3.0}, r"min_rating = 3.0 needs ratings.*rating_column"),
        ({"user_column": ""}, "config.data.user_column is empty; name the column"),
        ({"item_column": ""}, "config.data.item_column is empty; name the column"),
        ({"where": "rating >>> 1"}, "config.data.where = 'rating >>> 1' cannot be applied to"),
        ({"user_column": "1"}, "all names, or all positions"),
        (
            {"items_path": "log.csv", "title_column": "name"},
            r"lacks the column 'name'.*title_column",
        ),
        ({"items_path": "years.csv"}, "does not contain years"),
        ({"items_path": "no_key.csv"}, r"lacks the column 'item'; its columns are: title"),
        ({"items_path": "short.csv"}, "short.csv line 3 has 1 fields where 2"),
    ],
)
def test_options_that_do_not_fit_the_data(tmp_path, options, message):
    (tmp_path / "log.csv").write_text(HEAD + GOOD)
    (tmp_path / "years.csv").write_text("item,year\n1,last\n")
    (tmp_path / "no_key.csv").write_text("title,year\nOne,1990\n")
    (tmp_path / "short.csv").write_text("item,title\n1,One\n2\n")
    (tmp_path / "empty").mkdir()
    paths = {k: str(tmp_path / v) for k, v in options.items() if k.endswith("path")}
    refused(
        tmp_path,
        message,
        **{"source": "table", "path": str(tmp_path / "log.csv")} | options | paths,
    )


def test_options_that_the_source_cannot_use(tmp_path):
    refused(tmp_path, "path is not used", source="synthetic", path=str(tmp_path))
    refused(
        tmp_path, "items_path is not used", source="ml-1m", path=str(tmp_path), items_path="x.csv"
    )
    refused(tmp_path, "min_rating = 4.0 needs ratings", source="synthetic", min_rating=4.0)
