# SPDX-License-Identifier: Apache-2.0
"""The shared code of all peers: command line, data, and the protocol with the driver.

A peer is a standalone script that runs in its own environment:

    python PEER.py --data DATA.npz --config CONFIG.json

It prepares and warms up, prints one line `{"ready": true, ...}` and then answers one line of JSON
for every line it reads: `train S` trains for about S seconds, `eval N` ranks N users over the whole
catalogue, `quit` ends it. So a driver can hold several peers open and give each of them the quiet
machine in turn. Everything that a library prints goes to the standard error; the standard output
carries the answers only. With `--rounds R` above 0 the peer asks itself instead: R times `train S`
and one `eval N`.

With `--list_users N` nothing is trained: the peer makes a model with random weights and answers
`lists`, whatever follows, by writing down the `LIST_LENGTH` best items of each of the first N
users.

`real_tokens` counts the input positions of a training step that hold something other than padding,
and `padded_tokens` all positions the encoder was given. This module needs NumPy and nothing else.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

import numpy as np

LIST_LENGTH = 100


@dataclass(frozen=True)
class PeerConfig:
    """One configuration of the benchmark, the same for every peer."""

    width: int
    layers: int
    heads: int
    ffn_width: int
    max_length: int
    batch_users: int
    mask_probability: float
    dropout: float
    learning_rate: float
    threads: int

    @classmethod
    def load(cls, path: str) -> "PeerConfig":
        """Read the JSON file `path`; a missing or unknown key is an error."""
        values = json.loads(Path(path).read_text())
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            missing, unknown = sorted(names - set(values)), sorted(set(values) - names)
            raise SystemExit(f"{path}: missing keys {missing}, unknown keys {unknown}")
        return cls(**values)


@dataclass(frozen=True)
class PeerData:
    """All users' histories in time order, items numbered 1 to `num_items`."""

    items: np.ndarray  # int32 [interactions]
    offsets: np.ndarray  # int64 [users + 1]
    num_items: int

    @classmethod
    def load(cls, path: str) -> "PeerData":
        """Read the arrays `items`, `offsets` and `num_items` of the file `path`."""
        with np.load(path) as arrays:
            items = arrays["items"].astype(np.int32)
            return cls(items, arrays["offsets"].astype(np.int64), int(arrays["num_items"]))

    @property
    def num_users(self) -> int:
        """The number of users."""
        return len(self.offsets) - 1

    def full(self, user: int) -> np.ndarray:
        """All of a user's items."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def train(self, user: int) -> np.ndarray:
        """A user's items without the last two, which are for validation and test."""
        return self.items[self.offsets[user] : self.offsets[user + 1] - 2]

    def history(self, user: int) -> np.ndarray:
        """A user's items without the last one: the history at test time."""
        return self.items[self.offsets[user] : self.offsets[user + 1] - 1]

    def target(self, user: int) -> int:
        """A user's test item."""
        return int(self.items[self.offsets[user + 1] - 1])


@dataclass
class StepCount:
    """The size of one training step."""

    real_tokens: int
    padded_tokens: int
    users: int


def count_tokens(ids: Any, padding: int = 0) -> StepCount:
    """Count a [rows, length] array or tensor of input ids."""
    return StepCount(
        int((ids != padding).sum()), int(ids.shape[0] * ids.shape[1]), int(ids.shape[0])
    )


def parse_arguments(
    description: str, extra: Callable[[argparse.ArgumentParser], None] | None = None
) -> Any:
    """Read the command line of all peers, and the flags that `extra` adds to it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data", required=True, help="an .npz file with items, offsets and num_items"
    )
    parser.add_argument("--config", required=True, help="a JSON file with the configuration")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="length of a training window with --rounds"
    )
    parser.add_argument(
        "--rounds", type=int, default=0, help="run this many windows without a driver, then end"
    )
    parser.add_argument("--eval_users", type=int, default=512, help="users to rank with --rounds")
    parser.add_argument(
        "--list_users", type=int, default=0, help="make lists for this many users; train nothing"
    )
    parser.add_argument("--seed", type=int, default=0)
    if extra is not None:
        extra(parser)
    return parser.parse_args()


def take_stdout() -> TextIO:
    """Reserve standard output for replies; all other output, including native code, goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def set_threads(count: int) -> None:
    """Limit the numerical libraries, which must not be imported yet, to `count` threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)


def process_age() -> float:
    """Seconds since this process started (0 if the system does not provide it)."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return 0.0


