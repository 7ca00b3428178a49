# SPDX-License-Identifier: Apache-2.0
"""Directives that generate pages from the code and the records: `config-fields`, `command`,
`shipped-configs`, `records`.

The pages use the same data as the program, so they cannot be out of date.
"""

import ast
import csv
import importlib
import re
import sys
from itertools import groupby
from pathlib import Path

from absl import flags
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from bert4rec_jax import config as config_lib


class _Markdown(SphinxDirective):
    """A directive that writes Markdown."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Parses the Markdown that `text` returns."""
        from docutils.statemachine import StringList

        lines = self.text().split("\n")
        node = nodes.container()
        self.state.nested_parse(StringList(lines, self.env.docname), 0, node, match_titles=True)
        for table in node.findall(nodes.table):
            table["classes"].append("reference")
        return node.children

    def text(self) -> str:
        """Returns Markdown."""
        raise NotImplementedError


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", r"\<").replace("*", r"\*")


class ConfigFields(_Markdown):
    """All config fields, one table per group."""

    def text(self) -> str:
        """Returns Markdown."""
        lines = []
        for group, fields in groupby(config_lib.describe(), lambda field: field.group):
            lines += [
                f"## {group or 'config'}",
                "",
                _sentence(config_lib.group_text(group)),
                "",
                "| field | default | effect |",
                "|---|---|---|",
            ]
            for field in fields:
                kind = _cell(config_lib.accepted_values(field))
                text = _cell(_capital(field.text).rstrip("."))
                lines.append(f"| `{field.name}` | `{field.default!r}` | {text}; *{kind}* |")
            lines.append("")
        return "\n".join(lines)


def _sentence(text: str) -> str:
    return " ".join(text.split())


def _capital(text: str) -> str:
    return text if re.match(r"\w+:", text) else text[:1].upper() + text[1:]


class Command(_Markdown):
    """The flags of a command: `command MODULE`."""

    required_arguments = 1

    def text(self) -> str:
        """Returns Markdown."""
        module = importlib.import_module(self.arguments[0])
        values = _defined_by(module) if hasattr(module, "_define_flags") else flags.FLAGS
        found = values.flags_by_module_dict()[self.arguments[0]]
        lines = ["| flag | default | effect |", "|---|---|---|"]
        for flag in sorted(found, key=lambda flag: flag.name):
            choices = ", ".join(f"`{value}`" for value in getattr(flag.parser, "enum_values", ()))
            kind = f" ({choices})" if choices else ""
            default = (
                ""
                if flag.default in (None, "", [])
                else f"`{flag.default}`".lower().replace("`none`", "")
            )
            # Remove absl's additions: the choices in front, and the hint that a flag may be
            # repeated.
            text = re.sub(r"^<[^>]*>: |[.;]*;\s+repeat this option.*", "", _sentence(flag.help))
            text = re.sub(r"--[a-z]+", r"`\g<0>`", _cell(_capital(text)))
            lines.append(f"| `--{flag.name}` | {default} | {text}{kind} |")
        return "\n".join(lines)


def _defined_by(module) -> flags.FlagValues:
    """Returns the flags of the module's `_define_flags` in a separate registry,
    because two commands may share a flag.
    """
    own = flags.FlagValues()

    class Flags:
        """Replaces `absl.flags` in the module."""

        def __getattr__(self, name):
            thing = getattr(flags, name)
            if not name.startswith("DEFINE_"):
                return thing

            def define(name, *args, **kwargs):
                thing(name, *args, flag_values=own, **kwargs)
                own.register_flag_by_module(module.__name__, own[name])

            return define

    saved, module.flags = module.flags, Flags()
    try:
        module._define_flags()
    finally:
        module.flags = saved
    return own


class ShippedConfigs(_Markdown):
    """The shipped config files with their docstrings."""

    def text(self) -> str:
        """Returns Markdown."""
        lines = []
        for name, path in config_lib.shipped().items():
            docstring = ast.get_docstring(ast.parse(Path(path).read_text(encoding="utf-8")))
            lines += [f"## {name}", ""]
            for paragraph in docstring.split("\n\n"):
                if re.match(" |python", paragraph):  # a command that is continued on the next line
                    paragraph = re.sub(r"(?<=\S) {4,}(?=--)", " \\\\\n    ", paragraph.strip())
                    paragraph = f"```\n{paragraph}\n```"
                lines += [paragraph, ""]
        return "\n".join(lines)


