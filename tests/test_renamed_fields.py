# SPDX-License-Identifier: Apache-2.0
"""Old field names are rejected with their new names, and a script rewrites old run directories."""

import json
import pathlib

import commands
import pytest

from bert4rec_jax import config as config_lib
from bert4rec_jax.config.renamed import NEW_FIELDS, NEW_NAMES, NEW_VALUES
from bert4rec_jax.errors import UserError
from experiments.rename_fields import rename_fields

CHANGELOG = pathlib.Path(__file__).resolve().parent.parent / "CHANGELOG.md"


def nested(name: str, value: object) -> dict:
    group, field = name.split(".")
    return {group: {field: value}}


@pytest.mark.parametrize("old", NEW_NAMES)
def test_an_old_name_in_a_config_json_is_rejected_with_the_new_name(old, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(nested(old, 1)))
    with pytest.raises(UserError) as error:
        config_lib.load(str(path))
    assert f"unknown config field config.{old}; " in str(error.value)
    assert f"it was renamed to config.{NEW_NAMES[old]}." in str(error.value)


def test_the_new_names_exist_and_the_old_ones_do_not():
    names = {field.name for field in config_lib.describe()}
    assert set(NEW_NAMES.values()) | set(NEW_VALUES) | set(NEW_FIELDS) <= names
    assert not names & set(NEW_NAMES)


@pytest.mark.parametrize("name", NEW_VALUES)
def test_an_old_value_is_rejected_with_the_new_value(name):
    for old, new in NEW_VALUES[name].items():
        with pytest.raises(UserError, match=f"; use '{new}' instead of '{old}'"):
            config_lib.resolve(nested(name, old))


@pytest.mark.parametrize("flag", ["--config.data.split=temporal", "--config.masking.next_item=1"])
def test_an_old_name_in_a_flag_is_rejected_with_the_new_name(flag, tmp_path):
    old = flag.removeprefix("--config.").partition("=")[0]
    message = commands.user_error(commands.train_command(tmp_path / "run", {}, flag), tmp_path)
    assert f"config.{old}; it was renamed to config.{NEW_NAMES[old]}." in message


def test_a_config_file_with_an_old_name_is_rejected_with_the_new_name(tmp_path):
    path = tmp_path / "old.py"
    path.write_text(
        "from bert4rec_jax import config\n\n\n"
        "def get_config():\n"
        "    c = config.base()\n"
        "    c.data.user_core = 5\n"
        "    return c\n"
    )
    with pytest.raises(
        UserError, match=r"config.data.user_core was renamed to config.filter.user_core"
    ):
        config_lib.load(str(path))


def test_the_script_rewrites_an_old_run_directory_once(tmp_path):
    old = {
        "seed": 3,
        "data": {"source": "ml-1m", "engine": "auto", "user_core": 5, "repeats": "drop"},
        "model": {"ranks_from": "last_item", "width": 32},
        "masking": {"next_item": 1.0},
        "eval": {"repeated_targets": "compete", "valid_users": 100},
        "parallel": {"catalogue": 2},
    }
    old["data"] |= {"split": "temporal", "test_share": 0.2}
    command = [
        "main.py",
        "--config",
        "ml_1m",
        "--config.eval.repeated_targets=last",
        "--trained=runs/other",
    ]
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "environment.json").write_text(json.dumps({"starts": [{"command": command}]}))
    assert rename_fields(str(tmp_path))
    new = config_lib.load(str(tmp_path / "config.json"))
    assert (new.seed, new.data.source, new.data.engine) == (3, "ml-1m", "duckdb")
    assert (new.filter.user_core, new.filter.duplicate_events) == (5, "drop")
    assert (new.split.kind, new.split.test_share, new.split.valid_users) == ("temporal", 0.2, 100)
    assert (new.model.predict_from, new.model.width) == ("last_item", 32)
    assert (new.masking.next_item_share, new.parallel.item_shards) == (1.0, 2)
    assert new.eval.seen_targets == "keep"
    assert new.model.matmul_precision == "default"
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["trained_from"] == "runs/other"
    (start,) = environment["starts"]
    assert start["command"][3] == "--config.eval.seen_targets=rank_last"
    assert start["command"][:3] + start["command"][4:] == command[:3] + command[4:]
    assert not rename_fields(str(tmp_path))


def test_the_changelog_lists_every_old_name():
    text = CHANGELOG.read_text()
    for old, new in NEW_NAMES.items():
        assert f"| `{old}` | `{new}` |" in text
