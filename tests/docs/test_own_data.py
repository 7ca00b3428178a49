# SPDX-License-Identifier: Apache-2.0
"""Files in docs/own_data.md are read as described, or rejected with the described error."""

import itertools
import re

import pytest
from pages import ROOT, blocks

from bert4rec_jax import config as config_lib
from bert4rec_jax.config import resolve
from bert4rec_jax.data.prepare import load_dataset
from bert4rec_jax.errors import UserError

PAGE = "docs/own_data.md"


def examples():
    """Yields (name, text, fields, expected, kind) for each example file; kind is "becomes" or "error"."""
    files = {}
    fields = ""
    for block in blocks(PAGE):
        if block.caption == "fields":
            fields = block.text.strip()
        elif block.caption in ("becomes", "error"):
            name = list(files)[-1]
            yield pytest.param(
                name,
                files[name],
                fields,
                block.text.strip(),
                block.caption,
                id=f"{name} {block.caption}",
            )
            fields = ""
        elif block.caption:
            files[block.caption] = block.text


def load(tmp_path, name, text, fields):
    (tmp_path / name).write_text(text)
    config = config_lib.base()
    config.data.update(source="table", path=name, cache_dir=str(tmp_path / "cache"))
    config.data.update(dict(field.split("=") for field in fields.split()))
    return load_dataset(resolve(config).data)


@pytest.mark.parametrize("name, text, fields, expected, kind", list(examples()))
def test_example_file(tmp_path, monkeypatch, name, text, fields, expected, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "error":
        with pytest.raises(UserError) as error:
            load(tmp_path, name, text, fields)
        assert str(error.value).replace(str(tmp_path) + "/", "") == expected
        return
    dataset = load(tmp_path, name, text, fields)
    items = dataset.item_table()["item"]
    users = dataset.user_table()["user"]
    lines = []
    for number, (start, stop) in enumerate(itertools.pairwise(dataset.offsets)):
        history = " ".join(items.loc[item] for item in dataset.items[start:stop])
        lines.append(f"{users.loc[number]}: {history}")
    assert sorted(lines) == sorted(expected.splitlines())


def test_messages_in_the_table_exist():
    table = (ROOT / PAGE).read_text().split("| message | remedy |")[1]
    messages = [
        phrase
        for row in table.strip().splitlines()[1:]
        for phrase in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    program = "".join(path.read_text() for path in (ROOT / "bert4rec_jax" / "data").rglob("*.py"))
    assert len(messages) > 15
    assert [phrase for phrase in messages if phrase not in program] == []


def test_item_table_provides_titles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = {block.caption: block.text for block in blocks(PAGE)}
    (tmp_path / "films.csv").write_text(shown["films.csv"])
    dataset = load(
        tmp_path,
        "views.csv",
        shown["views.csv"],
        "user_column=customer item_column=film time_column=watched_at items_path=films.csv",
    )
    titles = dataset.item_table().set_index("item")
    assert titles.loc["Alien", "year"] == 1979 and titles.loc["Heat", "genres"] == "Crime|Thriller"