class Records(_Markdown):
    """The tables and figures that the reports wrote to each folder of experiments/results."""

    metrics = ("ndcg@10", "hr@10", "mrr", "ndcg@100")

    def text(self) -> str:
        """Returns Markdown."""
        root = Path(__file__).resolve().parents[2] / "experiments" / "results"
        lines = []
        for file in sorted(root.glob("*/*.csv")):
            self.env.note_dependency(str(file))
            with file.open(newline="", encoding="utf-8") as text:
                rows = [row for row in csv.DictReader(text) if row["split"] == "test"]
            here = f"../experiments/results/{file.parent.name}"
            protocols = dict.fromkeys(row["protocol"] for row in rows)
            versions = sorted({v.split("; ")[0] for row in rows if (v := row.get("versions"))})
            lines += [f"## {file.parent.name}", "", *(f"{_capital(text)}." for text in protocols)]
            lines += [f"Computed with {', '.join(versions)}.", ""]
            lines += [*self._table(rows), "", ":::{container} figures"]
            for figure in sorted(file.parent.glob(f"{file.stem}-*.png")):
                shows = figure.stem.removeprefix(f"{file.stem}-").replace("_", " ")
                lines += [
                    "",
                    f"```{{image}} {here}/{figure.name}",
                    f":alt: {file.parent.name}, {shows}",
                    "```",
                ]
            table, runs = f"{here}/{file.stem}.md", f"{here}/runs"
            lines += [
                ":::",
                "",
                f"The whole table with its tests: [{table[3:]}]({table}). The records: "
                f"[{runs[3:]}]({runs}).",
                "",
            ]
        return "\n".join(lines)

    def _table(self, rows: list[dict[str, str]]) -> list[str]:
        cells = {(row["model"], row["metric"]): row for row in rows}
        metrics = [metric for metric in self.metrics if any(known == metric for _, known in cells)]
        lines = [
            "| model | seeds | " + " | ".join(metrics) + " |",
            "|---|--:|" + "--:|" * len(metrics),
        ]
        for model in dict.fromkeys(model for model, _ in cells):
            numbers = []
            for metric in metrics:
                row = cells.get((model, metric), {})
                error = (
                    f" ± {float(row['se']):.4f}"
                    if row.get("se") and row["seeds"].count(" ")
                    else ""
                )
                numbers.append(f"{float(row['mean']):.4f}{error}" if row.get("mean") else "")
            seeds = len(cells[model, metrics[0]]["seeds"].split()) or "-"
            lines.append(f"| {_cell(model)} | {seeds} | " + " | ".join(numbers) + " |")
        return lines


def _separate(app, what, name, thing, options, lines: list[str]) -> None:
    """Allows a letter after code, as in `Recommendation`s,
    and code in a module docstring without `::`.
    """
    lines[:] = [re.sub(r"(?<![`\w])`([^`]+)`(?=\w)", r"`\1`\\ ", line) for line in lines]
    if what == "module":
        starts = [
            n
            for n in range(2, len(lines))
            if re.match(r"  +\S", lines[n]) and not lines[n - 1] and re.match(r"\S", lines[n - 2])
        ]
        for n in reversed(starts):
            lines[n:n] = ["::", ""]


def _leave_out(app, what, name, thing, skip, options) -> bool | None:
    """Omits the generated fields of a NamedTuple, because its docstring already documents them."""
    return (
        True if (getattr(thing, "__doc__", "") or "").startswith("Alias for field number") else None
    )


def setup(app) -> dict:
    """Registers the extension with Sphinx."""
    app.connect("autodoc-process-docstring", _separate)
    app.connect("autodoc-skip-member", _leave_out)
    sys.argv = sys.argv[:1] or ["sphinx"]
    app.add_directive("config-fields", ConfigFields)
    app.add_directive("command", Command)
    app.add_directive("records", Records)
    app.add_directive("shipped-configs", ShippedConfigs)
    return {"parallel_read_safe": True}
