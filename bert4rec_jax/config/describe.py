# SPDX-License-Identifier: Apache-2.0
"""All config fields with their types, defaults, rules and documentation."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal

from bert4rec_jax.config.fields import Config
from bert4rec_jax.config.option import Rule


@dataclasses.dataclass(frozen=True)
class Field:
    """One config field.

    Attributes:
      name: dotted, as in "model.width".
      type: `int`, `float`, `bool`, `str` or a `Literal`.
      default: the value if the field is not set.
      text: the documentation, without type, rule and default.
      rule: the accepted values, unless the type is enough.
    """

    name: str
    type: Any
    default: object
    text: str
    rule: Rule | None

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a `Literal`; empty for other types."""
        return typing.get_args(self.type) if typing.get_origin(self.type) is Literal else ()

    @property
    def group(self) -> str:
        """The name of the field's group, as in "model"; empty for `seed`."""
        return self.name.rpartition(".")[0]


def describe() -> list[Field]:
    """Returns all fields, in the order of `fields.py`."""
    return list(_fields_of(Config, ""))


def group_text(group: str) -> str:
    """Returns the documentation of a group, as in "data.synthetic"; of `Config` if it is empty."""
    kind: Any = Config
    for part in group.split(".") if group else []:
        kind = kind.__dataclass_fields__[part].type
    return kind.__doc__


def _fields_of(kind: Any, prefix: str) -> Iterator[Field]:
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        if dataclasses.is_dataclass(field.type):
            yield from _fields_of(field.type, name + ".")
        else:
            text = field.metadata["text"]
            yield Field(name, field.type, field.default, text, field.metadata["rule"])
