# SPDX-License-Identifier: Apache-2.0
"""Shows the trials of a sweep: a live table on a terminal, lines elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.sweep import Overrides
from experiments.sweeping import trials
from experiments.sweeping.trials import TrialStatus

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


def rows(statuses: Sequence[TrialStatus], metric: str) -> list[tuple[str, ...]]:
    """Returns the cells of the table, one row per trial, in the order of `HEADER`."""
    table = []
    shared = common_overrides(statuses)
    for status in statuses:
        results = status.results
        valid = results.get("valid", status.valid)
        table.append(
            (
                str(status.index),
                status.state,
                str(results.get("steps", status.step) or ""),
                _number(valid.get(metric)),
                _number(results.get("test", {}).get(metric)),
                duration(results.get("train_seconds", status.seconds)),
                describe(status.overrides, shared),
            )
        )
    return table


def describe(overrides: Overrides | None, shared: Overrides | None = None) -> str:
    """Returns overrides as `model.width=64 seed=1` without those in `shared`, or `-`."""
    shown = {name: value for name, value in (overrides or {}).items() if name not in (shared or {})}
    return " ".join(f"{name}={value}" for name, value in shown.items()) or "-"


def duration(seconds: float) -> str:
    """Returns seconds as `1 h 05 min`, `3 min 20 s` or `12 s`; nothing for 0."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s" if seconds else ""


def follow(root: Path, metric: str, is_running: Callable[[], bool], refresh: float = 1.0) -> None:
    """Shows the sweep in `root` while `is_running` returns True, and its final state.

    Args:
      root: folder of the sweep.
      metric: column of the table.
      is_running: whether to continue.
      refresh: seconds between updates.
    """
    if Console is not None and sys.stdout.isatty():
        _follow_on_terminal(root, metric, is_running, refresh)
        return
    states: dict[int, str] = {}
    running = True
    while running:
        running = is_running()
        statuses = trials.all_statuses(root)
        for status, cells in zip(statuses, rows(statuses, metric)):
            if states.get(status.index, trials.WAITING) != status.state:
                print("  ".join(cell for cell in cells if cell), flush=True)
            states[status.index] = status.state
        if running:
            time.sleep(refresh)


def _follow_on_terminal(
    root: Path, metric: str, is_running: Callable[[], bool], refresh: float
) -> None:
    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        running = True
        while running:
            running = is_running()
            height = console.height if running else None
            live.update(_rich_table(trials.all_statuses(root), metric, height), refresh=True)
            if running:
                time.sleep(refresh)


def summary(root: Path) -> str:
    """Returns the number of trials per state, and the last log lines of each failed trial."""
    statuses = trials.all_statuses(root)
    lines = [f"{root}: {_counts(statuses)}"]
    for status in statuses:
        if status.state == trials.FAILED:
            lines.append(
                f"trial {status.index} failed ({describe(status.overrides)}); "
                f"{trials.directory(root, status.index)}/log.txt ends with:"
            )
            lines += ["    " + line for line in status.failure]
    return "\n".join(lines)


def common_overrides(statuses: Sequence[TrialStatus]) -> Overrides:
    """Returns the overrides that all known trials share; empty if there is one trial."""
    known = [status.overrides for status in statuses if status.overrides is not None]
    if len(known) < 2:
        return {}
    first = known[0]
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in known)
    }


def _counts(statuses: Sequence[TrialStatus]) -> str:
    counts = Counter(status.state for status in statuses)
    return ", ".join(f"{counts[state]} {state}" for state in COLORS if counts[state])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _header(metric: str) -> tuple[str, ...]:
    return tuple(f"{name} {metric}" if name in ("valid", "test") else name for name in HEADER)


def _rich_table(statuses: Sequence[TrialStatus], metric: str, height: int | None) -> "Table":
    table = Table(*_header(metric))
    shown = statuses
    if height is not None and len(statuses) > height - 6:
        # The trials that fit on the screen: active ones first, then the newest.
        order = sorted(statuses, key=_priority)
        shown = sorted(order[: max(height - 6, 1)], key=lambda status: status.index)
    for status, cells in zip(shown, rows(shown, metric)):
        table.add_row(*cells, style=COLORS[status.state])
    table.caption = _counts(statuses)
    shared = common_overrides(statuses)
    if shared:
        table.caption += f"; all trials: {describe(shared)}"
    return table


def _priority(status: TrialStatus) -> tuple[bool, bool, int]:
    active = status.state in (trials.RUNNING, trials.FAILED, trials.INTERRUPTED)
    return not active, status.state == trials.WAITING, -status.index
