# SPDX-License-Identifier: Apache-2.0
"""Signals that stop a run."""

import os
import signal
import sys
import threading
import time
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from bert4rec_jax.errors import STOPPING, Stopped

_AGREE_EVERY = 10  # steps between two agreements of several processes
# A terminal and a launcher may both forward the same Ctrl-C.
_SAME_SIGNAL_SECONDS = 1.0
_END = b"\0"  # sent to the thread instead of the number of a signal


class StopSignal:
    """A context manager that turns SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C into a flag.

    Batch systems send these signals before they take a machine away. The training loop then saves
    and returns at the next step. Python runs signal handlers only between its own instructions, and
    XLA may compile or compute for minutes. A thread that the signal wakes therefore prints the
    message at once, and a second signal ends the process at any time.

    A signal that is ignored stays ignored: under nohup, a run survives the end of its connection.
    Python accepts signal handlers only in the main thread. In other threads, this class has no
    effect.
    """

    def __init__(self) -> None:
        self._first: float | None = None  # time of the first signal
        self._stopping = False
        self._number = int(signal.SIGTERM)  # of the signal that was received
        self._previous: dict[int, Any] = {}
        self._listening = False

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._listening = True
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        self._previous_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._watching = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._listening:
            return
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        # The thread first handles the signals that arrived earlier. Closing the pipe would not end
        # it if a forked process still holds the other end.
        os.write(self._write, _END)
        self._watching.join()
        os.close(self._write)
        os.close(self._read)

    def _receive(self, number: int, *_: object) -> None:
        self._stopping = True
        self._number = number

    def _watch(self) -> None:
        while (received := os.read(self._read, 1)) != _END:
            number = received[0]
            if number in STOPPING:
                self._handle(number)

    def _handle(self, number: int) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self._stopping = True
            self._number = number
            _print_now(
                f"{name}: saving and stopping after the current step or batch; send it again to "
                "quit at once."
            )
        elif now - self._first > _SAME_SIGNAL_SECONDS:
            _print_now(f"{name} again: quitting at once; the last checkpoint is intact.")
            os._exit(128 + number)

    def requested(self, step: int | None = None) -> bool:
        """Returns whether to stop.

        Several processes agree, so that all stop at the same place.

        Args:
          step: number of the training step; processes agree only at every tenth. None: agree now.
        """
        if jax.process_count() == 1:
            return self._stopping
        if step is not None and step % _AGREE_EVERY:
            return False
        return bool(multihost_utils.process_allgather(np.int32(self._stopping)).max())

    def stopped(self) -> Stopped:
        """Returns the exception that ends a run after its state is saved."""
        name = signal.Signals(self._number).name
        return Stopped(
            self._number,
            f"{name}: everything is saved; run the same command again to continue.",
        )

    def check(self) -> None:
        """Raises `Stopped` if a stop signal arrived. All processes agree."""
        if self.requested():
            raise self.stopped()


def _print_now(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
