# SPDX-License-Identifier: Apache-2.0
"""Training and ranking speed compared with other implementations of BERT4Rec in one run.

    python benchmarks/speed.py --out runs/bench [--ml_1m FOLDER --beauty FOLDER] [--configurations A,C] [--peers ours,recml]

Every peer is installed from the package index into an environment of its own (about 7 GB for all of
them), is started once for each configuration, and then waits. The peers take turns: each round
gives every one of them a window of training, so that other load affects all peers alike; a window
in which other programs used more than an eighth of a core is repeated. At the end each ranks users
over the whole catalogue. Speed is counted in *real* tokens (items, not padding) a second, because
peers truncate and pad histories differently. `ours` learns the Cloze task alone, as the peers do;
`ours_recommended` is the recipe of `config.recommended()`, which learns from more positions of a
row and ranks from two hidden states.

Peers use the cores that this process may: `taskset -c 1 python benchmarks/speed.py ...` measures on
one of them.

FOLDERs hold interactions.parquet (columns user, item, in time order). Without them, histories with
the shape of the data set are generated. A peer that cannot be installed or fails is listed with the
reason.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
import data as peer_data
import install
from driver import QUIET, PeerProcess, machine, quiet
from protocol import PeerConfig, PeerData

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "out", "runs/bench", "Folder for data, results and, under environments/, the peers' packages."
)
flags.DEFINE_string("ml_1m", "", "Folder with MovieLens-1M's interactions.parquet.")
flags.DEFINE_string("beauty", "", "Folder with Amazon Beauty's interactions.parquet.")
flags.DEFINE_list("configurations", ["A", "B", "C", "D"], "Of A, B, C, D.")
flags.DEFINE_list(
    "peers", [n for n in install.PEERS if n != "recbole"], f"Peers: {', '.join(install.PEERS)}."
)
flags.DEFINE_integer("rounds", 3, "Windows of training for each peer.", lower_bound=1)
flags.DEFINE_float(
    "seconds", 5.0, "Length of a window; a step that takes longer is a window of its own."
)
flags.DEFINE_integer(
    "users", 2000, "Users to rank; peers that rank fewer than 100 a second get a tenth."
)

SMALL = {"width": 128, "layers": 2, "heads": 4, "ffn_width": 512}
CONFIGURATIONS = {
    "A": (
        "ml-1m",
        {
            "width": 64,
            "layers": 2,
            "heads": 2,
            "ffn_width": 256,
            "max_length": 200,
            "batch_users": 128,
        },
    ),
    "B": ("ml-1m", {**SMALL, "max_length": 50, "batch_users": 256}),
    "C": ("ml-25m-shaped", {**SMALL, "max_length": 120, "batch_users": 32}),
    "D": ("beauty", {**SMALL, "max_length": 50, "batch_users": 256}),
}
SHAPES = {
    "ml-1m": {"num_items": 3416, "num_users": 6040, "shortest": 18, "median": 96, "mean": 165.5},
    "beauty": {"num_items": 12101, "num_users": 22363, "shortest": 5, "median": 6, "mean": 8.88},
    "ml-25m-shaped": {},
}


def data_file(name: str, folder: Path) -> tuple[Path, str]:
    """Returns the .npz file of a data set, creating it if necessary, and its description."""
    source = {"ml-1m": FLAGS.ml_1m, "beauty": FLAGS.beauty}.get(name)
    path = folder / f"{name}{'' if source else '-generated'}.npz"
    if not path.exists():
        if source:
            table = pq.read_table(Path(source) / "interactions.parquet", columns=["user", "item"])
            peer_data.npz_from_table(table["user"].to_numpy(), table["item"].to_numpy(), path)
        else:
            peer_data.synthetic_npz(path, **SHAPES[name])
    data = peer_data_facts(path)
    return (
        path,
        f"{name}{'' if source or name.endswith('shaped') else ' (generated in its size)'}, {data}",
    )


def peer_data_facts(path: Path) -> str:
    """Returns the counts of a data file as text."""
    data = PeerData.load(str(path))
    return f"{data.num_users:,} users, {data.num_items:,} items, {len(data.items):,} interactions"


def measure(letter: str, pythons: dict[str, Path], folder: Path) -> dict:
    """Returns the measurements of one configuration: for each peer its rounds,
    ranking and description.
    """
    name, values = CONFIGURATIONS[letter]
    data, facts = data_file(name, folder)
    config = PeerConfig(
        **values,
        mask_probability=0.2,
        dropout=0.1,
        learning_rate=1e-3,
        threads=len(os.sched_getaffinity(0)),
    )
    config_file = folder / f"{letter}.json"
    config_file.write_text(json.dumps(dataclasses.asdict(config)))
    peers, failed = [], {}
    for peer_name, python in pythons.items():
        peer = PeerProcess(
            peer_name, python, data, config_file, folder / f"{letter}-{peer_name}.log"
        )
        try:
            peer.about = peer.ask()
            peers.append(peer)
        except RuntimeError as error:
            failed[peer_name] = str(error)
        print(f"{letter}: {peer_name} {failed.get(peer_name, 'is ready')}", flush=True)
    results = {peer.name: {"train": [], **peer.about} for peer in peers}
    for step in range(FLAGS.rounds):
        # In another order each time, so that no peer always follows the same one.
        for peer in peers[step % len(peers) :] + peers[: step % len(peers)]:
            results[peer.name]["train"].append(quiet(peer, f"train {FLAGS.seconds}"))
    for peer in peers:
        trial = peer.ask(f"eval {FLAGS.users // 10}")
        users = FLAGS.users if trial["users"] / trial["seconds"] > 100 else FLAGS.users // 10
        peer.ask(f"eval {users}")  # compile and plan for this number of users
        results[peer.name]["rank"] = quiet(peer, f"eval {users}")
        results[peer.name]["peak_mib"] = peer.peak_mib()
        peer.end()
    return {
        "configuration": dataclasses.asdict(config),
        "data": facts,
        "peers": results,
        "failed": failed,
    }


def rates(windows: list[dict]) -> list[float]:
    """Returns real tokens a second of each window."""
    return [window["real_tokens"] / window["seconds"] for window in windows]


def table(letter: str, measured: dict) -> str:
    """Returns the measurements of one configuration as Markdown."""
    c = measured["configuration"]
    lines = [
        f"**{letter}** {measured['data']}; width {c['width']}, {c['layers']} layers, {c['heads']} "
        "heads, length "
        f"{c['max_length']}, tokens of {c['batch_users']} users a step",
        "",
        "| | real tokens/s, median [min, max] | ours is | users ranked/s | ours is | real share of "
        "positions | first step "
        "after s | peak MiB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    peers = measured["peers"]
    speed = {name: statistics.median(rates(peer["train"])) for name, peer in peers.items()}
    ranking = {
        name: peer["rank"]["users"] / peer["rank"]["seconds"] for name, peer in peers.items()
    }
    for name, peer in sorted(peers.items(), key=lambda item: -speed[item[0]]):
        window = rates(peer["train"])
        real = sum(w["real_tokens"] for w in peer["train"]) / sum(
            w["padded_tokens"] for w in peer["train"]
        )
        noisy = " *" if max(w["others"] for w in peer["train"]) > QUIET else ""
        lines.append(
            f"| {name} ({peer['version']}) | {speed[name]:,.0f} [{min(window):,.0f}, "
            f"{max(window):,.0f}]{noisy} | "
            f"{_ratio(speed, name)} | {ranking[name]:,.0f} | {_ratio(ranking, name)} | {real:.0%} | "
            f"{peer['startup_seconds']:.1f} | "
            f"{peer['peak_mib']:,} |"
        )
    lines += [
        f"| {name} | not measured: {reason} | | | | | | |"
        for name, reason in measured["failed"].items()
    ]
    if any(" *" in line for line in lines):
        lines += ["", f"\\* other programs used more than {QUIET} cores"]
    return "\n".join(lines)


LIBRARIES = ("recbole", "recbole_no_anomaly", "rectools", "recml")
HAND_WRITTEN = ("torch_best", "torch_best_compile")
COLUMNS = [
    "configuration",
    "a second",
    "Cloze alone",
    "recommended recipe",
    "best library",
    "Cloze / library",
    "recommended / library",
    "hand-written PyTorch",
    "Cloze / hand-written",
    "recommended / hand-written",
]


def _ratio(rate: dict[str, float], name: str) -> str:
    """Returns our rate divided by a peer's, or nothing if they cannot be compared."""
    if name == "ours" or "ours" not in rate:
        return ""
    return f"{rate['ours'] / rate[name]:.2f}x"