def run_window(step: Callable[[], StepCount], seconds: float) -> dict[str, Any]:
    """Call `step` until about `seconds` have passed, at least once,
    and add up the sizes of the steps.
    """
    steps = real = padded = users = 0
    begin = time.perf_counter()
    while True:
        count = step()
        steps, real = steps + 1, real + count.real_tokens
        padded, users = padded + count.padded_tokens, users + count.users
        elapsed = time.perf_counter() - begin
        # Stop if one more step would end further from the target time than this one.
        if elapsed + 0.5 * elapsed / steps >= seconds:
            break
    return {
        "steps": steps,
        "seconds": elapsed,
        "real_tokens": real,
        "padded_tokens": padded,
        "users": users,
    }


def serve_lists(answers: TextIO, make: Callable[[], int], about: dict[str, Any]) -> None:
    """Report that the peer is ready, and make lists for every input line.

    Args:
      answers: output stream for replies, from `take_stdout`.
      make: makes the lists of all users and returns how many there are.
      about: description of the peer.
    """
    print(json.dumps({"ready": True, **about}), file=answers, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        users = make()
        print(
            json.dumps({"users": users, "seconds": time.perf_counter() - begin}),
            file=answers,
            flush=True,
        )


def ndcg_at_10(ranks: np.ndarray) -> float:
    """NDCG@10 with one target per user, from ranks that start at 1."""
    ranks = np.asarray(ranks, np.float64)
    return float(np.mean(np.where(ranks <= 10, 1.0 / np.log2(ranks + 1.0), 0.0)))


def serve(
    answers: TextIO,
    arguments: Any,
    step: Callable[[], StepCount],
    evaluate: Callable[[int], dict[str, Any]],
    about: dict[str, Any],
    warm_up_steps: int = 2,
    train_window: Callable[[float], dict[str, Any]] | None = None,
    before_ready: Callable[[], Any] | None = None,
) -> None:
    """Warm up, report that the peer is ready, and execute commands until `quit`.

    Args:
      answers: output stream for replies, from `take_stdout`.
      arguments: the command line, from `parse_arguments`.
      step: trains one step, waits for its end and returns its size.
      evaluate: ranks the given number of users; returns `users` and `ndcg@10`,
        and `seconds` where the peer times itself.
      about: `parameters`, `version` and other properties of the peer.
      warm_up_steps: steps before the first reply; `startup_seconds` ends with the first of them.
      train_window: answers `train S` in place of `run_window`, for a peer that runs its own loop.
      before_ready: additional warm-up, such as compiling the ranking.
    """

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    def do(command: str) -> bool:
        word, _, rest = command.strip().partition(" ")
        if word == "train":
            seconds = float(rest)
            answer(train_window(seconds) if train_window else run_window(step, seconds))
        elif word == "eval":
            begin = time.perf_counter()
            result = evaluate(int(rest))
            answer({"seconds": time.perf_counter() - begin, **result})
        elif word == "quit":
            return False
        elif word:
            answer({"error": f"unknown command {word!r}: train S, eval N or quit"})
        return True

    step()
    startup_seconds = process_age()
    for _ in range(warm_up_steps - 1):
        step()
    if before_ready is not None:
        before_ready()
    answer({"ready": True, "startup_seconds": startup_seconds, **about})
    if arguments.rounds > 0:
        commands = [f"train {arguments.seconds}"] * arguments.rounds + [
            f"eval {arguments.eval_users}"
        ]
        for command in commands:
            do(command)
        return
    for line in sys.stdin:
        if not do(line):
            break
