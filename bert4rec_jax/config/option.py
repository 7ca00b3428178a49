# SPDX-License-Identifier: Apache-2.0
"""Declares a config field: its default, its documentation and the values it accepts."""

import dataclasses
import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rule:
    """The values that a field accepts.

    Attributes:
      text: completes the sentence "it must be ...", as in "at least 1".
      accepts: returns whether a value of the field's type is allowed.
    """

    text: str
    accepts: Callable[[Any], bool]


def option(default: T, text: str, rule: Rule | None = None) -> T:
    """Returns a dataclass field with a default and its documentation.

    Args:
      default: the value if the field is not set.
      text: one or two sentences for `--help` and the site, without the type, choices and default.
      rule: the accepted values, unless the type is enough.
    """
    return dataclasses.field(default=default, metadata={"text": text, "rule": rule})


def at_least(minimum: int) -> Rule:
    """Returns the rule for numbers of at least `minimum`."""
    return Rule(f"at least {minimum}", lambda value: value >= minimum)


def one_of(names: Collection[str]) -> Rule:
    """Returns the rule for one of several names."""
    return Rule("one of " + ", ".join(names), lambda value: value in names)


def some_of(names: Collection[str]) -> Rule:
    """Returns the rule for a comma-separated list of names, which may be empty."""

    def accepts(value: str) -> bool:
        given = {name.strip() for name in value.split(",")}
        return given <= {*names, ""}

    return Rule("empty or a comma-separated list of " + ", ".join(names), accepts)


def matching(pattern: str, text: str) -> Rule:
    """Returns the rule for strings that match a regular expression as a whole."""
    return Rule(text, lambda value: re.fullmatch(pattern, value) is not None)


POSITIVE = Rule("above 0", lambda value: value > 0)
SHARE = Rule("between 0 and 1", lambda value: 0 <= value <= 1)
NONZERO_SHARE = Rule("above 0 and at most 1", lambda value: 0 < value <= 1)
INNER_SHARE = Rule("above 0 and below 1", lambda value: 0 < value < 1)
BELOW_ONE = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)
SEED = Rule("at least 0 and below 2**32", lambda value: 0 <= value < 2**32)
INT64 = Rule("a 64-bit integer", lambda value: abs(value) < 2**63)
