# SPDX-License-Identifier: Apache-2.0
"""Lists the prepared folders of the cache, and removes those whose source files have changed.

python -m bert4rec_jax.data.clean
python -m bert4rec_jax.data.clean --remove
"""

import argparse
import json
import os
import shutil

from bert4rec_jax.config import DataConfig
from bert4rec_jax.data.dataset import FORMAT
from bert4rec_jax.data.sources.find import cache_folder


def reason_to_remove(folder: str) -> str:
    """Returns the reason why a prepared folder is obsolete, or "" if it is not."""
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        if manifest["format"] != FORMAT:
            return "written by another version"
        identity = manifest["identity"]
        for path, *facts in identity.get("files", []) + identity.get("items", []):
            if not facts:  # a URL
                continue
            if not os.path.exists(path):
                return f"{path} does not exist any more"
            status = os.stat(path)
            if [status.st_size, status.st_mtime_ns] != facts:
                return f"{path} has changed"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged, or not a prepared folder"
    return ""


def size_of(folder: str) -> int:
    """Returns the total size of all files in a folder, in bytes."""
    size = 0
    for path, _, names in os.walk(folder):
        size += sum(os.path.getsize(os.path.join(path, name)) for name in names)
    return size


def main() -> None:
    """Lists the prepared folders and, with --remove, removes the obsolete ones."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache_dir", default="", help="see config.data.cache_dir")
    parser.add_argument("--remove", action="store_true", help="remove the marked folders")
    arguments = parser.parse_args()
    parent = os.path.join(cache_folder(DataConfig(cache_dir=arguments.cache_dir)), "prepared")
    names = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
    freed = 0
    for name in names:
        folder = os.path.join(parent, name)
        if name.startswith(".") or not os.path.isdir(folder):
            continue
        size = size_of(folder)
        reason = reason_to_remove(folder)
        note = f"  ({reason})" if reason else ""
        print(f"{_mebibytes(size)}  {name}{note}")
        if reason:
            freed += size
            if arguments.remove:
                shutil.rmtree(folder)
    outcome = "removed" if arguments.remove else "would be freed by --remove"
    print(f"{_mebibytes(freed)}  {outcome}, in {parent}")


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:10,.1f} MiB"


if __name__ == "__main__":
    main()
