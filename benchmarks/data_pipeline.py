# SPDX-License-Identifier: Apache-2.0
"""Generates a log and times its preparation by every engine, pandas, Polars and RecBole in one run.

    python benchmarks/data_pipeline.py --out DIR [--titles movies.parquet]
    python benchmarks/data_pipeline.py --out DIR --peers pandas,polars,recbole --environments FOLDER
    python benchmarks/data_pipeline.py --out DIR --plan experiments/results/data_pipeline/parquet_200m.json --record FILE
    python benchmarks/data_pipeline.py --out DIR --rows 200000000 --users 1000000 --items 1000000 --form parquet \
        --engines duckdb --memory 1GiB --peers ""

The ratings are made up: lengths of histories and popularity are skewed as in MovieLens, the order of the
csv file is the original's (by user, then by movie, so times are unsorted), nobody rates a movie twice; the Parquet
file (with --parts: a folder of such) is in no order at all, and has the columns of Yambda's flat files. Generation is
not timed. Each preparation runs
in a process of its own; the table holds its seconds, the seconds of processor time (which say more on a machine that
is shared), its peak memory, and the most disk that it took, its result included. `open again` is a second start, up to
the first batch; `first step` a training process, up to the end of its first step, compilation included.

pandas and Polars only compute the same order of events: sorted by user and time, to Parquet; no
numbering, no checks. RecBole reads its own format, which is written beforehand, and does what its `create_dataset` does
and sorts by user and time; `recbole, rows` also makes its row for every prefix of a history, without which it does not
train. It runs in an environment of its own (`benchmarks/peers/install.py`). Peers may take `--peer_gib` of memory and
`--peer_seconds`; one that needs more is shown with its limit.
"""

import glob
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
import install
from driver import commit, machine

FLAGS = flags.FLAGS
flags.DEFINE_integer("rows", 25_000_095, "Ratings.", lower_bound=1)
flags.DEFINE_integer("users", 162_541, "Users.", lower_bound=1)
flags.DEFINE_integer(
    "items", 62_423, "Movies; with --titles, the first so many of those.", lower_bound=100
)
flags.DEFINE_string(
    "titles", "", "Parquet or CSV with the columns item or movieId, title, genres and perhaps year."
)
flags.DEFINE_string(
    "out", None, "Folder for ratings.csv and movies.csv; files that are there are used again."
)
flags.DEFINE_integer("seed", 0, "Of the generator.")
flags.DEFINE_enum("form", "csv", ["csv", "parquet"], "Of the log.")
flags.DEFINE_integer("parts", 1, "Files of a Parquet log.", lower_bound=1)
flags.DEFINE_list("engines", ["duckdb"], "Engines to time, in turn.")
flags.DEFINE_list("peers", ["pandas", "polars"], "Other programs to time; recbole adds two lines.")
flags.DEFINE_string(
    "environments", "", "Folder for RecBole's environment; empty: the folder `peers` in --out."
)
flags.DEFINE_float("peer_gib", 12.0, "Memory that a peer may take.")
flags.DEFINE_float("peer_seconds", 600.0, "Time that a peer may take.")
flags.DEFINE_bool("first_step", False, "Also time a training process up to its first step.")
flags.DEFINE_string("memory", "1GiB", "As config.data.memory.")
flags.DEFINE_integer("rounds", 1, "Of all engines in turn; the median is reported.", lower_bound=1)
flags.DEFINE_string("record", "", "JSON file for the results.")
flags.DEFINE_string(
    "plan", "", "A record, whose DuckDB line is extended to 5 and 100 billion rows."
)
flags.DEFINE_bool("generate_only", False, "Do not time the preparation.")
flags.mark_flag_as_required("out")

