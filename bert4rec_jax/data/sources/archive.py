# SPDX-License-Identifier: Apache-2.0
"""Downloads with a checksum, and files of a zip archive."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from tqdm import tqdm

from bert4rec_jax.errors import UserError

_REACH_SECONDS = 5
_STALL_SECONDS = 60
_BLOCK = 1 << 20
_NETWORK_ERRORS = (OSError, http.client.HTTPException)


class Unreachable(Exception):
    """The server did not respond."""


def fetch_text(url: str) -> str:
    """Returns the beginning of a small text file.

    Raises:
      Unreachable: the server did not respond.
    """
    try:
        with urllib.request.urlopen(url, timeout=_REACH_SECONDS) as response:
            return response.read(4096).decode("ascii", "replace")
    except _NETWORK_ERRORS as error:
        raise Unreachable(_reason(error)) from None


def fetch(url: str, path: str, md5: str) -> None:
    """Downloads a file and checks it; no file remains after an error.

    Raises:
      Unreachable: the server did not respond.
      UserError: the connection broke off, or the checksum is wrong.
    """
    _check_reachable(url)
    with _removed_after_an_error(path):
        try:
            found = _download(url, path)
        except _NETWORK_ERRORS as error:
            if _is_disk_error(error):
                raise
            received = os.path.getsize(path) if os.path.exists(path) else 0
            missing = getattr(error, "expected", None)
            size = f" of {received + missing}" if missing else ""
            raise UserError(
                f"the download of {url} broke off after {received}{size} bytes; try again."
            ) from None
        if found != md5:
            raise UserError(
                f"{url} has the checksum {found}, but {md5} is expected; try again. If the error "
                "persists, download the files elsewhere and set config.data.path to their folder."
            )


def _check_reachable(url: str) -> None:
    """Fails fast without a server; the download itself allows for slow connections."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_REACH_SECONDS):
            pass
    except _NETWORK_ERRORS as error:
        raise Unreachable(_reason(error)) from None


def _download(url: str, path: str) -> str:
    """Returns the MD5 of the file that it downloads."""
    digest = hashlib.md5()
    received = 0
    with (
        urllib.request.urlopen(url, timeout=_STALL_SECONDS) as response,
        open(path, "wb") as file,
    ):
        expected = int(response.headers.get("Content-Length") or 0) or None
        with _progress_bar(url, expected) as bar:
            while block := response.read(_BLOCK):
                file.write(block)
                digest.update(block)
                received += len(block)
                bar.update(len(block))
    if expected and received < expected:
        raise http.client.IncompleteRead(b"", expected - received)
    return digest.hexdigest()


def _progress_bar(url: str, expected: int | None) -> tqdm:
    return tqdm(
        total=expected,
        desc=os.path.basename(url),
        unit="B",
        unit_scale=True,
        disable=None,
        leave=False,
    )


@contextlib.contextmanager
def _removed_after_an_error(path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        raise


def _is_disk_error(error: Exception) -> bool:
    is_network = isinstance(error, (ConnectionError, TimeoutError))
    return isinstance(error, OSError) and bool(error.errno) and not is_network


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def extract(archive: str, members: list[str], folder: str, origin: str) -> None:
    """Extracts files from a zip archive.

    Args:
      archive: path of the zip.
      members: ends of the paths of the files; folders of the archive are dropped.
      folder: destination.
      origin: of the zip, for messages.

    Raises:
      UserError: the zip is damaged, or lacks one of the files.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            names = file.namelist()
            for member in members:
                name = next((name for name in names if f"/{name}".endswith(f"/{member}")), None)
                if name is None:
                    raise UserError(f"{origin} does not contain {member}; is it the right archive?")
                target = os.path.join(folder, os.path.basename(member))
                with file.open(name) as source, open(target, "wb") as out:
                    _copy(source, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{origin} is a damaged zip ({error}); download it again.") from None


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    shutil.copyfileobj(source, target, _BLOCK)
