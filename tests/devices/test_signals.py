# SPDX-License-Identifier: Apache-2.0
"""Stop signals: the first one sets a flag, the second one ends the process."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from bert4rec_jax.devices import StopSignal, signals

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


def wait_until(condition) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < 30
        time.sleep(0.005)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_stops_the_run_and_a_later_second_one_ends_the_process(
    number, monkeypatch, capfd
):
    ended = []
    clock = [0.0, 0.5, 2.0]  # times at which the three signals are read
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: clock.pop(0)))
    monkeypatch.setattr(os, "_exit", ended.append)
    previous = [signal.getsignal(n) for n in NUMBERS]
    with StopSignal() as stop:
        assert not stop.requested(1)
        os.kill(os.getpid(), number)
        assert stop.requested(1)
        wait_until(lambda: len(clock) == 2)
        assert not ended
        # A terminal and a launcher may both forward the same key press.
        os.kill(os.getpid(), number)
        wait_until(lambda: len(clock) == 1)
        assert not ended
        os.kill(os.getpid(), number)
        wait_until(lambda: ended)
        assert ended == [128 + number]
    printed = capfd.readouterr().err
    assert printed.count(f"{number.name}: saving and stopping") == 1
    assert printed.count("again: quitting at once") == 1
    assert [signal.getsignal(n) for n in NUMBERS] == previous


def test_a_signal_is_handled_before_the_context_ends_even_if_a_fork_holds_its_pipe(monkeypatch):
    messages = []
    monkeypatch.setattr(
        signals, "_print_now", lambda text: (time.sleep(0.3), messages.append(text))
    )
    with StopSignal() as stop:
        held = os.dup(stop._write)  # like a forked process
        os.kill(os.getpid(), signal.SIGTERM)
    os.close(held)
    assert len(messages) == 1 and messages[0].startswith("SIGTERM: saving and stopping")


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested(1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_previous_wakeup_descriptor_is_restored():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing)
    try:
        with StopSignal():
            pass
        assert signal.set_wakeup_fd(before) == writing
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


def test_in_other_threads_handlers_are_not_changed():
    before = [signal.getsignal(n) for n in NUMBERS]

    def handlers_inside() -> list:
        with StopSignal() as stop:
            assert not stop.requested(1)
            return [signal.getsignal(n) for n in NUMBERS]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handlers_inside).result() == before
    assert [signal.getsignal(n) for n in NUMBERS] == before
