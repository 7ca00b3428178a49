# SPDX-License-Identifier: Apache-2.0
"""docs/own_data.md: every file that it shows becomes what it says, or ends in the error that it says."""

import re

import pytest
from pages import ROOT, blocks

from bert4rec_jax import config as config_lib
from bert4rec_jax.config import resolve
from bert4rec_jax.data.prepare import load_dataset
from bert4rec_jax.errors import UserError

PAGE = "docs/own_data.md"


def examples():
    """Yields (name, text, fields, what follows, kind) of each file with what is said of it."""
    files, fields = {}, ""
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


@pytest.mark.parametrize("name, text, fields, said, kind", list(examples()))
def test_each_file_of_the_page(tmp_path, monkeypatch, name, text, fields, said, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "error":
        with pytest.raises(UserError) as error:
            load(tmp_path, name, text, fields)
        assert str(error.value).replace(str(tmp_path) + "/", "") == said
        return
    dataset = load(tmp_path, name, text, fields)
    items, users = dataset.item_table()["item"], dataset.user_table()["user"]
    lines = [
        f"{users.loc[u]}: " + " ".join(items.loc[i] for i in dataset.items[a:b])
        for u, (a, b) in enumerate(zip(dataset.offsets, dataset.offsets[1:]))
    ]
    assert sorted(lines) == sorted(said.splitlines())


def test_every_message_of_the_table_is_one_of_the_program():
    table = (ROOT / PAGE).read_text().split("| message | remedy |")[1]
    said = [
        phrase
        for row in table.strip().splitlines()[1:]
        for phrase in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    program = "".join(path.read_text() for path in (ROOT / "bert4rec_jax" / "data").rglob("*.py"))
    assert len(said) > 15 and [phrase for phrase in said if phrase not in program] == []


def test_titles_come_from_the_item_table(tmp_path, monkeypatch):
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
