# SPDX-License-Identifier: Apache-2.0
"""Downloads from a local server: complete, interrupted, changed, damaged, unreachable."""

import hashlib
import http.server
import io
import os
import subprocess
import threading
import zipfile

import pytest

from bert4rec_jax.config import MOVIELENS, DataConfig
from bert4rec_jax.data import load_dataset
from bert4rec_jax.data.sources import download, recbole
from bert4rec_jax.data.sources.movielens import RELEASES
from bert4rec_jax.errors import UserError

RATINGS = "userId,movieId,rating,timestamp\n1,10,4.0,5\n1,20,3.5,6\n"
MOVIES = "movieId,title,genres\n10,Ten (1910),War\n20,Twenty (1920),(no genres listed)\n"


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch):
    """Serves a dict {path: (bytes, announced length)} instead of GroupLens."""
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.reply(body=False)

        def do_GET(self):
            self.reply(body=True)

        def reply(self, body):
            if self.path not in files:
                self.send_error(404)
                return
            data, length = files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(download, "GROUPLENS", f"http://127.0.0.1:{httpd.server_port}/")
        yield files
        httpd.shutdown()


def serve(server, name, data, md5=None, length=None):
    server[f"/{name}.zip"] = (data, length or len(data))
    line = f"MD5 ({name}.zip) = {md5 or hashlib.md5(data).hexdigest()}\n".encode()
    server[f"/{name}.zip.md5"] = (line, len(line))


def latest(tmp_path):
    return load_dataset(DataConfig(source="ml-latest-small", cache_dir=str(tmp_path)))


GOOD = zipped(
    {
        "ml-latest-small/ratings.csv": RATINGS,
        "ml-latest-small/movies.csv": MOVIES,
        "x/links.csv": "no",
    }
)


def test_every_movielens_source_has_a_release():
    assert tuple(RELEASES) == MOVIELENS


def test_a_download_is_reported_checked_and_kept(tmp_path, server, capsys):
    serve(server, "ml-latest-small", GOOD)
    assert latest(tmp_path).item_table()["title"].tolist() == ["Ten", "Twenty"]
    obtained, prepared = capsys.readouterr().err.splitlines()
    assert "ml-latest-small from http://127.0.0.1" in obtained
    assert "Prepared ml-latest" in prepared
    server.clear()
    dataset = latest(tmp_path)
    assert "md5" in dataset.manifest["source"]
    assert capsys.readouterr().err == ""
    files = sorted(os.listdir(tmp_path / "raw/ml-latest-small"))
    assert files == ["movies.csv", "ratings.csv", "source.txt"]


@pytest.mark.parametrize(
    ("data", "facts", "message"),
    [
        (GOOD, {"md5": "0" * 32}, "checksum .* but 0{32} is expected"),
        (GOOD[:200], {"length": len(GOOD)}, f"broke off after 200 of {len(GOOD)} bytes"),
        (GOOD[:-60], {}, "damaged zip"),
        (GOOD[:60] + b"\0" * 60 + GOOD[120:], {}, "damaged zip"),
        (zipped({"ml-latest-small/ratings.csv": RATINGS}), {}, "does not contain movies.csv"),
    ],
)
def test_a_bad_download_leaves_no_files(tmp_path, server, data, facts, message):
    serve(server, "ml-latest-small", data, **facts)
    with pytest.raises(UserError, match=message):
        latest(tmp_path)
    assert os.listdir(tmp_path / "raw") == []
    assert not (tmp_path / "prepared").exists()


def test_the_server_cannot_change_pinned_checksums(tmp_path, server):
    serve(server, "ml-25m", GOOD)
    with pytest.raises(UserError, match=RELEASES["ml-25m"].md5):
        load_dataset(DataConfig(source="ml-25m", cache_dir=str(tmp_path)))


def test_an_unreachable_server_is_reported_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "GROUPLENS", "http://127.0.0.1:1/")
    with pytest.raises(UserError, match=r"cannot be reached \(.*refused.*config.data.path"):
        load_dataset(DataConfig(source="ml-20m", cache_dir=str(tmp_path)))


INTER_HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
EVENTS = "196\t1\t3\t881250949\n196\t2\t4\t881250950\n"
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tUne vérité, La\t1995\tFilm-Noir Sci-Fi\n2\tunkonwn\tunkonwn\tunknown\n"
)


@pytest.fixture
def wheel(monkeypatch):
    """Makes GroupLens unreachable, and pip download a wheel with these files, {name: text}."""
    files = {"ml-100k.inter": INTER_HEADER + EVENTS, "ml-100k.item": ITEM}
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}

    def pip(command, **_):
        if not files:
            errors = "WARNING: x\nERROR: No matching distribution found\n"
            return subprocess.CompletedProcess(command, 1, "", errors)
        folder = command[command.index("--dest") + 1]
        members = {f"recbole/dataset_example/ml-100k/{name}": files[name] for name in files}
        with open(os.path.join(folder, "recbole-1.2.1-py3-none-any.whl"), "wb") as file:
            file.write(zipped(members))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download, "GROUPLENS", "http://127.0.0.1:1/")
    monkeypatch.setattr(recbole, "_SHA256", digests)
    monkeypatch.setattr(recbole.subprocess, "run", pip)
    return files


def ml_100k(tmp_path):
    return load_dataset(DataConfig(source="ml-100k", cache_dir=str(tmp_path)))


def test_ml_100k_from_the_recbole_wheel(tmp_path, wheel, capsys):
    table = ml_100k(tmp_path).item_table()
    assert table["title"].tolist() == ["Une vérité, La", "unknown"]
    assert table["genres"].dropna().tolist() == ["Film-Noir|Sci-Fi"]
    assert table["year"].dropna().tolist() == [1995]
    assert (tmp_path / "raw/ml-100k/u.data").read_text() == EVENTS
    assert "from the recbole==1.2.1 wheel" in capsys.readouterr().err


def test_a_changed_wheel_is_rejected(tmp_path, wheel):
    wheel["ml-100k.inter"] += "1\t1\t1\t1\n"
    message = r"ml-100k.inter of the recbole==1.2.1 wheel has the sha256"
    with pytest.raises(UserError, match=message):
        ml_100k(tmp_path)
    assert os.listdir(tmp_path / "raw") == []


def test_a_failed_pip_download_is_reported(tmp_path, wheel):
    wheel.clear()
    message = r"pip could not download .*ERROR: No matching distribution"
    with pytest.raises(UserError, match=message):
        ml_100k(tmp_path)
    assert os.listdir(tmp_path / "raw") == []


def test_a_missing_pip_is_reported(tmp_path, wheel, monkeypatch):
    monkeypatch.setattr(recbole.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip, .*is missing .*ensurepip"):
        ml_100k(tmp_path)
    assert os.listdir(tmp_path / "raw") == []
