# SPDX-License-Identifier: Apache-2.0
"""Runs a command: parses its flags, reports user errors in one line, and prints its help."""

import contextlib
import inspect
import logging
import math
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from absl import app, flags
from absl import logging as absl_logging

from bert4rec_jax.allocator import keep_freed_memory
from bert4rec_jax.command_help import help_page
from bert4rec_jax.config import split_arguments
from bert4rec_jax.errors import UserError, exit_cleanly

_HELP_FLAGS = {"-h", "-help", "--help", "--helpshort", "--helpfull"}


def run_command(
    main: Callable[[list[str]], int],
    sections: Mapping[str, Sequence[str]] | None = None,
    appendix: Callable[[], str] | None = None,
) -> None:
    """Parses the command line, calls `main` and exits with the code that it returns.

    Args:
      main: called with the program name, the positional arguments and the flags that set config
        fields (`--config.GROUP.FIELD=VALUE`).
      sections: {title: names of flags} for `--help`. Flags in none of them come first.
      appendix: returns more text for the end of `--help`.
    """
    keep_freed_memory()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # set by `main` during its imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    absl_logging.use_absl_handler()  # replaces the handlers of stderr that it finds
    sys.stderr = sys.stderr and _Forgiving(sys.stderr)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_ours_or_serious)
    sys.unraisablehook = _report_unraisable
    threading.excepthook = _report_thread

    def parse(arguments: list[str]) -> list[str]:
        if not _HELP_FLAGS.isdisjoint(arguments[1:]):
            print(help_page(sections or {}))
            if appendix is not None:
                print("\n" + appendix())
            sys.stdout.flush()
            sys.exit(0)
        return _parse(arguments)

    app.run(exit_cleanly(main), flags_parser=exit_cleanly(parse))


class _Forgiving:
    """A stderr that ignores write errors, such as a closed terminal or a full disk."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def train_command() -> None:
    """Runs `bert4rec-train`, which is `python -m bert4rec_jax.main`."""
    _run_as_main("bert4rec_jax.main")


def recommend_command() -> None:
    """Runs `bert4rec-recommend`, which is `python -m bert4rec_jax.recommend`."""
    _run_as_main("bert4rec_jax.recommend")


def export_command() -> None:
    """Runs `bert4rec-export`, which is `python -m bert4rec_jax.export`."""
    _run_as_main("bert4rec_jax.export")


def _run_as_main(module: str) -> None:
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def flag(command: Sequence[str], name: str) -> str:
    """Returns the value of --name in a command, or an empty string."""
    for word, following in zip(command, [*command[1:], ""]):
        if word == f"--{name}":
            return following
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return ""


def _ours_or_serious(record: logging.LogRecord) -> bool:
    """Keeps the messages of this package and the errors of libraries."""
    package = os.path.dirname(os.path.abspath(__file__))
    # Orbax logs a traceback in each thread and task that fails, and also raises the error.
    if "orbax" in record.pathname or record.name == "asyncio":
        return False
    return record.levelno >= logging.ERROR or record.pathname.startswith(package)


def _report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Reports unraisable exceptions, except those that can be handled better.

    - Leftovers of Orbax's event loops after a failed save or read: the failure itself is raised.
    - A signal that arrived during a callback of the garbage collector, which cannot raise: it is
      sent again.
    """
    error = unraisable.exc_value
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "number", signal.SIGINT)
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        return
    leftover = inspect.iscoroutine(unraisable.object) or "Event loop is closed" in str(error)
    if not leftover:
        sys.__unraisablehook__(unraisable)


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    """Reports an exception that ended a thread, unless the main thread raises it too (Orbax)."""
    files = [frame.filename for frame in traceback.extract_tb(failure.exc_traceback)]
    if not any("orbax" in file or "tensorstore" in file for file in files):
        threading.__excepthook__(failure)


def _parse(arguments: list[str]) -> list[str]:
    """Parses the command's own flags and returns everything else."""
    config_flags, others = split_arguments(arguments)
    try:
        positional = flags.FLAGS(others)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    for name, value in flags.FLAGS.flag_values_dict().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name} must be a finite number, not {value}.")
    return positional + config_flags
