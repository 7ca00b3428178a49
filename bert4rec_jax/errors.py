# SPDX-License-Identifier: Apache-2.0
"""Errors for people: one line that says what is wrong and what to do about it."""

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable

from bert4rec_jax.terminal import say

# What batch systems, terminals and people send to end a program.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)

_FULL = {errno.ENOSPC, errno.EDQUOT}
# What is wrong with a place that somebody named, or with the rights there.
_PLACES = {
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


class UserError(Exception):
    """Something the user can put right: bad config, bad data, a workdir that belongs to another run.

    The message is one sentence or two on a single line: what is wrong, then the remedy.
    """


class SaveError(UserError):
    """What training writes cannot be written.

    Saves that are under way may still fail, in threads and with tracebacks of their own. The process therefore ends at
    once after this has been said.
    """

    def __init__(self, what: str, reason: str):
        """Says that `what` is the case for a `reason`, and what that means for the run."""
        super().__init__(
            f"{what}: {reason}; earlier checkpoints are intact: put that right and start again to go on."
        )

    @staticmethod
    def reason(error: OSError) -> str:
        """Returns why a file could not be written, in the words that all who write use."""
        return (
            "no space is left on the disk" if error.errno in _FULL else error.strerror or str(error)
        )


class Stopped(KeyboardInterrupt):
    """A signal came before there was anything to save: what Ctrl-C does, for any of the signals that ask to stop.

    It is nobody's mistake, so it is no `UserError`. A run that is stopped so ends as one that has been saved.
    """

    def __init__(self, number: int, text: str):
        """Holds the signal's number and a sentence for people."""
        super().__init__(text)
        self.number = number


def exit_cleanly(command: Callable) -> Callable:
    """Decorates a command so that what people can put right becomes one line on stderr.

    A `UserError`, a full disk and a place that does not serve exit with code 2, a signal with 128 and its number
    (Ctrl-C: 130), a reader that has gone away (`| head`) with 1.
    """

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
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
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # or the interpreter complains on leaving
            sys.exit(1)
        except OSError as error:
            if (text := _of_the_file_system(error)) is None:
                raise
            say(f"error: {text}")
            sys.exit(2)

    return wrapped


def _of_the_file_system(error: OSError) -> str | None:
    """Returns what people can put right, or None."""
    if error.errno in _FULL:
        where = f" for {error.filename}" if error.filename else ""
        return (
            f"no space is left on the disk{where}; free some and start the same command again: it goes on from "
            "what was saved."
        )
    if error.errno in _PLACES and error.filename is not None:
        return f"{error.filename} cannot be opened, made or removed ({error.strerror}); name a place that can."
    return None
