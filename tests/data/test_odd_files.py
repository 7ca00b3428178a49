# SPDX-License-Identifier: Apache-2.0
"""Files of every format as they come: each is read, or refused in one line that names it, within a minute."""

import bz2
import gzip
import io

import pandas as pd
import pyarrow as pa
import pytest

from bert4rec_jax.config import DataConfig
from bert4rec_jax.data import load_dataset
from bert4rec_jax.errors import UserError

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("every_engine")]  # seconds for each
HEAD = b"user,item,timestamp\n"
ROWS = b"".join(b"%d,%d,%d\n" % (i % 4, i % 7, i) for i in range(40))
LOG = HEAD + ROWS
FRAME = pd.DataFrame(
    {"user": [i % 4 for i in range(40)], "item": [i % 7 for i in range(40)], "timestamp": range(40)}
)


def parquet(frame) -> bytes:
    file = io.BytesIO()
    frame.to_parquet(file)
    return file.getvalue()


def zst(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


# Name: (file, content, changed fields, words of the error; None: it is read).
FILES = {
    "as it should be": ("log.csv", LOG, {}, None),
    "marked as UTF-8": ("log.csv", b"\xef\xbb\xbf" + LOG, {}, None),
    "from Windows": ("log.csv", LOG.replace(b"\n", b"\r\n"), {}, None),
    "without a last line break": ("log.csv", LOG[:-1], {}, None),
    "blank lines at the end": ("log.csv", LOG + b"\n\n\n", {}, None),
    "every cell quoted": (
        "log.csv",
        b"".join(b'"%s"\n' % line.replace(b",", b'","') for line in LOG.split()),
        {},
        None,
    ),
    "spaces in the header": ("log.csv", LOG.replace(b"user,item", b"user, item"), {}, None),
    "UTF-16": ("log.csv", LOG.decode().encode("utf-16"), {}, "log.csv"),
    "from an old Mac": ("log.csv", LOG.replace(b"\n", b"\r"), {}, "log.csv"),
    "a zero byte in a cell": ("log.csv", LOG + b"1,\0,3\n", {}, "log.csv"),
    "half a UTF-8 character": ("log.csv", LOG + b"\xc3,2,3\n", {}, "log.csv"),
    "the header alone, unended": ("log.csv", HEAD[:-1], {}, "log.csv has a header but no rows"),
    "the header twice": ("log.csv", HEAD + LOG, {}, "line 2: the header is repeated"),
    "a header in the middle": ("log.csv", LOG + LOG, {}, "line 42: the header is repeated"),
    "a quote that never ends": ("log.csv", LOG + b'1,"2,3\n', {}, "log.csv"),
    "a separator too many": ("log.csv", LOG + b"1,2,3,\n", {}, "line 42 has 4 fields"),
    "two columns of a name": (
        "log.csv",
        b"user,item,item,timestamp\n1,2,3,4\n",
        {},
        "2 columns with the name 'item'",
    ),
    "times of the future": ("log.csv", LOG + b"1,2,1e300\n", {}, "line 42: timestamp '1e300'"),
    "times below zero": ("log.csv", LOG + b"1,2,-5\n", {}, None),
    "times in hexadecimal": ("log.csv", LOG + b"1,2,0x10\n", {}, None),
    "NaN for a time": ("log.csv", LOG + b"1,2,nan\n", {}, "line 42: timestamp"),
    "semicolons": ("log.csv", LOG.replace(b",", b";"), {}, None),
    "tabs in a .csv": ("log.csv", LOG.replace(b",", b"\t"), {}, None),
    "commas in a .tsv": ("log.tsv", LOG, {}, None),
    "a .tsv": ("log.tsv", LOG.replace(b",", b"\t"), {}, None),
    "gzip": ("log.csv.gz", gzip.compress(LOG), {}, None),
    "gzip, cut short": ("log.csv.gz", gzip.compress(LOG)[:-9], {}, "damaged or cut short"),
    "gzip, one bit flipped": (
        "log.csv.gz",
        bytes(b ^ (i == 60) for i, b in enumerate(gzip.compress(LOG))),
        {},
        "damaged or cut short|log.csv.gz",
    ),
    "gzip of nothing": ("log.csv.gz", gzip.compress(b""), {}, "log.csv.gz"),
    "not gzip at all": ("log.csv.gz", b"\x1f\x8b", {}, "damaged or cut short|log.csv.gz"),
    "bzip2, cut short": ("log.csv.bz2", bz2.compress(LOG)[:-9], {}, "log.csv.bz2"),
    "zstd": ("log.csv.zst", zst(LOG), {}, None),
    "zstd, cut short": ("log.csv.zst", zst(LOG)[:-9], {}, "log.csv.zst"),
    "Parquet": ("log.parquet", parquet(FRAME), {}, None),
    "Parquet that is CSV": ("log.parquet", LOG, {}, "log.parquet"),
    "Parquet of no bytes": ("log.parquet", b"", {}, "log.parquet"),
    "Parquet's first bytes": ("log.parquet", b"PAR1", {}, "log.parquet"),
    "CSV that is Parquet": ("log.csv", parquet(FRAME), {}, "log.csv"),
    "Parquet, lists for items": ("log.parquet", parquet(FRAME.assign(item=[[1]] * 40)), {}, "item"),
    "Parquet, bytes for users": (
        "log.parquet",
        parquet(FRAME.assign(user=[b"\xff"] * 40)),
        {},
        "user",
    ),
    "Parquet, booleans for times": (
        "log.parquet",
        parquet(FRAME.assign(timestamp=True)),
        {},
        "'timestamp' is of type bool",
    ),
    "Parquet, times of the future": (
        "log.parquet",
        parquet(FRAME.assign(timestamp=1e300)),
        {},
        "far too large",
    ),
    "Parquet, huge numbers": (
        "log.parquet",
        parquet(FRAME.assign(item=2**63 - 1 - FRAME["item"])),
        {},
        None,
    ),
    "Parquet, half a float": (
        "log.parquet",
        parquet(FRAME.assign(user=FRAME["user"] + 0.5)),
        {},
        None,
    ),
    "lines": ("log.txt", ROWS.replace(b",", b" "), {"source": "lines"}, "log.txt|fields"),
    "lines of nothing": ("log.txt", b"", {"source": "lines"}, "log.txt"),
    "lines of zero bytes": ("log.txt", b"\0" * 50, {"source": "lines"}, "log.txt"),
    "sequences": ("log.txt", b"1 2 3 4 5\n2 4 3 2\n3 5 4 1\n", {"source": "sequences"}, None),
    "sequences of nothing": ("log.txt", b"\n\n", {"source": "sequences"}, "log.txt"),
    "a picture": ("log.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), {}, "log.csv"),
    "a page of the web": (
        "log.csv",
        b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
        {},
        "lacks the column 'user'",
    ),
    "JSON": ("log.csv", b'[{"user": 1, "item": 2, "timestamp": 3}]\n', {}, "log.csv"),
    "JSON lines": ("log.json", b'{"user": 1, "item": 2, "timestamp": 3}\n', {}, "log.json"),
    "an Excel file": ("log.xlsx", b"PK\x03\x04\x14\0\x06\0" + b"\0" * 100, {}, "log.xlsx"),
}


def test_there_are_fifty_beside_those_of_bad_input():
    assert len(FILES) >= 50


@pytest.mark.parametrize("name, content, fields, named", FILES.values(), ids=FILES)
def test_a_file_is_read_or_refused_in_one_line(tmp_path, name, content, fields, named):
    (tmp_path / name).write_bytes(content)
    config = DataConfig(
        **{"source": "table", "path": str(tmp_path / name), "cache_dir": str(tmp_path / "cache")}
        | fields
    )
    if named is None:
        dataset = load_dataset(config)
        assert dataset.num_users and dataset.num_items
        return
    with pytest.raises(UserError, match=named) as raised:
        load_dataset(config)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600
    assert not list((tmp_path / "cache").glob("prepared/*"))


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "log.csv").mkdir()
    with pytest.raises(UserError, match=r"log\.csv"):
        load_dataset(
            DataConfig(
                source="table", path=str(tmp_path / "log.csv"), cache_dir=str(tmp_path / "cache")
            )
        )
