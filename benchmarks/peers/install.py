# SPDX-License-Identifier: Apache-2.0
"""Temporary environments for the peers, one each, installed from a requirements file.

    python benchmarks/peers/install.py FOLDER [PEER ...]

prints the path of each peer's Python, or the reason if the installation failed. A complete
environment with unchanged requirements is reused.
"""

import argparse
import glob
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Peer:
    """One row of the benchmark's table."""

    script: str
    environment: str  # of `PYTHONS`; empty: the Python that runs the benchmark
    flags: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


# The allocator settings of this package (bert4rec_jax/__init__.py), which help PyTorch as well.
KEEP_FREED_MEMORY = (
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_MAX_", "0"),
    ("MALLOC_TRIM_THRESHOLD_", "2147483647"),
)
PEERS = {
    "ours": Peer("ours.py", ""),
    "ours_recommended": Peer("ours.py", "", ("--recommended",)),
    "torch_best": Peer("torch_best.py", "torch_best", variables=KEEP_FREED_MEMORY),
    "torch_best_compile": Peer("torch_best.py", "torch_best", ("--compile",), KEEP_FREED_MEMORY),
    "recbole": Peer("recbole_peer.py", "recbole"),
    "recbole_no_anomaly": Peer("recbole_peer.py", "recbole", ("--no_anomaly",)),
    "rectools": Peer("rectools_peer.py", "rectools"),
    "recml": Peer("recml_peer.py", "recml"),
    "article": Peer("article.py", "torch_best"),
}

# The Python versions of each environment, the preferred one first.
PYTHONS = {
    "torch_best": ("3.11", "3.12", "3.13"),
    "recbole": ("3.11", "3.12"),
    "rectools": ("3.11", "3.12"),
    "recml": ("3.12", "3.13"),
}


class CannotInstallError(Exception):
    """An environment that cannot be installed; the message has the reason in one line."""


def command(name: str, python: Path) -> list[str]:
    """Return the command that starts a peer, without --data and --config."""
    peer = PEERS[name]
    return [str(python), str(HERE / peer.script), *peer.flags]


def find_python(versions: tuple[str, ...]) -> str:
    """Return an interpreter with one of the versions: this one, one on the path, or one of pyenv."""
    for version in versions:
        root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
        candidates = [
            shutil.which(f"python{version}"),
            *sorted(glob.glob(f"{root}/versions/{version}.*/bin/python")),
        ]
        if f"{sys.version_info[0]}.{sys.version_info[1]}" == version:
            candidates.insert(0, sys.executable)
        for candidate in filter(None, candidates):
            # A name on the path may be a shim for an inactive version.
            probe = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
            answer = subprocess.run(
                [candidate, "-c", probe], capture_output=True, text=True, check=False
            )
            if answer.returncode == 0 and answer.stdout.strip() == version:
                return candidate
    raise CannotInstallError(f"needs Python {' or '.join(versions)}, and none was found")


def environment_python(environment: str, folder: str | Path, timeout: float = 1800.0) -> Path:
    """Create an environment unless it exists, and return its Python.

    Args:
      environment: one of `PYTHONS`, or empty.
      folder: folder of the environments; an incomplete or outdated subfolder is replaced.
      timeout: time limit of the installation in seconds.

    Raises:
      CannotInstallError: the installation failed; contains the reason.
    """
    if not environment:
        return Path(sys.executable)
    requirements = HERE / f"requirements-{environment}.txt"
    target = Path(folder).resolve() / environment
    python, stamp = target / "bin" / "python", target / "complete"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return python
    shutil.rmtree(target, ignore_errors=True)
    base = find_python(PYTHONS[environment])
    log = target.with_suffix(".log")
    target.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    steps = ([base, "-m", "venv", str(target)], [*pip, "-r", str(requirements)])
    begin = time.monotonic()
    with open(log, "w") as output:
        for step in steps:
            left = timeout - (time.monotonic() - begin)
            try:
                code = subprocess.run(
                    step, stdout=output, stderr=subprocess.STDOUT, timeout=left, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                raise CannotInstallError(
                    f"not installed after {timeout:.0f} s; see {log}"
                ) from None
            if code != 0:
                lines = log.read_text().strip().splitlines()
                errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
                reason = errors[-1] if errors else f"exit code {code}"
                raise CannotInstallError(f"{reason} (log: {log})")
    stamp.write_text(wanted)
    return python


def megabytes(folder: Path) -> float:
    """Return the size of the files under `folder`."""
    return (
        sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6
    )


def main() -> None:
    """Install the peers on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder of the environments")
    parser.add_argument("peers", nargs="*", default=[], help=f"of {', '.join(PEERS)}; default: all")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.peers) - set(PEERS))
    if unknown:
        parser.error(f"unknown peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    failed = False
    for name in arguments.peers or PEERS:
        begin = time.monotonic()
        try:
            python = environment_python(PEERS[name].environment, arguments.folder)
        except CannotInstallError as error:
            failed = True
            print(f"{name}: {error}", flush=True)
            continue
        size = megabytes(python.parent.parent) if PEERS[name].environment else 0
        print(f"{name}: {python} ({size:.0f} MB, {time.monotonic() - begin:.0f} s)", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
