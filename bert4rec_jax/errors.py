# SPDX-License-Identifier: Apache-2.0
"""Errors for people: one line that says what is wrong and what to do about it."""

import errno
import functools
import os
import sys
from collections.abc import Callable

from bert4rec_jax.phases import say


class UserError(Exception):
    """Something the user can put right: bad config, bad data, a workdir that belongs to another run.

    The message is one sentence or two on a single line: what is wrong, then the remedy.
    """


class SaveError(UserError):
    """A save failed. Threads of the library that saves may still fail in its wake, each with a traceback of its own.

    The process therefore ends at once after this has been said.
    """


def exit_cleanly(command: Callable) -> Callable:
    """Decorates a command so that what people can put right becomes one line on stderr.

    A `UserError` and a full disk exit with code 2, Ctrl-C with 130; a reader that has gone away (`| head`) with 1.
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
        except KeyboardInterrupt:
            say("interrupted")
            sys.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains on leaving
            sys.exit(1)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = f" for {error.filename}" if error.filename else ""
            say(f"error: no space is left on the disk{where}; free some and start the same command again: it goes on "
                "from what was saved.")
            sys.exit(2)

    return wrapped
