# SPDX-License-Identifier: Apache-2.0
"""Shows the trials of a sweep: a live table on a terminal, lines elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from experiments.sweep import Overrides
from experiments.sweeping import trials

try:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
except ImportError:  # the plain table has the same content
    Console = None

COLORS = {
    trials.FINISHED: "green",
    trials.RUNNING: "cyan",
    trials.FAILED: "red",
    trials.PRUNED: "yellow",
    trials.INTERRUPTED: "magenta",
    trials.WAITING: "dim",
}
HEADER = ("trial", "state", "step", "valid", "test", "time", "overrides")


def rows(progress: list[trials.Progress], metric: str) -> list[tuple[str, ...]]:
    """Returns the cells of the table, one row per trial, in the order of `HEADER`."""
    table = []
    shared = common_overrides(progress)
    for p in progress:
        valid = p.results.get("valid", p.valid).get(metric)
        test = p.results.get("test", {}).get(metric)
        table.append(
            (
                str(p.index),
                p.state,
                str(p.results.get("steps", p.step) or ""),
                _number(valid),
                _number(test),
                duration(p.results.get("train_seconds", p.seconds)),
                describe(p.overrides, shared),
            )
        )
    return table


def describe(overrides: Overrides | None, shared: Overrides | None = None) -> str:
    """Returns overrides as `model.width=64 seed=1`, those in `shared` left out;
    `-` where there are none.
    """
    parts = [
        f"{name}={value}" for name, value in (overrides or {}).items() if name not in (shared or {})
    ]
    return " ".join(parts) or "-"


def duration(seconds: float) -> str:
    """Returns seconds as `1 h 05 min`, `3 min 20 s` or `12 s`; nothing for 0."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s" if seconds else ""


def follow(root: Path, metric: str, goes_on: Callable[[], bool], refresh: float = 1.0) -> None:
    """Shows the sweep in `root` until `goes_on` returns False,
    then leaves the last state on the screen.
    """
    if Console is not None and sys.stdout.isatty():
        console = Console()
        with Live(console=console, auto_refresh=False) as live:
            while True:
                going = goes_on()
                live.update(
                    _rich_table(
                        trials.all_progress(root), metric, console.height if going else None
                    ),
                    refresh=True,
                )
                if not going:
                    return
                time.sleep(refresh)
    states: dict[int, str] = {}
    while True:
        going = goes_on()
        for p, cells in zip(progress := trials.all_progress(root), rows(progress, metric)):
            if states.get(p.index, trials.WAITING) != p.state:
                print("  ".join(cell for cell in cells if cell), flush=True)
            states[p.index] = p.state
        if not going:
            return
        time.sleep(refresh)


def summary(root: Path) -> str:
    """Returns the number of trials per state, and the last log lines of each failed trial."""
    progress = trials.all_progress(root)
    counts = Counter(p.state for p in progress)
    lines = [
        f"{root}: " + ", ".join(f"{counts[state]} {state}" for state in COLORS if counts[state])
    ]
    for p in progress:
        if p.state == trials.FAILED:
            lines.append(
                f"trial {p.index} failed ({describe(p.overrides)}); "
                f"{trials.directory(root, p.index)}/log.txt ends with:"
            )
            lines.extend("    " + line for line in p.failure)
    return "\n".join(lines)


def common_overrides(progress: list[trials.Progress]) -> Overrides:
    """Returns the overrides that all known trials share; empty if there is one trial."""
    known = [p.overrides for p in progress if p.overrides is not None]
    if len(known) < 2:
        return {}
    return {
        n: v for n, v in known[0].items() if all(n in other and other[n] == v for other in known)
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _header(metric: str) -> tuple[str, ...]:
    return tuple(f"{name} {metric}" if name in ("valid", "test") else name for name in HEADER)


def _rich_table(progress: list[trials.Progress], metric: str, height: int | None):
    table = Table(*_header(metric))
    shown = progress
    if height is not None and len(progress) > height - 6:  # keep what moves on the screen
        active = (trials.RUNNING, trials.FAILED, trials.INTERRUPTED)
        order = sorted(
            progress, key=lambda p: (p.state not in active, p.state == trials.WAITING, -p.index)
        )
        shown = sorted(order[: max(height - 6, 1)], key=lambda p: p.index)
    for p, cells in zip(shown, rows(shown, metric)):
        table.add_row(*cells, style=COLORS[p.state])
    counts = Counter(p.state for p in progress)
    table.caption = ", ".join(f"{counts[state]} {state}" for state in COLORS if counts[state])
    if shared := common_overrides(progress):
        table.caption += f"; all trials: {describe(shared)}"
    return table
