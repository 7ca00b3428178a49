# SPDX-License-Identifier: Apache-2.0
"""Mutated logs, configurations, histories and sweeps end in success or in one `UserError`: never in another exception or a hang."""

import contextlib
import itertools
import json
import pathlib
import shutil
import signal
import tempfile
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepared import data_and_filter

from bert4rec_jax import config as config_lib
from bert4rec_jax.data import load_dataset, split_dataset
from bert4rec_jax.data.sources.movielens import RELEASES
from bert4rec_jax.errors import UserError
from bert4rec_jax.serving import read_histories
from experiments.sweeping import sweep_file

LONGEST_SECONDS = 30
TOKENS = [
    token.encode()
    for token in (
        "",
        " ",
        "\n",
        "\r",
        "\r\n",
        "\t",
        ",",
        ";",
        "::",
        "|",
        '"',
        '""',
        "'",
        "\0",
        "\x1f",
        "\x0b",
        "\x85",
        "\u2028",
        "\ufeff",
        "é",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "-1",
        "0",
        "1.5",
        "99999999999999999999",
        "2020-01-01",
        "2020-01-01T00:00:00+02:00",
        "2020-13-41",
        "true",
        "null",
        "(1995)",
        "9" * 400,
    )
] + [b"\xff", b"\xc3", b"\x1f\x8b", b"PK\x03\x04"]
ROWS = [
    (user, item, 1 + (user + item) % 5, 1_000_000_000 + 60 * n)
    for n, (user, item) in enumerate(
        (u, (3 * u + k) % 11) for u in range(1, 9) for k in range(1, 6)
    )
]


def joined(separator: str, *columns: int, header: str = "") -> bytes:
    lines = [separator.join(str(row[column]) for column in columns) for row in ROWS]
    return "\n".join([header] * bool(header) + lines + [""]).encode()


def movies(name: str) -> bytes:
    separator = RELEASES[name].movies_separator
    header = ["movieId,title,genres"] * RELEASES[name].header
    rest = (
        separator.join(["01-Jan-1995", "", "http://x", *"0100000000000000000"])
        if separator == "|"
        else "Comedy|Drama"
    )
    return "\n".join(
        [*header, *(f"{n}{separator}Film {n} (1995){separator}{rest}" for n in range(11)), ""]
    ).encode()


mutation = st.tuples(
    st.sampled_from(["replace", "insert", "delete", "repeat", "truncate"]),
    st.floats(0, 1),
    st.integers(1, 40),
    st.sampled_from(TOKENS),
)


def mutate(content: bytes, mutations) -> bytes:
    for kind, place, length, token in mutations:
        start = int(place * len(content))
        stop = start + length
        content = {
            "replace": lambda: content[:start] + token + content[start + len(token) :],
            "insert": lambda: content[:start] + token + content[start:],
            "delete": lambda: content[:start] + content[stop:],
            "repeat": lambda: content[:stop] + content[start:],
            "truncate": lambda: content[:start],
        }[kind]()
    return content


@contextlib.contextmanager
def time_limit():
    def ring(*_):
        raise AssertionError(f"not done after {LONGEST_SECONDS} s")

    # The test as a whole may have a limit by the same clock.
    previous, (left, _) = (
        signal.signal(signal.SIGALRM, ring),
        signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS),
    )
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, left)


def prepare(files: dict[str, bytes], **fields) -> str:
    """Reads files as `data.source` and the other fields say; returns how that ended."""
    folder = tempfile.mkdtemp()
    try:
        for name, content in files.items():
            with open(f"{folder}/{name}", "wb") as file:
                file.write(content)
        path = folder if len(files) > 1 else f"{folder}/{next(iter(files))}"
        kind = fields.pop("kind", "leave_one_out")
        options = {"path": path, "cache_dir": f"{folder}/cache"} | fields
        config, filters = data_and_filter(**options)
        with time_limit():
            dataset = load_dataset(config, filters)
            split_dataset(dataset, config_lib.SplitConfig(kind=kind))
            dataset.item_table()
            return "success"
    except UserError as error:
        assert str(error).strip()
        return "user error"
    finally:
        shutil.rmtree(folder)


def delimited_case(mutations, extension, separator, columns):
    content = joined(
        separator, 0, 1, 2, 3, header=separator.join(["user", "item", "rating", "timestamp"])
    )
    return prepare({f"log.{extension}": mutate(content, mutations)}, source="table", **columns)


def lines_case(mutations, source, separator):
    if source == "lines":
        content = joined(separator, 0, 1)
    else:
        groups = itertools.groupby(ROWS, key=lambda row: row[0])
        content = b"".join(
            separator.join([str(user), *(str(r[1]) for r in rows)]).encode() + b"\n"
            for user, rows in groups
        )
    return prepare({"log.txt": mutate(content, mutations)}, source=source)


