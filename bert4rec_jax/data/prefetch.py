# SPDX-License-Identifier: Apache-2.0
"""Batches made ahead of time in a thread, so that the device does not wait for the host."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_AHEAD = 3


@contextmanager
def prefetch(batch: Callable[[int], Any], first: int, stop: int) -> Iterator[Iterator[Any]]:
    """Yields an iterator over batch(first), ..., batch(stop - 1), up to three of them ahead.

    An exception of `batch` is raised where its batch would have been taken.
    """
    ready: queue.Queue = queue.Queue(_AHEAD)
    closed = threading.Event()

    def put(value) -> None:
        while not closed.is_set():
            try:
                return ready.put(value, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for step in range(first, stop):
                if closed.is_set():
                    return
                put((batch(step), None))
        except Exception as error:  # handed to the consumer
            put((None, error))

    def consume() -> Iterator[Any]:
        for _ in range(first, stop):
            value, error = ready.get()
            if error is not None:
                raise error
            yield value

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        closed.set()
        thread.join()
