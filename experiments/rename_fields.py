# SPDX-License-Identifier: Apache-2.0
"""Renames config fields in run directories and records that were written before version 0.3.0.

  python -m experiments.rename_fields experiments/results/ml_1m/runs/next_item_0 ...

Rewrites config.json and the flags of the commands in environment.json. Directories that already
use the new names are left as they are. Exit code: 0, 2 wrong usage.
"""

import json
import os
from typing import Any

from bert4rec_jax.command_line import run_command
from bert4rec_jax.config.renamed import NEW_NAMES, NEW_VALUES
from bert4rec_jax.errors import UserError
from bert4rec_jax.files import read_json, replacing


def renamed_config(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of an old config.json under the new names of their fields."""
    renamed: dict[str, Any] = {}
    for group, fields in values.items():
        if not isinstance(fields, dict):
            renamed[group] = fields
            continue
        for name, value in fields.items():
            new_group, new_name = _new_name(f"{group}.{name}").split(".")
            new_values = NEW_VALUES.get(f"{new_group}.{new_name}", {})
            if isinstance(value, str):
                value = new_values.get(value, value)
            renamed.setdefault(new_group, {})[new_name] = value
    return renamed


def renamed_command(words: list[str]) -> list[str]:
    """Returns a recorded command with the new names in its `--config.GROUP.FIELD=VALUE` flags."""
    return [_renamed_flag(word) for word in words]


def _new_name(name: str) -> str:
    return NEW_NAMES.get(name, name)


def _renamed_flag(word: str) -> str:
    flag, equals, value = word.partition("=")
    if not flag.startswith("--config."):
        return word
    name = _new_name(flag.removeprefix("--config."))
    value = NEW_VALUES.get(name, {}).get(value, value)
    return f"--config.{name}{equals}{value}"


def _write(path: str, values: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(values, indent=1) + "\n")


def rename_fields(folder: str) -> bool:
    """Rewrites the files of one run directory or record.

    Returns:
      Whether a file changed.

    Raises:
      UserError: the folder has no readable config.json.
    """
    path = os.path.join(folder, "config.json")
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); name a run directory.") from None
    changed = False
    renamed = renamed_config(config)
    if renamed != config:
        _write(path, renamed)
        changed = True
    path = os.path.join(folder, "environment.json")
    if os.path.exists(path):
        environment = read_json(path)
        for start in environment.get("starts", []):
            command = renamed_command(start["command"])
            if command != start["command"]:
                start["command"] = command
                changed = True
        if changed:
            _write(path, environment)
    return changed


def main(argv: list[str]) -> int:
    """Rewrites the directories named on the command line; returns the exit code."""
    folders = argv[1:]
    if not folders:
        raise UserError("name the run directories or records to rewrite.")
    changed = sum(rename_fields(folder) for folder in folders)
    print(f"{changed} of {len(folders)} directories changed")
    return 0


if __name__ == "__main__":
    run_command(main)
