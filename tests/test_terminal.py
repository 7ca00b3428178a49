# SPDX-License-Identifier: Apache-2.0
"""Output of commands in a terminal of 80 columns and in a log."""

import io
import json
import re
import sys

import pytest

from bert4rec_jax import terminal
from bert4rec_jax.run_report import results_text

LONG = "error: config.model.heads = 3 is out of range: it must be a divisor of config.model.width = 64, and of no other."


class Terminal(io.StringIO):
    """A stream that looks like a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def eighty(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_message_is_wrapped_in_a_terminal_and_one_line_in_a_log(eighty, monkeypatch):
    for stream, lines in ((Terminal(), 2), (io.StringIO(), 1)):
        monkeypatch.setattr(sys, "stderr", stream)
        terminal.say(LONG)
        shown = stream.getvalue()
        assert shown.count("\n") == lines
        assert ("\033[1;31merror:\033[0m" in shown) == stream.isatty()
        plain = re.sub(r"\033\[[\d;]*m", "", shown)
        assert max(map(len, plain.splitlines())) <= 80 or not stream.isatty()
        assert " ".join(plain.split()) == LONG


@pytest.mark.parametrize("name, value", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off(eighty, monkeypatch, name, value):
    assert terminal.coloured("x", "bold", Terminal()) == "\033[1mx\033[0m"
    assert terminal.coloured("x", "bold", io.StringIO()) == "x"
    monkeypatch.setenv(name, value)
    assert terminal.coloured("x", "bold", Terminal()) == "x"


def test_table_lines_are_cut_only_in_a_terminal(eighty, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert terminal.fitted("x" * 90) == "x" * 79 + "…" and terminal.fitted("x" * 80) == "x" * 80
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal.fitted("x" * 90) == "x" * 90


def test_the_closing_table_fits(eighty, undisturbed):
    results = json.loads((undisturbed / "undisturbed" / "results.json").read_text())
    lines = results_text(results).splitlines()
    assert max(map(len, lines)) <= 80 and any(line.startswith("protocol: ") for line in lines)
