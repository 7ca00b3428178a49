# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a run to stop."""

import os
import signal
import sys
import threading
import time

import jax
import numpy as np

from bert4rec_jax.errors import STOPPING

_AGREE_EVERY = 10  # steps between two agreements of several processes
# A terminal and a launcher may both pass on the one Ctrl-C that a person pressed.
_SAME_SECONDS = 1.0
_END = b"\0"  # in place of a signal's number


class StopSignal:
    """Turns SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C into a flag; a context manager.

    Batch systems send these before they take a machine away; the loop saves and returns at the next
    step. Python runs handlers between two of its own instructions, and XLA may compile or compute
    for minutes in between: a thread, woken by the signal itself, answers at once, and a second
    signal ends the process whatever XLA does. A signal that is ignored stays ignored: under nohup a
    run outlives its connection. Python lets only the main thread listen: a run in another is asked
    by nobody, and signals stay with whoever has that thread.
    """

    def __init__(self):
        self._first: float | None = None  # when it was received
        self._stopping = False
        self._previous = {}
        self._listening = False

    def __enter__(self) -> "StopSignal":
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

    def __exit__(self, *_) -> None:
        if not self._listening:
            return
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        # The thread ends once it has answered what came before. Closing the pipe would not end it
        # where a process that was forked meanwhile holds it too.
        os.write(self._write, _END)
        self._watching.join()
        os.close(self._write)
        os.close(self._read)

    def _receive(self, *_) -> None:
        self._stopping = True

    def _watch(self) -> None:
        while (received := os.read(self._read, 1)) != _END:
            number = received[0]
            if number not in STOPPING:
                continue
            name = signal.Signals(number).name
            if self._first is None:
                self._first, self._stopping = time.monotonic(), True
                _say(
                    f"{name}: saving and stopping after the current step or batch; send it again to quit at once."
                )
            elif time.monotonic() - self._first > _SAME_SECONDS:
                _say(f"{name} again: quitting at once; what the last checkpoint holds is safe.")
                os._exit(128 + number)

    def requested(self, step: int | None = None) -> bool:
        """Returns whether to stop. Processes agree, so that all stop at the same place: at some steps, or now."""
        if jax.process_count() == 1:
            return self._stopping
        if step is not None and step % _AGREE_EVERY:
            return False
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(np.int32(self._stopping)).max())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
