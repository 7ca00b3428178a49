# SPDX-License-Identifier: Apache-2.0
"""Lists the prepared folders of the cache, and removes those whose source files have changed or gone since.

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
    """Returns why a prepared folder will not be opened again, "" if it may be."""
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        if manifest["format"] != FORMAT:
            return "written by another version"
        files = manifest["identity"].get("files", []) + manifest["identity"].get("items", [])
        for path, *facts in files:
            if facts and not os.path.exists(path):
                return f"{path} is gone"
            if facts and [os.stat(path).st_size, os.stat(path).st_mtime_ns] != facts:
                return f"{path} has changed"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged, or no prepared folder"
    return ""


def size_of(folder: str) -> int:
    """Returns the bytes of all files in a folder."""
    return sum(
        os.path.getsize(os.path.join(path, name))
        for path, _, names in os.walk(folder)
        for name in names
    )


def main() -> None:
    """Lists, and removes where --remove says so."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache_dir", default="", help="as config.data.cache_dir")
    parser.add_argument("--remove", action="store_true", help="remove what is marked")
    arguments = parser.parse_args()
    parent = os.path.join(cache_folder(DataConfig(cache_dir=arguments.cache_dir)), "prepared")
    entries = (
        sorted(os.scandir(parent), key=lambda entry: entry.name) if os.path.isdir(parent) else []
    )
    freed = 0
    for entry in entries:
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        size, reason = size_of(entry.path), reason_to_remove(entry.path)
        freed += size if reason else 0
        print(f"{size / 2**20:10,.1f} MiB  {entry.name}" + (f"  ({reason})" if reason else ""))
        if reason and arguments.remove:
            shutil.rmtree(entry.path)
    done = "removed" if arguments.remove else "would be freed by --remove"
    print(f"{freed / 2**20:10,.1f} MiB  {done}, in {parent}")


if __name__ == "__main__":
    main()
