# SPDX-License-Identifier: Apache-2.0
"""Running a command: flags in, one line for people when something is wrong with them."""

import contextlib
import inspect
import logging
import os
import re
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import TextIO

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from bert4rec_jax.allocator import keep_freed_memory
from bert4rec_jax.config import load
from bert4rec_jax.config.renamed import renamed_hint
from bert4rec_jax.errors import UserError, exit_cleanly
from bert4rec_jax.phases import wrapped


def run_command(main: Callable[[list[str]], int]) -> None:
    """Parses the flags of the command line, calls main(remaining arguments) and exits with what it returns."""
    keep_freed_memory()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as `main` has it while it imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    absl_logging.use_absl_handler()  # which takes the place of handlers of the stderr that it finds
    sys.stderr = sys.stderr and _Forgiving(sys.stderr)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    command = sys.modules["__main__"]
    command.__doc__ = wrapped(command.__doc__ or "") + "\n"  # what --help prints
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_ours_or_serious)
    sys.unraisablehook = _report_unraisable
    threading.excepthook = _report_thread
    app.run(exit_cleanly(main), flags_parser=exit_cleanly(_parse))


class _Forgiving:
    """A stderr that ends no run when it cannot be written: a terminal that is gone, a log on a full disk."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def train_command() -> None:
    """Is `bert4rec-train`, the same as `python -m bert4rec_jax.main`."""
    runpy.run_module("bert4rec_jax.main", run_name="__main__", alter_sys=True)


def recommend_command() -> None:
    """Is `bert4rec-recommend`, the same as `python -m bert4rec_jax.recommend`."""
    runpy.run_module("bert4rec_jax.recommend", run_name="__main__", alter_sys=True)


def export_command() -> None:
    """Is `bert4rec-export`, the same as `python -m bert4rec_jax.export`."""
    runpy.run_module("bert4rec_jax.export", run_name="__main__", alter_sys=True)


def flag(command: Sequence[str], name: str) -> str:
    """Returns the value of --name in a command, empty where it is not given."""
    for word, following in zip(command, [*command[1:], ""]):
        if word == f"--{name}":
            return following
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return ""


class ConfigParser(config_flags.config_flags.ConfigFileFlagParser):
    """Reads what --config names, in all the forms that `config.load` knows."""

    def parse(self, path: str) -> ml_collections.ConfigDict:
        """Returns the values of the file."""
        return load(path)


def _ours_or_serious(record: logging.LogRecord) -> bool:
    """Lets through what this program says, and errors of the libraries below it."""
    here = os.path.dirname(os.path.abspath(__file__))
    # Orbax logs a traceback in each thread and task that fails, and raises the error as well: one line is enough.
    if "orbax" in record.pathname or record.name == "asyncio":
        return False
    return record.levelno >= logging.ERROR or record.pathname.startswith(here)


def _report_unraisable(unraisable) -> None:
    """Reports what could not be raised, but for what is left of Orbax's event loops after a failed save or read.

    The failure itself is raised and reported. A signal that came while a callback of the garbage collector ran, which
    may raise nothing, is sent again.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        number = getattr(unraisable.exc_value, "number", signal.SIGINT)
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        return
    if not (
        inspect.iscoroutine(unraisable.object)
        or "Event loop is closed" in str(unraisable.exc_value)
    ):
        sys.__unraisablehook__(unraisable)


def _report_thread(failure) -> None:
    """Reports an exception that ended a thread, but for those of Orbax, which the main thread raises as well."""
    frames = traceback.extract_tb(failure.exc_traceback)
    if not any("orbax" in frame.filename or "tensorstore" in frame.filename for frame in frames):
        threading.__excepthook__(failure)


def _renamed_flag(arguments: Sequence[str]) -> str:
    """Returns the error message for a flag that sets a renamed config field, or ""."""
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0].removeprefix("config.")
        if hint := renamed_hint(name):
            return f"unknown config field config.{name}; {hint}."
    return ""


def _parse(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except SystemExit:  # --help has been answered, which absl ends with 1
        sys.exit(0)
    except (AttributeError, KeyError) as error:
        # A sentence of ml_collections of two lines, in quotes of a KeyError where it comes from one.
        text = (
            re.sub(r"\\n|\n", "; ", " ".join(str(x) for x in error.args))
            .replace("\\", "")
            .strip("'\" ")
        )
        field, _, meant = text.partition("; ")
        hint = f"; {meant[0].lower()}{meant[1:]}" if meant else ""
        name = field.strip("'")
        if renamed := _renamed_flag(arguments):
            raise UserError(renamed) from None
        raise UserError(
            f"there is no such config field: {name!r}{hint}; --help lists all fields."
        ) from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(" ".join(str(x) for x in error.args)) from None
    except BrokenPipeError:  # `--help | head`
        raise
    except (OSError, ImportError, SyntaxError) as error:
        raise UserError(f"the config file cannot be read: {error}.") from None
