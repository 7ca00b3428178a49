# SPDX-License-Identifier: Apache-2.0
"""Setting config fields by their dotted names, on the command line and in sweeps."""

from collections.abc import Mapping, Sequence
from typing import Any

from bert4rec_jax.config.describe import Field, describe
from bert4rec_jax.errors import UserError

_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates the flags that set config fields from all other arguments.

    Args:
      arguments: of a command line. A value may follow its flag as an argument of its own.

    Returns:
      The config flags, each as `--config.GROUP.FIELD=VALUE`, and the other arguments.

    Raises:
      UserError: the last flag lacks a value.
    """
    switches = {field.name for field in describe() if field.type is bool}
    flags = []
    others = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            others += [argument, *remaining]
        elif not argument.startswith(("--config.", "-config.")):
            others.append(argument)
        else:
            name, equals, value = argument.lstrip("-").removeprefix("config.").partition("=")
            if not equals and name in switches:
                value = "true"
            elif not equals:
                following = next(remaining, None)
                if following is None:
                    raise UserError(f"--config.{name} needs a value; add =VALUE.")
                value = following
            flags.append(f"--config.{name}={value}")
    return flags, others


def parse_flags(flags: Sequence[str]) -> dict[str, Any]:
    """Returns {field name: value} of flags such as `--config.model.width=128`.

    A value that does not have the type of its field stays a string, which `resolve` rejects.

    Raises:
      UserError: an argument has another form.
    """
    fields = {field.name: field for field in describe()}
    values = {}
    for flag in flags:
        name, equals, text = flag.removeprefix("--config.").partition("=")
        if not flag.startswith("--config.") or not equals:
            raise UserError(f"{flag!r} is not a flag; set fields with --config.GROUP.FIELD=VALUE.")
        values[name] = parse_value(fields[name], text) if name in fields else text
    return values


def parse_value(field: Field, text: str) -> Any:
    """Returns `text` as a value of the field's type, or unchanged if it is not one."""
    try:
        if field.type is bool:
            return _BOOLEANS[text.lower()]
        if field.type in (int, float):
            return field.type(text)
    except (KeyError, ValueError):
        pass
    return text


def with_fields(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of nested config values in which dotted `fields` are set.

    Raises:
      UserError: a name has more parts than any field.
    """
    changed = {
        name: with_fields(x, {}) if isinstance(x, Mapping) else x for name, x in values.items()
    }
    for name, value in fields.items():
        *parents, leaf = name.split(".")
        group = changed
        for parent in parents:
            group = group.setdefault(parent, {})
            if not isinstance(group, dict):
                raise UserError(f"unknown config field config.{name}.")
        group[leaf] = value
    return changed
