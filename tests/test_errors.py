# SPDX-License-Identifier: Apache-2.0
"""Errors and signals end a command with one line."""

import errno
import signal

import pytest

from bert4rec_jax.errors import Stopped, UserError, exit_cleanly


@pytest.mark.parametrize(
    "raised, code, said",
    [
        (UserError("config.x is\nwrong"), 2, "error: config.x is wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            Stopped(signal.SIGTERM, "SIGTERM: preparation has stopped"),
            143,
            "SIGTERM: preparation has stopped\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/metrics.jsonl"),
            2,
            "error: no space is left on the disk for "
            "runs/metrics.jsonl; free some space and run the same command again: it continues from "
            "what was saved.\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "out/x"),
            2,
            "error: out/x cannot be opened, created or removed (Read-only file system); choose another "
            "path.\n",
        ),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_line(capsys, raised, code, said):
    def command():
        raise raised

    with pytest.raises(SystemExit) as exit_:
        exit_cleanly(command)()
    assert exit_.value.code == code and capsys.readouterr().err == said


def test_other_errors_keep_their_traceback():
    def command():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        exit_cleanly(command)()
