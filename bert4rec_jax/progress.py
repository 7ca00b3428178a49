# SPDX-License-Identifier: Apache-2.0
"""Progress of long tasks on stderr: a bar in a terminal, an occasional line in a log."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

from bert4rec_jax.terminal import say

QUIET_SECONDS = 2  # shorter tasks show nothing
LINE_SECONDS = 15  # between two lines if stderr is not a terminal


class ProgressBar:
    """The progress of one task whose units can be counted; a context manager."""

    def __init__(self, title: str, total: int, unit: str, visible: bool = True):
        """Describes the task; nothing is shown yet.

        Args:
          title: the task, such as "ranking test users".
          total: number of units; 0: unknown.
          unit: name of the units in the plural, such as "users".
          visible: False for all processes of a job except one.
        """
        self._title = title
        self._total = total
        self._unit = unit
        self._visible = visible
        self._done = 0
        self._begin = time.monotonic()
        self._bar: tqdm | None = None
        self._last_line: float | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._last_line is not None and kind is None:
            say(f"{self._title}: done in {time.monotonic() - self._begin:.0f} s")

    def advance(self, count: int = 1) -> None:
        """Adds `count` finished units."""
        self._done += count
        if not self._visible:
            return
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)
            return
        now = time.monotonic()
        if sys.stderr.isatty():
            if now - self._begin > QUIET_SECONDS:
                self._bar = self._open_bar()
            return
        if self._last_line is None:
            due = self._begin + QUIET_SECONDS
        else:
            due = self._last_line + LINE_SECONDS
        if now > due:
            self._last_line = now
            say(self._line(now - self._begin))

    def _open_bar(self) -> tqdm:
        return tqdm(
            total=self._total or None,
            initial=self._done,
            desc=self._title,
            unit=f" {self._unit}",
            dynamic_ncols=True,
            leave=False,
        )

    def _line(self, seconds: float) -> str:
        if not self._total:
            return f"{self._title}: {self._done:,} {self._unit}"
        line = f"{self._title}: {self._done:,} of {self._total:,} {self._unit}"
        if self._done:
            left = seconds * (self._total / self._done - 1)
            line += f", {left:.0f} s left"
        return line


@contextlib.contextmanager
def waiting(title: str, visible: bool = True) -> Iterator[None]:
    """Reports the elapsed time of a task whose progress is unknown, such as a compilation."""
    begin = time.monotonic()
    finished = threading.Event()

    def report() -> None:
        pause = QUIET_SECONDS
        while not finished.wait(pause):
            say(f"{title}: {time.monotonic() - begin:.0f} s so far")
            pause = LINE_SECONDS

    reporter = threading.Thread(target=report, name="waiting", daemon=True)
    if visible:
        reporter.start()
    try:
        yield
    finally:
        finished.set()