def summary(configurations: dict) -> list[list[str]]:
    """Returns rows of `COLUMNS`: both of our recipes against the best library
    and the best hand-written step.
    """
    rows = []
    for letter, measured in sorted(configurations.items()):
        peers = measured["peers"]
        for what, speed in (
            (
                "tokens",
                {name: statistics.median(rates(peer["train"])) for name, peer in peers.items()},
            ),
            (
                "users ranked",
                {
                    name: peer["rank"]["users"] / peer["rank"]["seconds"]
                    for name, peer in peers.items()
                },
            ),
        ):
            row = [
                letter,
                what,
                *(
                    f"{speed[name]:,.0f}" if name in speed else "-"
                    for name in ("ours", "ours_recommended")
                ),
            ]
            for rivals in (LIBRARIES, HAND_WRITTEN):
                best = max((name for name in rivals if name in speed), key=speed.get, default=None)
                row.append(f"{speed[best]:,.0f} ({best})" if best else "-")
                row += [
                    f"{speed[name] / speed[best]:.2f}" if best and name in speed else "-"
                    for name in ("ours", "ours_recommended")
                ]
            rows.append(row)
    return rows


def main(_) -> None:
    """Installs, measures and prints."""
    for value, known, flag in (
        (FLAGS.configurations, CONFIGURATIONS, "configurations"),
        (FLAGS.peers, install.PEERS, "peers"),
    ):
        unknown = [name for name in value if name not in known]
        if unknown:
            raise app.UsageError(f"--{flag}: unknown {unknown[0]!r}; there are {', '.join(known)}")
    folder = Path(FLAGS.out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pythons, missing = {}, {}
    for name in FLAGS.peers:
        try:
            pythons[name] = install.environment_python(
                install.PEERS[name].environment, folder / "environments"
            )
        except install.CannotInstallError as error:
            missing[name] = str(error)
        print(f"{name}: {missing.get(name, 'installed')}", flush=True)
    results = {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": FLAGS.rounds,
        "git_commit": subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parent,
        ).stdout.strip(),
        "columns": COLUMNS,
        "rows": [],
        "configurations": {},
    }
    for letter in FLAGS.configurations:
        measured = measure(letter, pythons, folder)
        measured["failed"] |= missing
        results["configurations"][letter] = measured
        results["rows"] = summary(results["configurations"])
        (folder / "speed.json").write_text(json.dumps(results, indent=1))
    tables = [table(letter, measured) for letter, measured in results["configurations"].items()]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *results["rows"]]
    tables.insert(0, "\n".join(f"| {' | '.join(line)} |" for line in lines))
    text = "\n\n".join(
        [
            f"{results['machine']}, {results['date']}, float32, {FLAGS.rounds} interleaved rounds",
            *tables,
        ]
    )
    (folder / "speed.md").write_text(text + "\n")
    print(f"\n{text}\n\nwritten to {folder}/speed.md and speed.json")


if __name__ == "__main__":
    app.run(main)