def movielens_case(mutations, more, name):
    layout = RELEASES[name]
    header = "userId,movieId,rating,timestamp" if layout.header else ""
    ratings = joined(layout.separator, 0, 1, 2, 3, header=header)
    return prepare(
        {layout.ratings: mutate(ratings, mutations), layout.movies: mutate(movies(name), more)},
        source=name,
    )


def parquet_case(columns, mutations, split, cores):
    folder = tempfile.mkdtemp()
    try:
        pq.write_table(pa.table(columns), f"{folder}/t.parquet")
        with open(f"{folder}/t.parquet", "rb") as file:
            content = file.read()
    finally:
        shutil.rmtree(folder)
    return prepare({"log.parquet": mutate(content, mutations)}, source="table", kind=split, **cores)


def column_values():
    """Columns of 12 values of one type that Parquet knows, some missing."""
    kinds = [
        st.integers(-(2**63), 2**63 - 1),
        st.integers(0, 5),
        st.floats(width=64),
        st.text(max_size=4),
        st.booleans(),
        st.binary(max_size=3),
        st.datetimes(),
        st.dates(),
        st.timedeltas(-timedelta(9), timedelta(9)),
        st.decimals(-9, 9, places=2),
        st.lists(st.integers(0, 3), max_size=2),
        st.none(),
    ]
    plain = [st.lists(kind, min_size=12, max_size=12) for kind in kinds]
    gaps = [st.lists(st.one_of(st.none(), kind), min_size=12, max_size=12) for kind in kinds[:6]]
    return st.one_of(*plain, *gaps)


USUAL = {
    "user": list("aaaabbbbcccc"),
    "item": list(range(4)) * 3,
    "timestamp": list(range(12)),
    "x": [None] * 12,
}


@st.composite
def tables(draw):
    names = draw(
        st.sampled_from(
            [
                ("user", "item"),
                ("user", "item", "timestamp"),
                ("item", "timestamp"),
                ("user", "item", "x"),
            ]
        )
    )
    odd = draw(st.sets(st.sampled_from(names)))
    return {name: pa.array(draw(column_values()) if name in odd else USUAL[name]) for name in names}


few = st.lists(mutation, max_size=3)
COLUMNS = st.sampled_from(
    [
        {},
        {"rating_column": "rating"},
        {"rating_column": "rating", "min_rating": 3.0},
        {"separator": "::"},
        {"time_column": ""},
        {"kind": "temporal"},
        {"user_column": "1", "item_column": "2", "time_column": "4"},
    ]
)
CASES = {
    "delimited": (
        delimited_case,
        (
            few,
            st.sampled_from(["csv", "tsv", "dat"]),
            st.sampled_from([",", "\t", "::", ";", "|"]),
            COLUMNS,
        ),
    ),
    "lines": (
        lines_case,
        (few, st.sampled_from(["lines", "sequences"]), st.sampled_from([" ", "\t", ","])),
    ),
    "movielens": (movielens_case, (few, few, st.sampled_from(["ml-100k", "ml-1m", "ml-25m"]))),
    "parquet": (
        parquet_case,
        (
            tables(),
            st.one_of(st.just([]), few),
            st.sampled_from(["leave_one_out", "temporal"]),
            st.sampled_from(
                [
                    {},
                    {"time_column": ""},
                    {"item_core": 2, "duplicate_events": "drop"},
                    {"first_users": -2},
                ]
            ),
        ),
    ),
}

FLAT = {}


def flatten(values: dict, prefix: str = "") -> None:
    for name, value in values.items():
        FLAT[prefix + name] = value
        if isinstance(value, dict):
            flatten(value, f"{prefix}{name}.")


flatten(config_lib.Config().to_dict())
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 5),
    st.floats(),
    st.floats(-2, 2),
    st.text(max_size=6),
    st.sampled_from(["pmap", "next", "temporal", "gbce", "adamw", "lines", "mrr@5", "bfloat16"]),
    st.just({}),
    st.just([]),
    st.just((1,)),
    st.binary(max_size=2),
    st.just(float("nan")),
    st.dictionaries(st.text(max_size=3), st.integers()),
)
GOOD = {
    "model.width": 32,
    "model.heads": 4,
    "train.batch_rows": 8,
    "loss.name": "gbce",
    "seed": 3,
    "eval.metric": "mrr",
}
changes = st.one_of(
    st.just(GOOD),
    st.dictionaries(st.sampled_from(sorted(GOOD)), st.integers(1, 4)),
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(FLAT)), st.text(max_size=5)), VALUES, max_size=4
    ),
)


def config_case(changed: dict) -> str:
    values = config_lib.Config().to_dict()
    for name, value in changed.items():
        *groups, leaf = name.split(".")
        group = values
        for part in groups:
            group = group.get(part) if isinstance(group, dict) else None
        if isinstance(group, dict):
            group[leaf] = value
    try:
        with time_limit():
            config = config_lib.resolve(values)
        assert config_lib.resolve(config.to_dict()) == config
        return "success"
    except UserError as error:
        assert "config" in str(error)
        return "user error"


