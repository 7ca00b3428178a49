# SPDX-License-Identifier: Apache-2.0
"""Updates run directories and records that were written before version 0.3.0.

  python -m experiments.rename_fields experiments/results/ml_1m/runs/next_item_0 ...

Renames config fields in config.json and in the commands of environment.json. Adds the field
`trained_from`, the run that was evaluated, to environment.json if it was another run. Directories
that are up to date are left as they are.

Exit code: 0, 2 wrong usage.
"""

import json
from pathlib import Path
from typing import Any

from bert4rec_jax.command_line import run_command
from bert4rec_jax.config.renamed import NEW_NAMES, NEW_VALUES
from bert4rec_jax.errors import UserError
from bert4rec_jax.files import replacing
from bert4rec_jax.run_files import RunFiles


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


def evaluated_run(command: list[str]) -> str:
    """Returns the value of --trained in a recorded command, or "" if the flag is not given."""
    following = [*command[1:], ""]
    for word, next_word in zip(command, following):
        if word == "--trained":
            return next_word
        if word.startswith("--trained="):
            return word.partition("=")[2]
    return ""


def updated_environment(environment: dict[str, Any]) -> dict[str, Any]:
    """Returns an old environment.json with new field names in its commands and `trained_from`."""
    updated = dict(environment)
    starts = [
        {**start, "command": renamed_command(start["command"])}
        for start in environment.get("starts", [])
    ]
    if not starts:
        return updated
    updated["starts"] = starts
    if trained_from := evaluated_run(starts[-1]["command"]):
        updated.setdefault("trained_from", trained_from)
    return updated


def rename_fields(folder: str) -> bool:
    """Rewrites the files of one run directory or record.

    Returns:
      Whether a file changed.

    Raises:
      UserError: config.json is missing or cannot be read.
    """
    files = RunFiles(folder)
    config = files.config()
    if config is None:
        raise UserError(f"{files.config_path} is missing; name a run directory.")
    changed = _write_if_changed(files.config_path, config, renamed_config(config))
    environment = files.environment()
    if environment is not None:
        updated = updated_environment(environment)
        changed |= _write_if_changed(files.environment_path, environment, updated)
    return changed


def _write_if_changed(path: Path, before: dict[str, Any], after: dict[str, Any]) -> bool:
    if after == before:
        return False
    with replacing(path) as file:
        file.write(json.dumps(after, indent=1) + "\n")
    return True


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
