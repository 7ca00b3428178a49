# SPDX-License-Identifier: Apache-2.0
"""Progress of long phases: a bar in a terminal, an occasional line in a log."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

QUIET_SECONDS = 2  # shorter phases say nothing
LINE_SECONDS = 15  # between two lines where stderr is no terminal


class Phase:
    """One phase of a command; a context manager. Only the process that writes the run's files speaks."""

    def __init__(self, title: str, total: int, unit: str, speaks: bool = True):
        """Names the phase.

        Args:
          title: what is done, as in "ranking test users".
          total: how many `unit`s there are to do; 0: unknown.
          unit: plural, as in "users".
          speaks: False on all processes of a job but one.
        """
        self._title, self._total, self._unit, self._speaks = title, total, unit, speaks
        self._done, self._begin, self._bar, self._last = 0, time.monotonic(), None, None

    def __enter__(self) -> "Phase":
        return self

    def __exit__(self, kind, *_) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._last is not None and kind is None:
            print(f"{self._title}: done in {time.monotonic() - self._begin:.0f} s", file=sys.stderr, flush=True)

    def advance(self, count: int = 1) -> None:
        """Notes that `count` more units are done."""
        self._done += count
        if not self._speaks:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)
        elif now - self._begin > QUIET_SECONDS and sys.stderr.isatty():
            self._bar = tqdm(total=self._total or None, initial=self._done, desc=self._title, unit=f" {self._unit}",
                             dynamic_ncols=True, leave=False)
        elif now - (self._last or self._begin) > (LINE_SECONDS if self._last else QUIET_SECONDS):
            self._last = now
            seconds = now - self._begin
            left = f" of {self._total:,}" if self._total else ""
            rest = f", {seconds * (self._total / self._done - 1):.0f} s left" if self._total and self._done else ""
            print(f"{self._title}: {self._done:,}{left} {self._unit}{rest}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def waiting(title: str, speaks: bool = True) -> Iterator[None]:
    """Reports the elapsed time of work whose progress is unknown, such as a compilation."""
    begin, over = time.monotonic(), threading.Event()

    def report() -> None:
        pause = QUIET_SECONDS
        while not over.wait(pause):
            print(f"{title}: {time.monotonic() - begin:.0f} s so far", file=sys.stderr, flush=True)
            pause = LINE_SECONDS

    reporter = threading.Thread(target=report, name="waiting", daemon=True)
    if speaks:
        reporter.start()
    try:
        yield
    finally:
        over.set()
