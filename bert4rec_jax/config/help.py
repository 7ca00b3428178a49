# SPDX-License-Identifier: Apache-2.0
"""All fields in words, for --help and the site: read from the comments beside them."""

import dataclasses
import inspect
import re
import textwrap
import typing
from typing import Literal

from bert4rec_jax.config.fields import Config
from bert4rec_jax.phases import columns


class Field(typing.NamedTuple):
    """One field of the configuration, for people: `group.name`, its type or choices, its default, what it does."""

    name: str
    kind: str
    default: object
    text: str


def describe() -> list[Field]:
    """Returns all fields in the order of `fields.py`; what they do is read from the comments beside them."""
    fields = []

    def walk(cls, prefix: str) -> None:
        lines = inspect.getsource(cls).splitlines()
        for f in dataclasses.fields(cls):
            if dataclasses.is_dataclass(f.type):
                walk(f.type, f"{prefix}{f.name}.")
                continue
            place = next(n for n, line in enumerate(lines) if re.match(rf"    {f.name}: ", line))
            above = place
            while lines[above - 1].strip().startswith("#"):
                above -= 1
            text = [line.strip().lstrip("# ") for line in lines[above:place]]
            text += lines[place].split("  # ")[1:]
            kinds = (
                typing.get_args(f.type)
                if typing.get_origin(f.type) is Literal
                else (f.type.__name__,)
            )
            fields.append(Field(prefix + f.name, "|".join(kinds), f.default, " ".join(text)))

    walk(Config, "")
    return fields


def help_text() -> str:
    """Returns all fields with their defaults, as text for a terminal."""
    lines = ["Fields of the configuration, with their defaults (--config.GROUP.FIELD=VALUE):"]
    for name, kind, default, text in describe():
        lines.append(f"  {name} = {default!r} ({kind})")
        lines += textwrap.wrap(
            text, min(columns(), 100), initial_indent="      ", subsequent_indent="      "
        )
    return "\n".join(lines)