_LONGEST_SHARE = 0.1  # of the movies, rated by one user
_USERS_AT_ONCE = 4096
_SPARK = 4  # times DuckDB's processor time: an assumption
_FINISH = """
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": time.perf_counter() - started, "cpu": usage.ru_utime + usage.ru_stime,
                  "gib": usage.ru_maxrss / 2**20} | facts))
"""
_PREPARE = """
import json, resource, sys, time
started = time.perf_counter()
from bert4rec_jax.config import DataConfig
from bert4rec_jax.data import TrainingBatches, load_dataset, split_dataset
config = DataConfig(**json.loads(sys.argv[1]))
dataset = load_dataset(config)
facts = {"fingerprint": dataset.fingerprint, "interactions": dataset.manifest["interactions"]}
if len(sys.argv) > 2:
    TrainingBatches(dataset, split_dataset(dataset), 100, 32, "random", 0).batch(0)
"""
_FIRST_STEP = """
import json, resource, sys, time
started = time.perf_counter()
from bert4rec_jax.config import recommended, resolve
from bert4rec_jax.experiment import Experiment
import jax
config = recommended()
config.data.update(json.loads(sys.argv[1]))
config.model.update(width=64, max_length=50)
config.train.batch_rows = 32
config.loss.update(name="sampled_softmax", negatives=1024)
experiment = Experiment(resolve(config))
data = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
state, _ = experiment.step(experiment.initial_state(), experiment.batch(0), experiment.root)
jax.block_until_ready(state)
usage = resource.getrusage(resource.RUSAGE_SELF)
facts = {"seconds": time.perf_counter() - started, "cpu": usage.ru_utime + usage.ru_stime,
         "gib": usage.ru_maxrss / 2**20, "gib_before_the_model": data}
facts["model_gib"] = experiment.step_bytes() / 2**30
"""
_RECBOLE = """
import json, logging, os, resource, sys, time
started = time.perf_counter()
folder, name, rows = sys.argv[1:4]
sys.argv = sys.argv[:1]
os.chdir(folder)
from recbole.config import Config
from recbole.data import create_dataset
logging.disable(logging.INFO)
config = Config(model="BERT4Rec", dataset=name, config_dict={
    "data_path": folder, "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "MAX_ITEM_LIST_LENGTH": 50,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
    "train_neg_sample_args": None, "use_gpu": False, "show_progress": False})
dataset = create_dataset(config)
if rows == "rows":
    dataset.build()
else:
    dataset.inter_feat.sort_values([dataset.uid_field, dataset.time_field], inplace=True)
facts = {}
"""
_PEERS = {
    "pandas": """
import json, resource, sys, time
started = time.perf_counter()
import pandas
columns = json.loads(sys.argv[2])
read = pandas.read_csv if sys.argv[1].endswith("csv") else pandas.read_parquet
frame = read(sys.argv[1], **{"usecols" if sys.argv[1].endswith("csv") else "columns": columns})
frame.sort_values(columns[::2], kind="stable").to_parquet(sys.argv[3])
facts = {}
""",
    "polars": """
import json, resource, sys, time
started = time.perf_counter()
import polars
columns = json.loads(sys.argv[2])
scan = polars.scan_csv if sys.argv[1].endswith("csv") else polars.scan_parquet
scan(sys.argv[1]).select(columns).sort(columns[::2], maintain_order=True).sink_parquet(sys.argv[3])
facts = {}
""",
}


