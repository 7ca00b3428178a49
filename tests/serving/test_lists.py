# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses
import shutil
import sys

import commands
import numpy as np
import pandas as pd
import pytest

import bert4rec_jax
from bert4rec_jax.data import load_dataset
from bert4rec_jax.errors import UserError
from bert4rec_jax.serving.lists import ListOptions, list_file, write_lists, write_parts


@pytest.fixture(scope="module")
def workdir(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists") / "run"
    shutil.copytree(small_run, folder)
    # As if no training history had the item that this history gets first.
    untrained = bert4rec_jax.load(str(folder)).recommend_numbers([[2, 3]], 1)[0][0].number
    table = pd.read_parquet(folder / "catalogue.parquet")
    assert (table["training_interactions"] > 0).all()
    table.loc[untrained, "training_interactions"] = 0
    table.to_parquet(folder / "catalogue.parquet")
    return folder


@pytest.fixture(scope="module")
def recommender(workdir):
    return bert4rec_jax.load(str(workdir))


@pytest.fixture(scope="module")
def untrained(recommender):
    """The original id of that item."""
    table = recommender.items_table
    return str(table.loc[table["training_interactions"] == 0, "item"].item())


@pytest.fixture(scope="module")
def histories(recommender):
    """{user: item numbers}, oldest first."""
    dataset = load_dataset(recommender.config.data)
    names = dataset.user_table()["user"]
    return {
        names[u]: np.asarray(dataset.items[dataset.offsets[u] : dataset.offsets[u + 1]]).tolist()
        for u in range(dataset.num_users)
    }


@pytest.fixture(scope="module")
def everybody(recommender, tmp_path_factory):
    path = tmp_path_factory.mktemp("all") / "lists.parquet"
    write_lists(recommender, str(path), ListOptions(7))
    return pd.read_parquet(path)


def test_without_the_runs_data_the_remedy_is_said(recommender, tmp_path):
    gone = copy.copy(recommender)
    data = dataclasses.replace(recommender.config.data, source="table", path="gone.csv")
    gone.config = dataclasses.replace(recommender.config, data=data)
    with pytest.raises(UserError, match=r"are not here \(.*gone\.csv.*\); .* with --histories\.$"):
        write_lists(gone, str(tmp_path / "lists.parquet"), ListOptions(7))


def ids(recommender, numbers):
    return recommender.items_table.loc[list(numbers), "item"].astype(str).tolist()


def test_everybody_gets_what_recommend_says_but_for_untrained_items(
    recommender, untrained, histories, everybody
):
    assert everybody["user"].unique().tolist() == list(histories)
    assert untrained not in set(everybody["item"])
    withheld = 0
    wanted = recommender.recommend_numbers(list(histories.values()), 8)
    for (user, rows), full in zip(everybody.groupby("user", sort=False), wanted):
        expected = [r for r in full if r.item != untrained][:7]
        withheld += len(full) != len([r for r in full if r.item != untrained])
        assert rows["item"].tolist() == [r.item for r in expected], user
        assert rows["rank"].tolist() == list(range(1, 8))
        np.testing.assert_allclose(rows["score"], [r.score for r in expected], atol=1e-5)
        np.testing.assert_allclose(
            rows["probability"], [r.probability for r in expected], atol=1e-6
        )
        assert rows["title"].tolist() == [r.title for r in expected]
    assert withheld


def test_a_killed_command_goes_on_and_a_finished_file_is_whole(
    recommender, everybody, tmp_path, monkeypatch
):
    monkeypatch.setattr(write_parts, "PART_USERS", 50)
    written = []
    put = list_file.ListFile.write

    def dying(self, number, table):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        put(self, number, table)

    path = tmp_path / "lists.parquet"
    monkeypatch.setattr(list_file.ListFile, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        write_lists(recommender, str(path), ListOptions(7))
    assert not path.exists() and written == [0, 1]
    monkeypatch.setattr(list_file.ListFile, "write", lambda *a: (written.append(a[1]), put(*a)))
    write_lists(recommender, str(path), ListOptions(7))
    assert written == [0, 1, 2]
    resumed = pd.read_parquet(path)
    pd.testing.assert_frame_equal(resumed, everybody, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["lists.parquet"]


def test_parts_of_other_lists_are_not_taken(recommender, tmp_path, monkeypatch):
    monkeypatch.setattr(list_file.ListFile, "finish", lambda self, count: None)
    write_lists(recommender, str(tmp_path / "lists.csv"), ListOptions(3))
    monkeypatch.undo()
    write_lists(recommender, str(tmp_path / "lists.csv"), ListOptions(4))
    assert pd.read_csv(tmp_path / "lists.csv")["rank"].max() == 4


def test_an_item_that_has_features_needs_no_training(recommender, untrained, tmp_path):
    featured = copy.copy(recommender)
    featured.items_table = recommender.items_table.assign(
        features=[["genres: drama"]] * recommender.num_items
    )
    write_lists(featured, str(tmp_path / "lists.parquet"), ListOptions(7))
    assert untrained in set(pd.read_parquet(tmp_path / "lists.parquet")["item"].astype(str))


def test_a_new_log_is_served_and_its_unknown_items_are_counted(
    recommender, untrained, tmp_path, capsys
):
    a, b, c = ids(recommender, [5, 9, 2])
    log = tmp_path / "new.csv"
    log.write_text(
        f"user,item,timestamp\nzoe,{b},20\nzoe,{a},10\nzoe,never seen,30\nyan,{c},1\nxu,also new,1\n"
    )
    out = tmp_path / "lists.csv"
    write_lists(recommender, str(out), ListOptions(4, histories=str(log)))
    said = capsys.readouterr().err
    assert "2 of 5 events are of 2 items" in said and "1 of 3 users lack an item" in said
    lists = pd.read_csv(out, dtype={"item": str})
    assert lists["user"].unique().tolist() == ["yan", "zoe"]
    expected = [
        r.item for r in recommender.recommend_numbers([[5, 9]], 5)[0] if r.item != untrained
    ][:4]
    assert lists[lists["user"] == "zoe"]["item"].tolist() == expected


def test_candidates_and_exclusions_for_everybody_and_for_each_user(
    recommender, untrained, histories, tmp_path
):
    users = list(histories)[:3]
    (tmp_path / "users.txt").write_text("\n".join(reversed(users)))
    few = [item for item in ids(recommender, range(1, 31)) if item != untrained]
    (tmp_path / "candidates.txt").write_text("\n".join(few))
    (tmp_path / "exclude.csv").write_text(
        "user,item\n" + "\n".join(f"{users[0]},{item}" for item in few[:20])
    )

    def lists(**options):
        write_lists(
            recommender,
            str(tmp_path / "out.parquet"),
            ListOptions(60, users=str(tmp_path / "users.txt"), **options),
        )
        table = pd.read_parquet(tmp_path / "out.parquet")
        return {user: rows["item"].tolist() for user, rows in table.groupby("user", sort=False)}

    plain = lists()
    assert list(plain) == users[::-1]
    chosen = lists(
        candidates=str(tmp_path / "candidates.txt"), exclude=str(tmp_path / "exclude.csv")
    )
    for user in users:
        left = set(few) - (set(few[:20]) if user == users[0] else set())
        assert chosen[user] == [item for item in plain[user] if item in left]
    with_seen = lists(include_seen=True)
    trained = set(recommender.items_table["item"].astype(str)) - {untrained}
    assert all(set(with_seen[user]) == trained for user in users)
    assert [x for x in with_seen[users[0]] if x in set(plain[users[0]])] == plain[users[0]]
    (tmp_path / "own.csv").write_text(
        f"item,user\n{few[0]},{users[0]}\n{few[1]},{users[0]}\n{few[2]},{users[1]}\n"
    )
    own = lists(candidates=str(tmp_path / "own.csv"), include_seen=True)
    assert {user: set(items) for user, items in own.items()} == {
        users[0]: set(few[:2]),
        users[1]: {few[2]},
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"out": "lists.txt"}, "must end in .parquet or .csv"),
        ({"users": "nobody.txt"}, "none of the 1 users of --users has a history .Nobody"),
        ({"users": "missing.txt"}, "--users .*missing.txt cannot be read"),
        ({"candidates": "nobody.txt"}, "the run knows none of these items; the first is 'Nobody'"),
        ({"histories": "strange.csv"}, "contains none of the 60 items"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(recommender, tmp_path, options, message):
    (tmp_path / "nobody.txt").write_text("Nobody\n")
    (tmp_path / "strange.csv").write_text("user,item,timestamp\na,x,1\na,y,2\n")
    out = str(tmp_path / options.pop("out", "lists.csv"))
    options = {
        name: value if "://" in value else str(tmp_path / value) for name, value in options.items()
    }
    with pytest.raises(UserError, match=message):
        write_lists(recommender, out, ListOptions(3, **options))


def test_the_command_on_eight_devices_and_a_split_catalogue_says_the_same(
    workdir, everybody, tmp_path, cache
):
    out = tmp_path / "lists.parquet"
    command = [
        sys.executable,
        "-m",
        "bert4rec_jax.recommend",
        "--workdir",
        str(workdir),
        "--users",
        "all",
        "--k",
        "7",
        "--out",
        str(out),
        "--item_shards",
        "4",
    ]
    done = commands.succeed(command, tmp_path, devices=8)
    assert (
        "lists of 120 users" in done.stdout
        and "1 of 60 items occur in no training history" in done.stderr
    )
    pd.testing.assert_frame_equal(pd.read_parquet(out), everybody, atol=1e-5)


def test_devices_that_do_not_fit_are_one_line_about_the_flag(workdir, recommender, tmp_path, cache):
    with pytest.raises(
        UserError, match="--item_shards = 4 must be at most 1, the number of devices"
    ):
        write_lists(recommender, str(tmp_path / "lists.csv"), ListOptions(3, item_shards=4))
    command = [
        sys.executable,
        "-m",
        "bert4rec_jax.recommend",
        "--workdir",
        str(workdir),
        "--users",
        "all",
        "--out",
        str(tmp_path / "lists.csv"),
        "--item_shards",
        "3",
    ]
    done = commands.run(command, tmp_path, devices=8)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--item_shards = 3 must divide the 64 rows of the item table" in " ".join(
        done.stderr.split()
    )
