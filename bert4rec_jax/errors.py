# SPDX-License-Identifier: Apache-2.0
"""Errors that end a command with one line for the user."""

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from bert4rec_jax.terminal import say

# The signals that batch systems, terminals and users send to stop a program.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)

_DISK_FULL_CODES = {errno.ENOSPC, errno.EDQUOT}
# Libraries report a full disk with errors of their own, which contain one of these texts.
_DISK_FULL_TEXTS = ("No space left", "RESOURCE_EXHAUSTED", "Disk quota")
# Errors in a path that the user gave, or in its permissions.
_PATH_CODES = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
_LONGEST_REASON = 120  # characters of the message of another library

_Result = TypeVar("_Result")


class UserError(Exception):
    """An error that the user can fix: wrong config, wrong data, the workdir of another run.

    The message is one or two sentences on a single line: what is wrong, then the remedy.
    """


class SaveError(UserError):
    """Training cannot write its files.

    Other saves may still fail in background threads, with tracebacks of their own. Therefore the
    process ends immediately after it has printed this error.
    """

    def __init__(self, problem: str, reason: str):
        """Builds the message.

        Args:
          problem: the file that cannot be written.
          reason: the cause, for example from `failure_reason`.
        """
        super().__init__(
            f"{problem}: {reason}; earlier checkpoints are intact. Fix the problem and run the "
            "same command again to continue."
        )


class Stopped(KeyboardInterrupt):
    """A stop signal came. If training had begun, its state is saved and can be continued.

    It is a KeyboardInterrupt because any stop signal ends a call as Ctrl-C does. It is not a
    `UserError`, because nothing is wrong.

    Attributes:
      number: the number of the signal.
    """

    def __init__(self, number: int, text: str):
        """Takes the signal's number and a sentence for the user."""
        super().__init__(text)
        self.number = number


def is_disk_full(error: BaseException) -> bool:
    """Returns whether an error, or the error that caused it, reports a full disk."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _DISK_FULL_CODES:
            return True
        if any(text in str(cause) for text in _DISK_FULL_TEXTS):
            return True
    return False


def failure_reason(error: BaseException) -> str:
    """Returns in a few words why reading or writing failed, for use in a message."""
    if is_disk_full(error):
        return "no space is left on the disk"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__


def exit_cleanly(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Decorates a command so that an error the user can fix becomes one line on stderr.

    Exit codes: 2 after a `UserError`, on a full disk and for an unusable path; 128 plus the number
    of the signal after a signal (130 after Ctrl-C); 1 if the reader of stdout ends, as `| head`.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> _Result:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            say(f"error: {' '.join(str(error).split())}")
            if isinstance(error, SaveError):
                sys.stdout.flush()
                os._exit(2)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            say(str(stop) or "interrupted")
            sys.exit(128 + getattr(stop, "number", signal.SIGINT))
        except BrokenPipeError:
            # Otherwise the interpreter reports another error when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            message = _file_system_message(error)
            if message is None:
                raise
            say(f"error: {message}")
            sys.exit(2)

    return wrapped


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _file_system_message(error: OSError) -> str | None:
    """Returns the message for an error of the file system, or None if the user cannot fix it."""
    if is_disk_full(error):
        where = f" for {error.filename}" if error.filename else ""
        return (
            f"no space is left on the disk{where}; free some space and run the same command again: "
            "it continues from what was saved."
        )
    if error.errno in _PATH_CODES and error.filename is not None:
        return (
            f"{error.filename} cannot be opened, created or removed ({error.strerror}); choose "
            "another path."
        )
    return None
