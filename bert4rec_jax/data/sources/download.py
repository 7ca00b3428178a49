# SPDX-License-Identifier: Apache-2.0
"""Downloads MovieLens from GroupLens.

If that host cannot be reached, MovieLens-100K is taken from the package RecBole. Files get their
final names only after their checksums were verified. The terms of the data forbid redistribution,
so every user downloads them and no copy is shipped.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator

from bert4rec_jax.data.sources import recbole
from bert4rec_jax.data.sources.archive import Unreachable, extract, fetch, fetch_text
from bert4rec_jax.data.sources.movielens import RELEASES
from bert4rec_jax.errors import UserError
from bert4rec_jax.terminal import say

GROUPLENS = "https://files.grouplens.org/datasets/movielens/"


def movielens(name: str, cache: str) -> tuple[str, str]:
    """Returns the folder with the original files and their origin; downloads them if necessary.

    Args:
      name: a key of `RELEASES`.
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
    with _published(folder) as scratch:
        origin = _obtain(name, scratch)
        with open(os.path.join(scratch, "source.txt"), "w", encoding="utf-8") as file:
            file.write(origin + "\n")
    say(f"Obtained {origin}; kept in {folder}")
    return folder, origin


@contextlib.contextmanager
def _published(folder: str) -> Iterator[str]:
    """Yields a scratch folder that is renamed to `folder` at the end, or removed after an error."""
    parent, name = os.path.split(folder)
    scratch = None
    try:
        os.makedirs(parent, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=f".{name}-", dir=parent)
        yield scratch
        os.chmod(scratch, 0o755)
        if os.path.isdir(folder) and not os.path.exists(os.path.join(folder, "source.txt")):
            raise UserError(f"{folder} exists but was not written by a download; move it away.")
        if not os.path.isdir(folder):
            os.rename(scratch, folder)
    except OSError as error:
        if not os.path.isdir(folder):  # otherwise another process has downloaded the same files
            raise UserError(
                f"cannot write to {parent}: {error.strerror or error}; free space there, or set "
                "config.data.cache_dir or $BERT4REC_DATA to another folder."
            ) from None
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _obtain(name: str, folder: str) -> str:
    """Writes the original files; returns a description of their origin."""
    try:
        return _from_grouplens(name, folder)
    except Unreachable as error:
        if name == "ml-100k":
            package = recbole.PACKAGE
            say(f"{GROUPLENS} cannot be reached ({error}); using ml-100k of the {package} wheel")
            return recbole.obtain_ml_100k(folder)
        raise UserError(
            f"{GROUPLENS}{name}.zip cannot be reached ({error}); download and unpack it elsewhere "
            "and set config.data.path to the folder."
        ) from None


def _from_grouplens(name: str, folder: str) -> str:
    release = RELEASES[name]
    url = f"{GROUPLENS}{name}.zip"
    md5 = release.md5 or _published_md5(url)
    archive = os.path.join(folder, "archive.zip")
    fetch(url, archive, md5)
    extract(archive, [release.ratings, release.movies], folder, url)
    os.remove(archive)
    return f"{name} from {url} (md5 {md5})"


def _published_md5(url: str) -> str:
    match = re.search(r"\b[0-9a-fA-F]{32}\b", fetch_text(f"{url}.md5"))
    if not match:
        raise UserError(
            f"{url}.md5 does not contain a checksum; download and unpack {url} and set "
            "config.data.path to the folder."
        )
    return match[0].lower()
