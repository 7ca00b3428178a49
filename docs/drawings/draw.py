# SPDX-License-Identifier: Apache-2.0
"""Draws the two diagrams of `how_it_works.md` in the text colour of the page.

python docs/drawings/draw.py      # writes batch.svg and rooms.svg next to this file
"""

from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
COLOURS = {
    "data": "#0b6e6e",
    "model": "#b45309",
    "update": "#7c3aed",
    "ranking": "#2563eb",
    "serving": "#be185d",
}
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" role="img" aria-label="{label}" '
    'font-family="system-ui, sans-serif" font-size="13"><defs><marker id="{name}-tip" viewBox="0 '
    '0 8 8" refX="7" '
    'refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" '
    'fill="currentColor"/></marker>'
    "</defs>"
)


def box(x: int, y: int, w: int, h: int, kind: str, title: str, *lines: str) -> str:
    """Returns a box with a title and lines below it."""
    parts = [
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="{COLOURS[kind]}" '
        'fill-opacity=".13" '
        f'stroke="{COLOURS[kind]}" stroke-width="1.5"/>',
        f'<text x="{x + w / 2}" y="{y + 20}" text-anchor="middle" font-weight="600" '
        'fill="currentColor">'
        f"{escape(title)}</text>",
    ]
    parts += [
        f'<text x="{x + w / 2}" y="{y + 38 + 16 * n}" text-anchor="middle" fill="currentColor" '
        'font-size="11.5">'
        f"{escape(line)}</text>"
        for n, line in enumerate(lines)
    ]
    return "".join(parts)


def arrow(name: str, path: str, word: str = "", x: float = 0, y: float = 0) -> str:
    """Returns an arrow along an SVG path with a label."""
    text = (
        (
            f'<text x="{x}" y="{y}" text-anchor="middle" fill="currentColor" font-size="11" '
            'font-style="italic">'
            f"{escape(word)}</text>"
        )
        if word
        else ""
    )
    return (
        f'<path d="{path}" fill="none" stroke="currentColor" marker-end="url(#{name}-tip)"/>{text}'
    )


def batch() -> str:
    """Returns the data flow of a batch and of a ranked history."""
    name = "batch"
    top = [
        ("data", "log", "user, item, time", "data/sources"),
        ("data", "sequences", "items, offsets", "data/prepare"),
        ("data", "rows", "histories packed", "f(seed, step)"),
        ("model", "tasks", "mask, or next item", "tokens, slots"),
        ("model", "encoder", "own segment only", "h [M, D]"),
        ("model", "loss", "chunks of items", "sum, count"),
        ("update", "update", "Adam, schedule", "state of step + 1"),
    ]
    label = "Data flow from the log to an update and to a rank"
    parts = [HEAD.format(w=1010, h=330, label=label, name=name)]
    for n, (kind, *words) in enumerate(top):
        parts.append(box(10 + 143 * n, 40, 122, 78, kind, *words))
        if n:
            parts.append(arrow(name, f"M{143 * n - 10} 79h17"))
    parts.append('<text x="10" y="24" fill="currentColor" font-weight="600">training</text>')
    parts.append(
        '<text x="10" y="190" fill="currentColor" font-weight="600">ranking and serving</text>'
    )
    low = [
        (153, "data", "history", "[MASK] appended", "no later events"),
        (582, "ranking", "scores", "whole catalogue", "without seen items"),
        (725, "ranking", "ranks", "exact, ties last", "metrics, protocol"),
    ]
    for x, *words in low:
        parts.append(box(x, 204, 122, 78, *words))
    parts.append(box(868, 204, 122, 78, "serving", "lists", "titles, files", "API, page"))
    parts.append(arrow(name, "M214 118V202"))
    parts.append(
        arrow(
            name,
            "M275 243H552 Q560 243 560 235 V150 Q560 142 568 142 H592 Q600 142 600 134 V120",
            "the same encoder",
            440,
            236,
        )
    )
    parts.append(arrow(name, "M660 118V202"))
    parts.append(arrow(name, "M704 243h19"))
    parts.append(arrow(name, "M660 282 V300 Q660 308 668 308 H921 Q929 308 929 300 V284"))
    parts.append(
        arrow(
            name,
            "M929 118 V142 Q929 150 921 150 H700 Q690 150 690 142 V120",
            "parameters",
            800,
            144,
        )
    )
    return "".join(parts) + "</svg>"


def rooms() -> str:
    """Returns the layers of the package; nothing imports upwards."""
    floors = [
        ("serving", "main · recommend · export", "commands: flags to one call"),
        ("serving", "serving", "recommender, titles, lists for all users"),
        ("update", "experiment", "a config with its data, layout and compiled step"),
        ("update", "training", "step (pure), loop, optimizer, checkpoint, run directory"),
        ("ranking", "ranking", "scores, ranks, negatives, metrics, baselines"),
        ("model", "model", "encoder, item table, tasks, losses: functions of arrays"),
        ("model", "devices", "layouts, signals, memory, device errors"),
        ("data", "data", "sources, sequences, splits, batches"),
        ("data", "config · command_line · errors · files", "used by all layers"),
    ]
    name = "rooms"
    label = "The packages, highest layer first; nothing imports upwards"
    parts = [HEAD.format(w=760, h=52 * len(floors) + 20, label=label, name=name)]
    for n, (kind, title, line) in enumerate(floors):
        y = 10 + 52 * n
        parts.append(
            f'<rect x="60" y="{y}" width="690" height="44" rx="8" fill="{COLOURS[kind]}" '
            'fill-opacity=".13" '
            f'stroke="{COLOURS[kind]}" stroke-width="1.5"/>'
            f'<text x="78" y="{y + 27}" font-weight="600" '
            f'fill="currentColor">{escape(title)}</text>'
            f'<text x="732" y="{y + 27}" text-anchor="end" fill="currentColor" font-size="12">'
            f"{escape(line)}</text>"
        )
    parts.append(arrow(name, f"M34 20V{52 * len(floors) - 4}"))
    parts.append(
        f'<text transform="translate(24 {26 * len(floors)}) rotate(-90)" text-anchor="middle" '
        'fill="currentColor" font-size="12" font-style="italic">imports</text>'
    )
    return "".join(parts) + "</svg>"


if __name__ == "__main__":
    for drawing in (batch, rooms):
        (FOLDER / f"{drawing.__name__}.svg").write_text(drawing() + "\n", encoding="utf-8")
