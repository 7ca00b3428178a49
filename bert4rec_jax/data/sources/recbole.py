# SPDX-License-Identifier: Apache-2.0
"""MovieLens-100K from the package RecBole, for machines that reach a package index only."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile

from bert4rec_jax.data.sources.archive import extract
from bert4rec_jax.data.sources.movielens import GENRES_100K
from bert4rec_jax.errors import UserError

PACKAGE = "recbole==1.2.1"
_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
_REMEDY = "set config.data.path to a folder with u.data and u.item of MovieLens-100K"


def obtain_ml_100k(folder: str) -> str:
    """Writes u.data and u.item; returns a description of their origin.

    Raises:
      UserError: pip is missing, the package cannot be downloaded, or its files have changed.
    """
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"pip, which downloads {PACKAGE}, is missing from this Python; run "
            f"`{sys.executable} -m ensurepip`, or {_REMEDY}."
        )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wheel = _download_wheel(scratch)
        extract(wheel, list(_SHA256), scratch, f"the {PACKAGE} wheel")
        for name in _SHA256:
            _check(os.path.join(scratch, name))
        _convert_events(os.path.join(scratch, "ml-100k.inter"), os.path.join(folder, "u.data"))
        _convert_items(os.path.join(scratch, "ml-100k.item"), os.path.join(folder, "u.item"))
    return f"ml-100k from the {PACKAGE} wheel (sha256 of its files checked)"


def _download_wheel(folder: str) -> str:
    options = "--quiet --no-deps --disable-pip-version-check --retries 1 --only-binary :all:"
    pip = [sys.executable, "-m", "pip", "download"]
    command = [*pip, *options.split(), "--dest", folder, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = [name for name in os.listdir(folder) if name.endswith(".whl")]
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1] if errors else "no wheel arrived"
        raise UserError(
            f"pip could not download {PACKAGE} ({reason}); check the network, or {_REMEDY}."
        )
    return os.path.join(folder, wheels[0])


def _check(path: str) -> None:
    name = os.path.basename(path)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256[name]:
        raise UserError(
            f"{name} of the {PACKAGE} wheel has the sha256 {found}, but {_SHA256[name]} is "
            f"expected; the package index may be a changed mirror. To continue, {_REMEDY}."
        )


def _convert_events(source: str, target: str) -> None:
    """Removes the header: the rest is byte for byte the u.data of GroupLens."""
    with open(source, encoding="utf-8") as file, open(target, "w", encoding="utf-8") as out:
        next(file)
        out.writelines(file)


def _convert_items(source: str, target: str) -> None:
    """Writes u.item, without the dates and links that RecBole does not have."""
    with open(source, encoding="utf-8") as file, open(target, "w", encoding="utf-8") as out:
        next(file)
        for line in file:
            number, name, year, genres = line.rstrip("\n").split("\t")
            # The one movie without a year is misspelt as "unkonwn" in RecBole's file.
            title = f"{name} ({year})" if year.isdigit() else "unknown"
            flags = [str(int(genre in genres.split(" "))) for genre in GENRES_100K]
            out.write("|".join([number, title, "", "", "", *flags]) + "\n")
