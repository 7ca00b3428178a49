# SPDX-License-Identifier: Apache-2.0
"""Item tables of every kind end in success, or in one line that names the file."""

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert4rec_jax.config import DataConfig
from bert4rec_jax.data import load_dataset
from bert4rec_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("every_engine")

LOG = "user,item,timestamp\n" + "".join(f"{i % 4},{i % 7},{i}\n" for i in range(40))
HEAD = "item,title,year,genres\n"
TABLES = [  # content of items.csv, and a word of the error; None: it succeeds
    (HEAD + "0,Zero,1999,Drama\n1,One,,\n", None),
    (HEAD + '0,"Zero, or none",1999,a|b\n', None),
    (HEAD + "0,Zero,1999,Drama\n0,Again,2000,Drama\n", None),
    (HEAD + "99,Elsewhere,1999,Drama\n", None),
    (HEAD + "\n\n0,Zero,1999,Drama\n", None),
    ("item\n0\n1\n", None),
    ("item,year\n0,1999\n", None),
    (HEAD + "0," + "x" * 10_000 + ",1999,Drama\n", None),
    (HEAD + "0,\u00e9\u4e2d,1999,Drama\n", None),
    ("", "items.csv is empty"),
    ("title,year\nZero,1999\n", "lacks the column 'item'"),
    ("\0\1\2", "not plain text"),
    (HEAD + "0,Zero,1999\n", "line 2 has 3 fields"),
    (HEAD + "0,Zero,1999,Drama,more\n", "line 2 has 5 fields"),
    (HEAD + '0,"Zero,1999,Drama\n', "items.csv"),
]


def load(folder, content: bytes):
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_text(LOG)
    (folder / "items.csv").write_bytes(content)
    return load_dataset(
        DataConfig(
            cache_dir=str(folder / "cache"),
            source="table",
            path=str(folder / "log.csv"),
            items_path=str(folder / "items.csv"),
        )
    )


@pytest.mark.parametrize("content, named", TABLES)
def test_item_tables(tmp_path, content, named):
    if named is None:
        table = load(tmp_path, content.encode()).item_table()
        assert len(table) == 7 and table.loc[1, "item"] == "0"
        assert pd.isna(table.loc[1, "title"]) == ("0," not in content or "title" not in content)
        return
    with pytest.raises(UserError, match=named) as raised:
        load(tmp_path, content.encode())
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


TOKENS = [
    b"",
    b" ",
    b"\n",
    b"\r\n",
    b",",
    b";",
    b"\t",
    b'"',
    b"'",
    b"\0",
    b"nan",
    b"-1",
    b"1.5",
    b"(1995)",
    b"\xff",
    "\u00e9".encode(),
    b"item",
    b"0",
    b"3",
    b"1999",
]


@pytest.mark.parametrize("every_engine", ["duckdb"], indirect=True)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.lists(st.tuples(st.integers(0, 80), st.sampled_from(TOKENS), st.integers(0, 3)), max_size=4)
)
def test_mutated_item_tables_end_well(tmp_path_factory, changes):
    content = bytearray((HEAD + "0,Zero,1999,Drama\n1,One,2001,Drama|War\n3,Three,,\n").encode())
    for place, token, removed in changes:
        content[place : place + removed] = token
    try:
        assert len(load(tmp_path_factory.mktemp("fuzz"), bytes(content)).item_table()) == 7
    except UserError as error:
        assert "\n" not in str(error)
