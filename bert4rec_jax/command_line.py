# SPDX-License-Identifier: Apache-2.0
"""Running a command: flags in, one line for people when something is wrong with them."""

import inspect
import logging
import os
import re
import runpy
import sys
import threading
import traceback
from collections.abc import Callable

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from bert4rec_jax.allocator import keep_freed_memory
from bert4rec_jax.config import load
from bert4rec_jax.errors import UserError, exit_cleanly
from bert4rec_jax.phases import wrapped


def run_command(main: Callable[[list[str]], int]) -> None:
    """Parses the flags of the command line, calls main(remaining arguments) and exits with what it returns."""
    keep_freed_memory()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    command = sys.modules["__main__"]
    command.__doc__ = wrapped(command.__doc__ or "") + "\n"  # what --help prints
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_ours_or_serious)
    sys.unraisablehook = _report_unraisable
    threading.excepthook = _report_thread
    app.run(exit_cleanly(main), flags_parser=exit_cleanly(_parse))


def train_command() -> None:
    """Is `bert4rec-train`, the same as `python -m bert4rec_jax.main`."""
    runpy.run_module("bert4rec_jax.main", run_name="__main__", alter_sys=True)


def recommend_command() -> None:
    """Is `bert4rec-recommend`, the same as `python -m bert4rec_jax.recommend`."""
    runpy.run_module("bert4rec_jax.recommend", run_name="__main__", alter_sys=True)


def export_command() -> None:
    """Is `bert4rec-export`, the same as `python -m bert4rec_jax.export`."""
    runpy.run_module("bert4rec_jax.export", run_name="__main__", alter_sys=True)


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

    The failure itself is raised and reported.
    """
    if not (inspect.iscoroutine(unraisable.object) or "Event loop is closed" in str(unraisable.exc_value)):
        sys.__unraisablehook__(unraisable)


def _report_thread(failure) -> None:
    """Reports an exception that ended a thread, but for those of Orbax, which the main thread raises as well."""
    frames = traceback.extract_tb(failure.exc_traceback)
    if not any("orbax" in frame.filename or "tensorstore" in frame.filename for frame in frames):
        threading.__excepthook__(failure)


def _parse(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except (AttributeError, KeyError) as error:
        text = re.sub(r"[\\'\"]*(\\n|\n)", "; ", " ".join(str(x) for x in error.args)).strip("\\'\" ")
        raise UserError(f"there is no such config field: {text}; --help lists all fields.") from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(" ".join(str(x) for x in error.args)) from None
    except SystemExit:
        if any(re.fullmatch(r"-(-?help(short|full|xml)?|h|\?)", argument) for argument in arguments):
            sys.exit(0)  # absl prints help and calls that a failure
        raise
    except BrokenPipeError:  # `--help | head`
        raise
    except (OSError, ImportError, SyntaxError) as error:
        raise UserError(f"the config file cannot be read: {error}.") from None
