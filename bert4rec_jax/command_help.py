# SPDX-License-Identifier: Apache-2.0
"""The text that a command prints for `--help`."""

import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence

from absl import flags

from bert4rec_jax.config import HELP_WIDTH, option_help, shown_default


def help_page(sections: Mapping[str, Sequence[str]]) -> str:
    """Returns the description and the flags of the running command, at most 80 columns wide.

    Args:
      sections: {title: names of flags}. Flags in none of them come first.
    """
    command = sys.modules["__main__"]
    module_name = _module_name()
    description = (command.__doc__ or "").replace(f"python -m {module_name}", program_name())
    parts = [_wrapped(part) for part in description.strip("\n").split("\n\n")]
    own_flags = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    in_sections = {name for names in sections.values() for name in names}
    first = [name for name in own_flags if name not in in_sections]
    for title, names in {"Options": first, **sections}.items():
        if names:
            options = [_flag_help(own_flags[name], title) for name in names]
            parts.append("\n".join([f"{title}:", *options]))
    return "\n\n".join(parts)


def program_name() -> str:
    """Returns how the running command was called, as in `bert4rec-train`."""
    script = os.path.basename(sys.orig_argv[1]) if len(sys.orig_argv) > 1 else ""
    if script.startswith("bert4rec-"):
        return script
    return f"python -m {_module_name()}"


def _module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else ""


def _wrapped(paragraph: str) -> str:
    """Returns a paragraph that fits the width; commands are continued with a backslash."""
    lines = paragraph.split("\n")
    if not paragraph.startswith(" "):
        return textwrap.fill(" ".join(lines), HELP_WIDTH, break_on_hyphens=False)
    return "\n".join(_continued(line) for line in lines)


def _continued(line: str) -> str:
    """Returns an indented command as lines that fit, broken in front of flags."""
    if len(line) <= HELP_WIDTH:
        return line
    first, *rest = re.split(r" (?=--)", line)
    lines = [first]
    for part in rest:
        if len(lines[-1]) + 1 + len(part) + 2 <= HELP_WIDTH:
            lines[-1] += " " + part
        else:
            lines.append("      " + part)
    return " \\\n".join(lines)


def _flag_help(flag: flags.Flag, section: str) -> str:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    # absl adds the choices, and the remark that a flag may be repeated.
    text = re.sub(r"^<[^>]*>: |;\s+repeat this option.*", "", flag.help or "", flags=re.DOTALL)
    if text.startswith(f"{section}: "):
        text = text.removeprefix(f"{section}: ")
        text = text[0].upper() + text[1:]
    return option_help(name, _details(flag), text)


def _details(flag: flags.Flag) -> str:
    """Returns the choices or the type of a flag, and its default."""
    if flag.boolean:
        return "default on" if flag.default else "default off"
    kind = flag.flag_type().removeprefix("multi ")
    choices = getattr(flag.parser, "enum_values", None)
    values = "|".join(choices) if choices else kind.replace("string", "text")
    if kind.startswith("comma separated"):
        values = "comma-separated"
    if flag.flag_type().startswith("multi "):
        return f"{values}; may be repeated"
    if flag.default is None:
        required = any("other than None" in validator.message for validator in flag.validators)
        return f"{values}; required" if required else values
    default = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
    return f"{values}; default {shown_default(default)}"
