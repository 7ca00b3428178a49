# SPDX-License-Identifier: Apache-2.0
"""Generates a log of MovieLens-25M's shape and times its preparation.

    python benchmarks/data_pipeline.py --out DIR [--titles movies.parquet]

The ratings are made up: lengths of histories and popularity are skewed as in MovieLens, the order of the
file is the original's (by user, then by movie, so times are unsorted), nobody rates a movie twice. Generation
is not timed. The table that is printed holds the seconds of the first start, which prepares, and of a second
one, each in a process of its own with its peak memory.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("rows", 25_000_095, "Ratings.", lower_bound=1)
flags.DEFINE_integer("users", 162_541, "Users.", lower_bound=1)
flags.DEFINE_integer("items", 62_423, "Movies; with --titles, the first so many of those.", lower_bound=100)
flags.DEFINE_string("titles", "", "Parquet or CSV with the columns item or movieId, title, genres and perhaps year.")
flags.DEFINE_string("out", None, "Folder for ratings.csv and movies.csv; files that are there are used again.")
flags.DEFINE_integer("seed", 0, "Of the generator.")
flags.DEFINE_bool("generate_only", False, "Do not time the preparation.")
flags.mark_flag_as_required("out")

_LONGEST_SHARE = 0.1  # of the movies, rated by one user
_USERS_AT_ONCE = 4096
_MEASURE = """
import json, resource, sys, time
started = time.perf_counter()
from bert4rec_jax.config import DataConfig
from bert4rec_jax.data import load_dataset
dataset = load_dataset(DataConfig(source="ml-25m", path=sys.argv[1], cache_dir=sys.argv[2]))
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": seconds, "gib": peak, "statistics": dataset.statistics()}))
"""


def lengths_of_histories(rows: int, users: int, items: int, random: np.random.Generator) -> np.ndarray:
    """Returns int64[users], log-normal with MovieLens's ratio of mean to median, that sum to `rows`."""
    longest = max(int(items * _LONGEST_SHARE), -(-rows // users))
    weights = random.lognormal(0.0, 1.1, users)
    lengths = np.clip(np.round(weights * rows / weights.sum()), 1, longest).astype(np.int64)
    while (missing := rows - lengths.sum()) != 0:
        movable = np.flatnonzero(lengths < longest if missing > 0 else lengths > 1)
        chosen = random.choice(movable, min(abs(missing), len(movable)), replace=False)
        lengths[chosen] += np.sign(missing)
    return lengths


def movies_of(lengths: np.ndarray, cumulative: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns places in the catalogue, distinct and ascending within a user, users one after another."""
    items, users = len(cumulative), len(lengths)
    taken = np.zeros(0, np.int64)
    missing = lengths.copy()
    while missing.any():
        owner = np.repeat(np.arange(users), missing + missing // 2 + 1)
        drawn = np.minimum(np.searchsorted(cumulative, random.random(len(owner))), items - 1)
        fresh = np.setdiff1d(owner * items + drawn, taken)
        # A random part of the fresh ones, so that a surplus is not always cut at the same end of the catalogue.
        fresh = fresh[np.lexsort((random.random(len(fresh)), fresh // items))]
        number = np.arange(len(fresh)) - np.searchsorted(fresh // items, fresh // items)
        taken = np.sort(np.concatenate([taken, fresh[number < missing[fresh // items]]]))
        missing = lengths - np.bincount(taken // items, minlength=users)
    return taken % items


def generate(folder: str) -> None:
    """Writes ratings.csv and movies.csv."""
    random = np.random.default_rng(FLAGS.seed)
    movies = movie_table()
    ids = np.sort(movies["movieId"].to_numpy())
    popularity = random.permutation(1.0 / (np.arange(len(ids)) + 30.0))
    cumulative = np.cumsum(popularity) / popularity.sum()
    lengths = lengths_of_histories(FLAGS.rows, FLAGS.users, len(ids), random)
    pa.csv.write_csv(movies, os.path.join(folder, "movies.csv"))
    path = os.path.join(folder, "ratings.csv")
    kinds = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.float64(), "timestamp": pa.int64()}
    options = pa.csv.WriteOptions(include_header=False)  # Arrow would quote the header; GroupLens does not
    with (
        open(path + ".part", "wb") as file,
        pa.csv.CSVWriter(file, pa.schema(kinds), write_options=options) as writer,
    ):
        file.write(",".join(kinds).encode() + b"\n")
        for first in range(0, len(lengths), _USERS_AT_ONCE):
            part = lengths[first : first + _USERS_AT_ONCE]
            users = np.repeat(np.arange(first, first + len(part)) + 1, part)
            starts = np.repeat(random.integers(789_652_004, 1_574_000_000, len(part)), part)
            times = starts + random.integers(0, 500_000, len(users))
            rated = ids[movies_of(part, cumulative, random)]
            columns = [users, rated, random.integers(1, 11, len(users)) / 2, times]
            writer.write_table(pa.table(columns, schema=pa.schema(kinds)))
    os.rename(path + ".part", path)


def movie_table() -> pa.Table:
    """Returns movieId, title, genres in MovieLens's form: real titles if given, else made-up ones."""
    if not FLAGS.titles:
        ids = np.cumsum(np.random.default_rng(FLAGS.seed).integers(1, 6, FLAGS.items))
        titles = [f"Film {number}, The ({1920 + number % 100})" for number in ids]
        return pa.table({"movieId": ids, "title": titles, "genres": ["Comedy|Drama"] * len(ids)})
    read = pa.parquet.read_table if FLAGS.titles.endswith(".parquet") else pa.csv.read_csv
    table = read(FLAGS.titles).slice(0, FLAGS.items)
    rows = table.to_pylist()
    titles = [f"{r['title']} ({int(r['year'])})" if r.get("year") else r["title"] for r in rows]
    ids = table["item" if "item" in table.column_names else "movieId"]
    genres = [r["genres"] or "(no genres listed)" for r in rows]
    return pa.table({"movieId": ids.cast(pa.int64()), "title": titles, "genres": genres})


def measure(folder: str, cache: str) -> dict:
    """Opens the data set in a fresh process, preparing it where that was not done yet."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, folder, cache], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main(_) -> None:
    """Generates what is missing, then measures."""
    folder = os.path.abspath(FLAGS.out)
    os.makedirs(folder, exist_ok=True)
    if not os.path.exists(os.path.join(folder, "ratings.csv")):
        started = time.perf_counter()
        generate(folder)
        print(f"generated in {time.perf_counter() - started:.0f} s")
    if FLAGS.generate_only:
        return
    cache = os.path.join(folder, "cache")
    shutil.rmtree(cache, ignore_errors=True)
    first, second = measure(folder, cache), measure(folder, cache)
    facts = first["statistics"]
    rows = facts["interactions"]
    print(f"{rows:,} rows, {facts['users']:,} users, {facts['items']:,} items, {os.cpu_count()} cores")
    print("| step | seconds | rows/s | peak RSS GiB |\n|---|--:|--:|--:|")
    for name, result in (("prepare", first), ("open again", second)):
        print(f"| {name} | {result['seconds']:.2f} | {rows / result['seconds']:,.0f} | {result['gib']:.2f} |")


if __name__ == "__main__":
    app.run(main)
