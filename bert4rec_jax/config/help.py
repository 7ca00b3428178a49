# SPDX-License-Identifier: Apache-2.0
"""The part of `--help` that lists the config fields."""

import itertools
import operator
import textwrap

from bert4rec_jax.config.describe import Field, describe, group_text

HELP_WIDTH = 80  # columns


def fields_help() -> str:
    """Returns the help text of all config fields, grouped."""
    sections = ["Config fields, set with --config.GROUP.FIELD=VALUE:"]
    for group, fields in itertools.groupby(describe(), operator.attrgetter("group")):
        title = f"config.{group}" if group else "config"
        heading = textwrap.fill(f"{title}: {group_text(group)}", HELP_WIDTH, subsequent_indent="  ")
        blocks = [
            option_help(f"--config.{field.name}", _details(field), field.text) for field in fields
        ]
        sections.append("\n".join([heading, *blocks]))
    return "\n\n".join(sections)


def option_help(flag: str, details: str, text: str) -> str:
    """Returns the help of one option: a line with its type and default, and indented text."""
    head = textwrap.fill(
        f"{flag} ({details})",
        HELP_WIDTH,
        initial_indent="  ",
        subsequent_indent="      ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    body = textwrap.fill(
        text,
        HELP_WIDTH,
        initial_indent="      ",
        subsequent_indent="      ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    return f"{head}\n{body}"


def shown_default(default: object) -> str:
    """Returns a default as it would be typed."""
    if isinstance(default, bool):
        return str(default).lower()
    return "empty" if default == "" else str(default)


def accepted_values(field: Field) -> str:
    """Returns the choices of a field, or its type and rule."""
    if field.choices:
        return "|".join(field.choices)
    if field.type is bool:
        return "true|false"
    if field.type is str:
        return field.rule.text if field.rule else "text"
    return field.type.__name__ + (f", {field.rule.text}" if field.rule else "")


def _details(field: Field) -> str:
    return f"{accepted_values(field)}; default {shown_default(field.default)}"