def lengths_of_histories(
    rows: int, users: int, items: int, random: np.random.Generator
) -> np.ndarray:
    """Returns int64[users], log-normal with MovieLens's ratio of mean to median, that sum to `rows`."""
    longest = max(int(items * _LONGEST_SHARE), -(-rows // users))
    weights = random.lognormal(0.0, 1.1, users)
    lengths = np.clip(np.round(weights * rows / weights.sum()), 1, longest).astype(np.int64)
    while (missing := rows - lengths.sum()) != 0:
        movable = np.flatnonzero(lengths < longest if missing > 0 else lengths > 1)
        chosen = random.choice(movable, min(abs(missing), len(movable)), replace=False)
        lengths[chosen] += np.sign(missing)
    return lengths


def movies_of(
    lengths: np.ndarray, cumulative: np.ndarray, random: np.random.Generator
) -> np.ndarray:
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
    kinds = {
        "userId": pa.int64(),
        "movieId": pa.int64(),
        "rating": pa.float64(),
        "timestamp": pa.int64(),
    }
    options = pa.csv.WriteOptions(
        include_header=False
    )  # Arrow would quote the header; GroupLens does not
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


def generate_flat(path: str) -> None:
    """Writes a Parquet file, or a folder of `--parts` of them."""
    if FLAGS.parts == 1:
        return generate_part(path, [FLAGS.seed], FLAGS.rows, FLAGS.users, FLAGS.items)
    os.makedirs(path, exist_ok=True)
    with multiprocessing.Pool(os.cpu_count()) as pool:
        pool.starmap(
            generate_part,
            [
                (
                    os.path.join(path, f"part-{n}.parquet"),
                    [FLAGS.seed, n],
                    FLAGS.rows * (n + 1) // FLAGS.parts - FLAGS.rows * n // FLAGS.parts,
                    FLAGS.users,
                    FLAGS.items,
                )
                for n in range(FLAGS.parts)
            ],
            chunksize=1,
        )


def generate_part(path: str, seed: list[int], rows: int, users: int, items: int) -> None:
    """Writes uid, item_id, timestamp and played_ratio_pct in no order, a million rows at a time."""
    if os.path.exists(path):
        return
    random = np.random.default_rng(seed)
    kinds = {
        "uid": pa.uint32(),
        "item_id": pa.uint32(),
        "timestamp": pa.uint32(),
        "played_ratio_pct": pa.uint16(),
    }
    with pa.parquet.ParquetWriter(path + ".making", pa.schema(kinds)) as writer:
        for first in range(0, rows, 1 << 20):
            size = min(1 << 20, rows - first)
            columns = [
                users * random.random(size) ** 1.5,
                items * random.random(size) ** 3,
                random.integers(0, 5_200_000, size) * 5,
                random.integers(0, 101, size),
            ]
            arrays = [
                pa.array(column.astype(kind.to_pandas_dtype()))
                for column, kind in zip(columns, kinds.values())
            ]
            writer.write_table(pa.table(arrays, schema=pa.schema(kinds)))
    os.rename(path + ".making", path)


def write_for_recbole(log: str, columns: list[str], folder: str) -> None:
    """Writes a log in RecBole's own format, a block at a time."""
    name = os.path.basename(folder)
    path = os.path.join(folder, f"{name}.inter")
    os.makedirs(folder, exist_ok=True)
    if log.endswith(".csv"):
        options = pa.csv.ConvertOptions(include_columns=columns)
        blocks = (
            pa.table([batch[c] for c in columns], columns)
            for batch in pa.csv.open_csv(log, convert_options=options)
        )
    else:
        blocks = (
            pa.table([batch[c] for c in columns], columns)
            for batch in pa.parquet.ParquetFile(log).iter_batches(columns=columns)
        )
    kinds = pa.schema([(c, pa.int64()) for c in columns])
    with open(path + ".part", "wb") as file:
        file.write(b"user_id:token\titem_id:token\ttimestamp:float\n")
        options = pa.csv.WriteOptions(include_header=False, delimiter="\t")
        with pa.csv.CSVWriter(file, kinds, write_options=options) as writer:
            for block in blocks:
                writer.write_table(block.select([columns[0], columns[1], columns[2]]).cast(kinds))
    os.rename(path + ".part", path)


def measure(
    script: str,
    arguments: list[str],
    disk: str,
    python: str = sys.executable,
    limited: bool = False,
) -> dict:
    """Runs a script in a process of its own, and watches how much disk a folder takes meanwhile; `limited`: as peers
    are."""
    most, running = [0], threading.Event()

    def watch():
        ended = False
        while not ended:
            ended = running.wait(1)
            found = subprocess.run(
                ["du", "-sk", disk], capture_output=True, text=True
            ).stdout.split()
            most.append(int(found[0]) if found else 0)

    def limit():
        if limited:
            resource.setrlimit(resource.RLIMIT_DATA, (int(FLAGS.peer_gib * 2**30),) * 2)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        done = subprocess.run(
            [python, "-c", script + _FINISH, *arguments],
            capture_output=True,
            text=True,
            preexec_fn=limit,
            timeout=FLAGS.peer_seconds if limited else None,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {FLAGS.peer_seconds:.0f} s"}
    finally:
        running.set()
        watcher.join()
    if done.returncode:
        return {
            "failed": (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[
                -1
            ]
        }
    return json.loads(done.stdout.splitlines()[-1]) | {"disk_gib": max(most) / 2**20}


def measure_peer(peer: str, log: str, columns: list[str], cache: str) -> dict[str, dict]:
    """Returns {line of the table: its measurements}."""
    os.makedirs(cache, exist_ok=True)
    if peer != "recbole":
        arguments = [log, json.dumps(columns), os.path.join(cache, "sorted.parquet")]
        return {peer: measure(_PEERS[peer], arguments, cache, limited=True)}
    python = install.environment_python(
        "recbole", FLAGS.environments or os.path.join(FLAGS.out, "peers")
    )
    folder = os.path.join(
        os.path.dirname(log), "recbole_" + os.path.basename(log).replace(".", "_")
    )
    if not os.path.exists(os.path.join(folder, f"{os.path.basename(folder)}.inter")):
        write_for_recbole(log, columns, folder)
    arguments = [os.path.dirname(folder), os.path.basename(folder)]
    return {
        line: measure(_RECBOLE, [*arguments, what], cache, str(python), limited=True)
        for line, what in (("recbole", "order"), ("recbole, rows", "rows"))
    }


def main(_) -> None:
    """Generates missing logs, then measures."""
    if FLAGS.plan:
        return plan(FLAGS.plan)
    folder = os.path.abspath(FLAGS.out)
    os.makedirs(folder, exist_ok=True)
    flat = FLAGS.form == "parquet"
    log = os.path.join(
        folder, "ratings.csv" if not flat else "flat" if FLAGS.parts > 1 else "flat.parquet"
    )
    if not os.path.exists(log) or len(os.listdir(log) if FLAGS.parts > 1 else [log]) < FLAGS.parts:
        started = time.perf_counter()
        generate_flat(log) if flat else generate(folder)
        print(f"generated in {time.perf_counter() - started:.0f} s")
    if FLAGS.generate_only:
        return
    source = {"source": "ml-25m", "path": folder}
    if flat:
        source = {"source": "table", "path": log, "user_column": "uid", "item_column": "item_id"}
    columns = ["uid", "item_id", "timestamp"] if flat else ["userId", "movieId", "timestamp"]
    results: dict[str, list[dict]] = {}
    cache = os.path.join(folder, "cache")
    for _ in range(FLAGS.rounds):
        for peer in FLAGS.peers:
            for line, found in measure_peer(peer, log, columns, cache).items():
                results.setdefault(line, []).append(found)
            shutil.rmtree(cache)
        for engine in FLAGS.engines:
            options = json.dumps(
                source | {"cache_dir": cache, "engine": engine, "memory": FLAGS.memory}
            )
            shutil.rmtree(cache, ignore_errors=True)
            results.setdefault(engine, []).append(measure(_PREPARE, [options], cache))
            results.setdefault("open again", []).append(
                measure(_PREPARE, [options, "batch"], cache)
            )
            if FLAGS.first_step:
                results.setdefault("first step", []).append(measure(_FIRST_STEP, [options], cache))
    shutil.rmtree(cache, ignore_errors=True)
    report(
        results, sum(map(os.path.getsize, [log] if os.path.isfile(log) else glob.glob(f"{log}/*")))
    )


def plan(record: str) -> None:
    """Extrapolates a record to more rows, in proportion to the rows; prints and records the result."""
    with open(record, encoding="utf-8") as file:
        found = json.load(file)
    measured, rows = found["results"]["duckdb"][0], found["flags"]["rows"]
    cpu, disk, log = (
        measured["cpu"] / rows,
        measured["disk_gib"] / rows,
        found["bytes"] / 2**30 / rows,
    )
    columns = [
        "rows",
        "log GiB",
        "disk at most GiB",
        "prepared GiB",
        "core hours, DuckDB",
        "hours on 16 cores",
        "core hours, Spark",
        "hours on 256 cores",
        "disk GiB of each of 16 executors",
    ]
    lines = []
    for size in sorted({rows, 10**9, 5 * 10**9, 10**11}):
        hours = size * cpu / 3600
        lines.append(
            [
                f"{size:,}",
                f"{size * log:,.0f}",
                f"{size * disk:,.0f}",
                f"{size * 12 / 2**30:,.0f}",
                f"{hours:,.2f}",
                f"{hours / 16:,.2f}",
                f"{hours * _SPARK:,.2f}",
                f"{hours * _SPARK / 256:,.2f}",
                f"{size * disk / 16:,.0f}",
            ]
        )
    print_table(columns, lines)
    if FLAGS.record:
        write_record(
            {
                "extended": os.path.basename(record),
                "commit": commit(),
                "columns": columns,
                "rows": lines,
            }
        )


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Prints a table in Markdown."""
    for row in (columns, ["---"] * len(columns), *rows):
        print("| " + " | ".join(row) + " |")


def write_record(content: dict) -> None:
    """Writes --record."""
    os.makedirs(os.path.dirname(FLAGS.record) or ".", exist_ok=True)
    with open(FLAGS.record, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def report(results: dict[str, list[dict]], size: int) -> None:
    """Prints the table of medians and writes the record."""
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"{FLAGS.rows:,} rows, {size / 2**30:.1f} GiB of {FLAGS.form}, memory {FLAGS.memory}, {os.cpu_count()} cores, "
        f"load of the machine at the end {load}"
    )
    columns, rows = ["step", "seconds", "cpu seconds", "rows/s", "peak RSS GiB", "disk GiB"], []
    for name, rounds in results.items():
        sound = [r for r in rounds if "failed" not in r]
        if not sound:
            print(
                f"{name} failed with {FLAGS.peer_gib:g} GiB and {FLAGS.peer_seconds:g} s: {rounds[0]['failed']}"
            )
            late, short = (
                "not done" in rounds[0]["failed"],
                "alloc" in rounds[0]["failed"].lower(),
            )
            short = short or "memory" in rounds[0]["failed"].lower()
            rows.append(
                [
                    name,
                    f"> {FLAGS.peer_seconds:g}" if late else "failed",
                    "-",
                    "-",
                    f"> {FLAGS.peer_gib:g}" if short else "-",
                    "-",
                ]
            )
            continue
        middle = {
            key: float(np.median([r[key] for r in sound]))
            for key in ("seconds", "cpu", "gib", "disk_gib")
        }
        speed = (
            "" if name in ("open again", "first step") else f"{FLAGS.rows / middle['seconds']:,.0f}"
        )
        rows.append(
            [
                name,
                f"{middle['seconds']:.1f}",
                f"{middle['cpu']:.1f}",
                speed,
                f"{middle['gib']:.2f}",
                f"{middle['disk_gib']:.1f}",
            ]
        )
    print_table(columns, rows)
    if FLAGS.record:
        facts = {
            name: FLAGS[name].value
            for name in (
                "rows",
                "users",
                "items",
                "form",
                "parts",
                "memory",
                "rounds",
                "seed",
                "peer_gib",
                "peer_seconds",
            )
        }
        write_record(
            {
                "flags": facts,
                "bytes": size,
                "cores": os.cpu_count(),
                "machine": machine(),
                "commit": commit(),
                "load": os.getloadavg(),
                "date": time.strftime("%Y-%m-%d"),
                "results": results,
                "columns": columns,
                "rows": rows,
            }
        )


if __name__ == "__main__":
    app.run(main)
