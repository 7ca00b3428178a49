# SPDX-License-Identifier: Apache-2.0
"""Errors for people: one line that says what is wrong and what to do about it."""

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right: bad config, bad data, a workdir that belongs to another run.

    The message is one sentence or two on a single line: what is wrong, then the remedy.
    """


def exit_cleanly(command: Callable) -> Callable:
    """Decorates a command so that a `UserError` becomes one line on stderr and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)

    return wrapped
