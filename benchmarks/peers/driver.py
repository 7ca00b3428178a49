# SPDX-License-Identifier: Apache-2.0
"""The driver's side of the protocol: peers as processes, and the load of other programs."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path

import install

QUIET = 0.12  # cores that other programs may use


class PeerProcess:
    """A running peer that executes one command at a time."""

    def __init__(self, name: str, python: Path, data: Path, config: Path, log: Path, *flags: str):
        """Starts the peer, with further flags; `ask` tells when it is ready."""
        self.name, self.log = name, log
        environment = {**os.environ, **dict(install.PEERS[name].variables)}
        self._process = subprocess.Popen(
            [*install.command(name, python), "--data", str(data), "--config", str(config), *flags],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            env=environment,
        )
        self.about = {}

    def ask(self, command: str = "") -> dict:
        """Sends a command and returns the reply; without a command, waits for the next reply.

        Raises:
          RuntimeError: the peer ended; the message is its last line.
        """
        if command:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            last = (self.log.read_text().strip().splitlines() or ["no output"])[-1]
            raise RuntimeError(f"{last[:150]} (log: {self.log})")
        return json.loads(line)

    def cpu_seconds(self) -> float:
        """Returns the processor time of the peer and its child processes."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def peak_mib(self) -> int:
        """Returns the largest resident memory so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) // 1024

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def busy_seconds() -> float:
    """Returns the processor time of this process's cores since the machine started."""
    busy = 0
    for core in Path("/proc/stat").read_text().split("\n"):
        name, *times = core.split() or [""]
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in os.sched_getaffinity(0):
            user, nice, system, _, _, irq, softirq, *_ = map(int, times)
            busy += user + nice + system + irq + softirq
    return busy / os.sysconf("SC_CLK_TCK")


def quiet(peer: PeerProcess, command: str) -> dict:
    """Runs a command on a peer, and repeats it (at most three times) if other programs were busy;
    adds `others`, the cores they used.
    """
    for _ in range(3):
        begin, busy, own = time.perf_counter(), busy_seconds(), peer.cpu_seconds()
        answer = peer.ask(command)
        spent = time.perf_counter() - begin
        answer["others"] = max(busy_seconds() - busy - (peer.cpu_seconds() - own), 0.0) / spent
        if answer["others"] <= QUIET:
            break
    return answer


def machine() -> str:
    """Returns processor, cores, memory and system in one line."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    return f"{cores} of {model}, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def commit() -> str:
    """Returns the current commit, with + if files are modified."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "..") else "")
