# SPDX-License-Identifier: Apache-2.0
"""Lists of all users: `recommend --users`, RecBole's and RecTools' own top-k, on models of the same size.

    taskset -c 0 python benchmarks/recommend.py --out runs/bench [--items 62423,1000000] [--users 1024]

Width 64, 2 layers, histories of up to 200 items in the shape of MovieLens-25M's, the 100 best items of each user,
random weights, one thread. Each program is started once for each size of the catalogue, makes the lists once to warm
up, and then takes turns with the others. Ours is the whole command without loading the run, and writes a Parquet file;
RecTools' is `recommend`, which returns a table; RecBole's is `full_sort_topk`, which neither removes what a user has
seen nor writes anything. Processor time is compared, too: other programs of the machine matter less for it.

The peers use the environments of speed.py, under environments/ in the same folder.
"""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
import data as peer_data
import install
from driver import PeerProcess, commit, machine
from protocol import LIST_LENGTH, PeerConfig

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "out",
    "runs/bench",
    "Folder for data, recommend.json and, under environments/, the peers' packages.",
)
flags.DEFINE_list("items", ["62423", "1000000"], "Sizes of the catalogue.")
flags.DEFINE_list("peers", ["ours", "rectools", "recbole"], "Programs, ours among them.")
flags.DEFINE_integer("users", 1024, "Users who get a list.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "Turns of each program.", lower_bound=1)

LONGEST = 150  # items of a history that is there for the catalogue's sake alone; no program cuts it
COLUMNS = [
    "items",
    "program",
    "users/s, median [min, max]",
    "ours is",
    "users per second of processor time",
    "ours is",
    "peak MiB",
]


def measure(items: int, pythons: dict[str, Path], folder: Path) -> tuple[dict, dict]:
    """Returns the answers and `rounds` of each program, and why others were not measured."""
    data = folder / f"lists-{items}-{FLAGS.users}.npz"
    if not data.exists():
        peer_data.covering_npz(data, items, FLAGS.users, LONGEST)
    config = PeerConfig(
        width=64,
        layers=2,
        heads=2,
        ffn_width=256,
        max_length=200,
        batch_users=128,
        mask_probability=0.2,
        dropout=0.1,
        learning_rate=1e-3,
        threads=1,
    )
    config_file = folder / "lists.json"
    config_file.write_text(json.dumps(dataclasses.asdict(config)))
    peers, results, failed = [], {}, {}
    for name, python in pythons.items():
        peer = PeerProcess(
            name,
            python,
            data,
            config_file,
            folder / f"lists-{items}-{name}.log",
            "--list_users",
            str(FLAGS.users),
        )
        try:
            results[name] = {**peer.ask(), "rounds": []}
            peer.ask("lists")
            peers.append(peer)
        except RuntimeError as error:
            failed[name] = str(error)
            results.pop(name, None)
        print(f"{items:,} items: {name} {failed.get(name, 'is ready')}", flush=True)
    for step in range(FLAGS.rounds):
        for peer in peers[step % len(peers) :] + peers[: step % len(peers)]:
            used = peer.cpu_seconds()
            answer = peer.ask("lists")
            if answer["users"] != FLAGS.users:
                raise RuntimeError(
                    f"{peer.name} made lists for {answer['users']} of {FLAGS.users} users"
                )
            results[peer.name]["rounds"].append(
                {**answer, "cpu_seconds": peer.cpu_seconds() - used}
            )
            print(f"{items:,} items: {peer.name} {results[peer.name]['rounds'][-1]}", flush=True)
    for peer in peers:
        results[peer.name]["peak_mib"] = peer.peak_mib()
        peer.end()
    return results, failed


def rows(items: int, measured: dict, failed: dict) -> list[list[str]]:
    """Returns the lines of the table for one size of the catalogue."""
    rates = {
        kind: {
            name: [r["users"] / r[kind] for r in peer["rounds"]] for name, peer in measured.items()
        }
        for kind in ("seconds", "cpu_seconds")
    }
    middle = {
        kind: {name: statistics.median(values) for name, values in of.items()}
        for kind, of in rates.items()
    }

    def ratio(kind: str, name: str) -> str:
        return (
            f"{middle[kind]['ours'] / middle[kind][name]:.1f}x"
            if "ours" in measured and name != "ours"
            else ""
        )

    lines = []
    for name, peer in measured.items():
        wall = rates["seconds"][name]
        lines.append(
            [
                f"{items:,}",
                peer["version"].split(",")[0],
                f"{middle['seconds'][name]:,.0f} [{min(wall):,.0f}, {max(wall):,.0f}]",
                ratio("seconds", name),
                f"{middle['cpu_seconds'][name]:,.0f}",
                ratio("cpu_seconds", name),
                f"{peer['peak_mib']:,}",
            ]
        )
    return lines + [
        [f"{items:,}", name, f"not measured: {reason}", "", "", "", ""]
        for name, reason in failed.items()
    ]


def main(_) -> None:
    """Installs, measures and prints."""
    folder = Path(FLAGS.out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pythons, missing = {}, {}
    for name in FLAGS.peers:
        if name not in install.PEERS:
            raise app.UsageError(f"--peers: unknown {name!r}; there are {', '.join(install.PEERS)}")
        try:
            pythons[name] = install.environment_python(
                install.PEERS[name].environment, folder / "environments"
            )
        except install.CannotInstallError as error:
            missing[name] = str(error)
    result = {
        "machine": machine(),
        "threads": 1,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "users": FLAGS.users,
        "list_length": LIST_LENGTH,
        "columns": COLUMNS,
        "rows": [],
        "measured": {},
    }
    for items in map(int, FLAGS.items):
        measured, failed = measure(items, pythons, folder)
        result["measured"][str(items)] = measured
        result["rows"] += rows(items, measured, failed | missing)
        (folder / "recommend.json").write_text(json.dumps(result, indent=1) + "\n")
    for line in [COLUMNS, *result["rows"]]:
        print(" | ".join(line))
    print(f"written to {folder}/recommend.json")


if __name__ == "__main__":
    app.run(main)