CASES["config"] = (config_case, (changes,))


HISTORIES = [
    {"the first": ["Toy Story (1995)", 187, "id:5"], "the second": [3.0], "nobody": []},
    [["Toy Story (1995)", 187], [12.5, "é"]],
    [[1]],
]


@contextlib.contextmanager
def written(name: str, content: bytes):
    """Yields the path of a file with this content."""
    folder = tempfile.mkdtemp()
    try:
        path = pathlib.Path(folder, name)
        path.write_bytes(content)
        yield str(path)
    finally:
        shutil.rmtree(folder)


def histories_case(mutations, histories, escaped) -> str:
    content = json.dumps(histories, ensure_ascii=escaped).encode()
    with written("histories.json", mutate(content, mutations)) as path:
        try:
            with time_limit():
                named = read_histories(path)
        except UserError as error:
            assert path in str(error)
            return "user error"
    assert named and all(isinstance(item, str) for history in named.values() for item in history)
    return "success"


CASES["histories"] = (histories_case, (few, st.sampled_from(HISTORIES), st.booleans()))

CONFIG = str(pathlib.Path(__file__).parents[1] / "configs" / "synthetic.py")
SWEEPS = [
    'def sweep():\n    yield from with_seeds(grid({"model.width": [32, 64], "loss.name": ["gbce"]}), seeds=[0, 1])\n',
    'def sweep():\n    return one_at_a_time({"model.heads": 2}, {"model.norm": ["pre", "post"], "seed": [0, 3]})\n',
    'SEARCH = Search(space={"optimizer.learning_rate": log_uniform(1e-4, 1e-2), "model.layers": integer(1, 4),\n'
    '  "model.head": choice("tied", "transform")}, trials=4, fixed={"model.width": 32}, startup=2)\n',
]


def sweep_case(text: str, common: dict) -> str:
    try:
        with written("sweep.py", text.encode("utf-8", "surrogatepass")) as path, time_limit():
            sweep = sweep_file.load(path, common)
            flags = [
                sweep_file.arguments(sweep.overrides(n))
                for n in range(len(sweep) if sweep.trials else 0)
            ]
            assert len(sweep) and all(
                flag.startswith("--config.") for trial in flags for flag in trial
            )
            return "success"
    except UserError as error:
        assert str(error).strip()
        return "user error"


def sweep_text_case(mutations, text: str) -> str:
    head = f"from experiments.sweep import *\nCONFIG = {CONFIG!r}\n"
    return sweep_case(head + mutate(text.encode(), mutations).decode("utf-8", "replace"), {})


def sweep_values_case(trials: list, common: dict) -> str:
    return sweep_case(f"CONFIG = {CONFIG!r}\ndef sweep():\n    return {trials!r}\n", common)


def assignments_case(mutations, assignments: list[str]) -> str:
    texts = [mutate(text.encode(), mutations).decode("utf-8", "replace") for text in assignments]
    try:
        with time_limit():
            sweep_file.apply(config_lib.base().to_dict(), sweep_file.parse_assignments(texts))
        return "success"
    except UserError as error:
        assert "--set" in str(error) or "config" in str(error)
        return "user error"


CASES["sweep_text"] = (sweep_text_case, (few, st.sampled_from(SWEEPS)))
CASES["sweep_values"] = (
    sweep_values_case,
    (
        st.one_of(st.lists(changes, max_size=3), st.lists(VALUES, max_size=2)),
        st.one_of(
            st.just({}),
            st.dictionaries(st.sampled_from(sorted(GOOD)), st.integers(1, 4), max_size=1),
        ),
    ),
)
CASES["assignments"] = (
    assignments_case,
    (
        few,
        st.lists(
            st.sampled_from(
                [
                    "model.width=32",
                    "loss.name=gbce",
                    "data.path=folder=1",
                    "model.remat=true",
                    "optimizer.learning_rate=1e-3",
                    "seed=3",
                ]
            ),
            min_size=1,
            max_size=3,
        ),
    ),
)


def fuzz(kind: str, examples: int) -> dict[str, int]:
    """Runs a kind of case on as many inputs; returns how often each outcome came."""
    case, strategies = CASES[kind]
    outcomes = {"success": 0, "user error": 0}

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(*strategies))
    def check(arguments):
        outcomes[case(*arguments)] += 1

    check()
    print(f"{kind}: {outcomes}")
    return outcomes


@pytest.mark.parametrize("kind", CASES)
def test_mutated_inputs_end_well(kind):
    outcomes = fuzz(kind, 60)
    assert min(outcomes.values()) > 0, f"one-sided: {outcomes}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_thousands_of_mutated_inputs_end_well(kind):
    fuzz(kind, 2000)
