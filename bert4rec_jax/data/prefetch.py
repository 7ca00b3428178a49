# SPDX-License-Identifier: Apache-2.0
"""Batches built ahead of time in a thread, so that the device does not wait for the host."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_AHEAD = 3

T = TypeVar("T")


@contextmanager
def prefetch(batch: Callable[[int], T], first: int, stop: int) -> Iterator[Iterator[T]]:
    """Yields an iterator over batch(first), ..., batch(stop - 1), built up to three ahead.

    An exception in `batch` is raised when its batch is requested.
    """
    ready: queue.Queue = queue.Queue(_AHEAD)
    closed = threading.Event()

    def put(value: T | None, error: Exception | None) -> None:
        while not closed.is_set():
            try:
                ready.put((value, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for step in range(first, stop):
                if closed.is_set():
                    return
                put(batch(step), None)
        except Exception as error:  # raised again in the consumer's thread
            put(None, error)

    def consume() -> Iterator[T]:
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
