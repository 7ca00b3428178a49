# SPDX-License-Identifier: Apache-2.0
"""Obtains MovieLens: GroupLens's zip or, for 100K where that host is out of reach, RecBole's copy.

Nothing appears under its final name before its checksum was right. The data's terms forbid redistribution,
so it is fetched by each user and never shipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator

from tqdm import tqdm

from bert4rec_jax.data.sources.movielens import GENRES_100K, LAYOUTS
from bert4rec_jax.errors import UserError
from bert4rec_jax.phases import say

GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
# As published beside the zips (ml-25m.zip.md5 ...). ml-latest-small changes over time: its current one is
# fetched.
MD5 = {
    "ml-100k": "0e33842e24a9c977be4e0107933c0723",
    "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
    "ml-10m": "ce571fd55effeba0271552578f2648bd",
    "ml-20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m": "6b51fb2759a8657d3bfcbfc42b592ada",
    "ml-32m": "d472be332d4daa821edc399621853b57",
}
_REACH_SECONDS = 5
_STALL_SECONDS = 60
_RECBOLE = "recbole==1.2.1"
_RECBOLE_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
_NETWORK_ERRORS = (OSError, http.client.HTTPException)


class _Unreachable(Exception):
    """GroupLens did not answer."""


def movielens(name: str, cache: str) -> tuple[str, str]:
    """Returns (folder with the original files, where they came from), downloading them on first use.

    Args:
      name: a key of `LAYOUTS`.
      cache: the cache folder; the files are kept in `<cache>/raw/<name>`.

    Raises:
      UserError: no source can be reached, the download broke off, or a checksum is wrong.
    """
    folder = os.path.join(cache, "raw", name)
    try:
        with open(os.path.join(folder, "source.txt"), encoding="utf-8") as file:
            return folder, file.read().strip()
    except FileNotFoundError:
        pass
    with _appearing(folder) as scratch:
        origin = _obtain(name, scratch)
        with open(os.path.join(scratch, "source.txt"), "w", encoding="utf-8") as file:
            file.write(origin + "\n")
    say(f"Obtained {origin}; kept in {folder}")
    return folder, origin


@contextlib.contextmanager
def _appearing(folder: str) -> Iterator[str]:
    """Yields a scratch folder that is renamed to `folder` at the end, or removed after an error."""
    parent = os.path.dirname(folder)
    scratch = None
    try:
        os.makedirs(parent, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=f".{os.path.basename(folder)}-", dir=parent)
        yield scratch
        os.chmod(scratch, 0o755)
        if os.path.isdir(folder) and not os.path.exists(os.path.join(folder, "source.txt")):
            raise UserError(f"{folder} exists but was not put there by a download; move it away.")
        if not os.path.isdir(folder):
            os.rename(scratch, folder)
    except OSError as error:
        if not os.path.isdir(folder):  # else another process was faster, with the same files
            raise UserError(
                f"cannot write to {parent}: {error.strerror or error}; free space there, or set "
                "config.data.cache_dir or $BERT4REC_DATA to another folder."
            ) from None
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _obtain(name: str, folder: str) -> str:
    try:
        return _from_grouplens(name, folder)
    except _Unreachable as error:
        if name == "ml-100k":
            say(
                f"{GROUPLENS} cannot be reached ({error}); taking ml-100k out of the {_RECBOLE} wheel"
            )
            return _from_recbole(folder)
        raise UserError(
            f"{GROUPLENS}{name}.zip cannot be reached ({error}); fetch and unpack it elsewhere and set "
            "config.data.path to the folder."
        ) from None


def _from_grouplens(name: str, folder: str) -> str:
    url = f"{GROUPLENS}{name}.zip"
    md5 = MD5.get(name) or _published_md5(url)
    archive = os.path.join(folder, "archive.zip")
    fetch(url, archive, md5)
    layout = LAYOUTS[name]
    extract(archive, {layout.ratings: folder, layout.movies: folder}, url)
    os.remove(archive)
    return f"{name} from {url} (md5 {md5})"


def _published_md5(url: str) -> str:
    try:
        with urllib.request.urlopen(url + ".md5", timeout=_REACH_SECONDS) as answer:
            text = answer.read(4096).decode("ascii", "replace")
    except _NETWORK_ERRORS as error:
        raise _Unreachable(_reason(error)) from None
    match = re.search(r"\b[0-9a-fA-F]{32}\b", text)
    if not match:
        raise UserError(
            f"{url}.md5 holds no checksum; fetch and unpack {url} and set config.data.path to the folder."
        )
    return match[0].lower()


def fetch(url: str, path: str, md5: str) -> None:
    """Downloads a file.

    Raises:
      UserError: the connection broke off or the checksum is wrong; no file is left.
    """
    try:
        # A short wait to learn whether anybody is there, a longer one for a slow line.
        with urllib.request.urlopen(
            urllib.request.Request(url, method="HEAD"), timeout=_REACH_SECONDS
        ):
            pass
    except _NETWORK_ERRORS as error:
        raise _Unreachable(_reason(error)) from None
    digest, received, expected = hashlib.md5(), 0, None
    try:
        with (
            urllib.request.urlopen(url, timeout=_STALL_SECONDS) as answer,
            open(path, "wb") as file,
        ):
            expected = int(answer.headers.get("Content-Length") or 0) or None
            bar = tqdm(
                total=expected,
                desc=os.path.basename(url),
                unit="B",
                unit_scale=True,
                disable=None,
                leave=False,
            )
            with bar:
                while block := answer.read(1 << 20):
                    file.write(block)
                    digest.update(block)
                    received += len(block)
                    bar.update(len(block))
        if expected and received < expected:
            raise http.client.IncompleteRead(b"", expected - received)
    except _NETWORK_ERRORS as error:
        _remove(path)
        if (
            isinstance(error, OSError)
            and error.errno
            and not isinstance(error, (ConnectionError, TimeoutError))
        ):
            raise
        size = f" of {expected}" if expected else ""
        raise UserError(
            f"the download of {url} broke off after {received}{size} bytes; try again."
        ) from None
    if digest.hexdigest() != md5:
        _remove(path)
        raise UserError(
            f"{url} has the checksum {digest.hexdigest()} where {md5} is expected; try again, and if it "
            "persists fetch the files elsewhere and set config.data.path to their folder."
        )


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def extract(archive: str, members: dict[str, str], origin: str) -> None:
    """Takes files out of a zip.

    Args:
      archive: the zip.
      members: {file name, matched by its end: folder to put it in, without the zip's own folders}.
      origin: of the zip, for messages.

    Raises:
      UserError: the zip is damaged or lacks one of the files.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            for wanted, folder in members.items():
                name = next((n for n in file.namelist() if ("/" + n).endswith("/" + wanted)), None)
                if name is None:
                    raise UserError(f"{origin} holds no {wanted}; is it the right archive?")
                with (
                    file.open(name) as source,
                    open(os.path.join(folder, os.path.basename(wanted)), "wb") as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{origin} is a damaged zip ({error}); download it again.") from None


def _from_recbole(folder: str) -> str:
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"this Python has no pip to fetch {_RECBOLE} with; run `{sys.executable} -m ensurepip`, or set "
            "config.data.path to a folder with u.data and u.item."
        )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--retries", "1"]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            *options,
            "--only-binary",
            ":all:",
            "--dest",
            scratch,
            _RECBOLE,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = [entry for entry in os.listdir(scratch) if entry.endswith(".whl")]
        if done.returncode or not wheels:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = lines[-1] if lines else "no wheel arrived"
            raise UserError(
                f"pip could not download {_RECBOLE} ({reason}); check the network, or set "
                "config.data.path to a folder with u.data and u.item of MovieLens 100K."
            )
        extract(
            os.path.join(scratch, wheels[0]),
            dict.fromkeys(_RECBOLE_SHA256, scratch),
            f"the {_RECBOLE} wheel",
        )
        for member, sha256 in _RECBOLE_SHA256.items():
            path = os.path.join(scratch, member)
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise UserError(
                    f"{member} of the {_RECBOLE} wheel has the sha256 {found} where {sha256} is expected; is "
                    "the package index a changed mirror? Set config.data.path to a folder with u.data and "
                    "u.item."
                )
        convert_recbole(
            os.path.join(scratch, "ml-100k.inter"), os.path.join(scratch, "ml-100k.item"), folder
        )
    return f"ml-100k from the {_RECBOLE} wheel (sha256 of its files checked)"


def convert_recbole(inter: str, item: str, folder: str) -> None:
    """Writes u.data (byte for byte GroupLens's) and u.item (no dates and links) from RecBole's files."""
    with (
        open(inter, encoding="utf-8") as source,
        open(os.path.join(folder, "u.data"), "w", encoding="utf-8") as target,
    ):
        next(source)
        target.writelines(line for line in source)
    with (
        open(item, encoding="utf-8") as source,
        open(os.path.join(folder, "u.item"), "w", encoding="utf-8") as target,
    ):
        next(source)
        for line in source:
            number, title, year, genres = line.rstrip("\n").split("\t")
            title = f"{title} ({year})" if year.isdigit() else "unknown"  # RecBole spells it wrong
            flags = [str(int(genre in genres.split(" "))) for genre in GENRES_100K]
            target.write("|".join([number, title, "", "", "", *flags]) + "\n")
