# SPDX-License-Identifier: Apache-2.0
"""Runs an engine's command in a thread while the main thread shows progress and gets signals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from bert4rec_jax.progress import ProgressBar


def run_in_background(
    command: Callable[[], Any],
    progress: ProgressBar,
    poll_seconds: float,
    new_progress: Callable[[], int],
    interrupt: Callable[[], None],
) -> Any:
    """Returns the result of a command, or raises its error.

    Args:
      command: blocks until it is done.
      progress: the bar to advance.
      poll_seconds: time between two calls of `new_progress`.
      new_progress: returns the progress since its last call; may raise to stop the command.
      interrupt: makes the command end early.
    """
    results: list[Any] = []
    errors: list[BaseException] = []
    # An exception inside `Thread.join` would mark the thread as ended, so an event is used.
    finished = threading.Event()

    def work() -> None:
        try:
            results.append(command())
        except BaseException as error:
            errors.append(error)
        finished.set()

    with progress:
        threading.Thread(target=work, name="engine", daemon=True).start()
        try:
            while not finished.wait(poll_seconds):
                progress.advance(new_progress())
        except BaseException:
            interrupt()
            finished.wait()
            raise
    if errors:
        raise errors[0]
    return results[0]
