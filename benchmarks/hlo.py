# SPDX-License-Identifier: Apache-2.0
"""Bytes that a compiled program reads, writes and sends, parsed from XLA's text; nothing is run.

XLA's cost analysis counts the body of a loop once and is not available for GPUs. Here, a loop counts
as often as it runs.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.formulas import all_reduce, gather

SIZES = {
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "bf16": 2,
    "f16": 2,
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f64": 8,
    "s64": 8,
    "u64": 8,
    "s16": 2,
    "u16": 2,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "c64": 8,
}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Operations that move no bytes themselves.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "call-start",
    "after-all",
    "partition-id",
    "replica-id",
    "copy-done",
    "opt-barrier",
    "domain",
    "add-dependency",
    "async-update",
}
_ARRAY = re.compile(
    r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::((?:[TSLE]\([^)]*\)|\([^)]*\))*))?[^}]*\})?"
)


@dataclass(frozen=True)
class Instruction:
    """One line of a compiled program.

    Attributes:
      name: unique in its computation.
      shape: of the result, as written.
      kind: opcode.
      operands: names.
      rest: the text after the operands; for a parameter, it starts with its number in parentheses.
      root: whether it is the result of its computation.
    """

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    root: bool


@dataclass(frozen=True)
class Program:
    """The computations of a compiled program, and how often each runs.

    Attributes:
      computations: instructions by name of the computation.
      entry: name of the first.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def runs(
        self, inside_fusions: bool = False
    ) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
        """Yields every instruction, its computation, and how often it runs.

        Args:
          inside_fusions: whether to descend into fusions, whose insides touch no memory.
        """
        yield from self._visit(self.entry, 1, inside_fusions)

    def _visit(self, name: str, times: int, inside_fusions: bool) -> Iterator:
        computation = self.computations.get(name, {})
        for line in computation.values():
            yield line, computation, times
            again = times
            if line.kind == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line.rest)
                again *= int(trips[1]) if trips else 1
            elif line.kind == "fusion" and not inside_fusions:
                continue
            for called in re.findall(
                r"\b(?:body|calls|branch_computations|true_computation|false_computation)="
                r"(\{[^}]*\}|%?[\w.-]+)",
                line.rest,
            ):
                for inner in re.findall(r"[\w.-]+", called):
                    yield from self._visit(inner, again, inside_fusions)
            if line.kind in (
                "call",
                "call-start",
            ):  # the latter by sparse cores of a TPU, as collectives
                inner = re.search(r"to_apply=%?([\w.-]+)", line.rest)
                yield from self._visit(inner[1], again, inside_fusions)


def parse(text: str) -> Program:
    """Returns the program in XLA's text form, as `Compiled.as_text()` gives it."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line) if not line.startswith(" ") else None
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
            continue
        match = re.match(r"\s+(ROOT )?%?([\w.-]+) = ", line)
        if not match or current is None:
            continue
        after = match.end()
        end = _closing(line, after) if line[after] == "(" else line.find(" ", after)
        opening = line.find("(", end)
        close = _closing(line, opening)
        operands = tuple(re.findall(r"%([\w.-]+)", line[opening:close]))
        kind = line[end:opening].strip()
        rest = line[opening if kind == "parameter" else close :]
        current[match[2]] = Instruction(
            match[2], line[after:end], kind, operands, rest, bool(match[1])
        )
    return Program(computations, entry)


def _closing(line: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if depth == 0:
            return place + 1
    return len(line)


@functools.lru_cache(maxsize=100_000)
def shape_bytes(shape: str, slow_only: bool = False) -> int:
    """Returns the bytes of an array or tuple as written, with the padding of a TPU's tiles.

    Args:
      shape: as `bf16[8,200,64]{2,1,0:T(8,128)(2,1)S(1)}`.
      slow_only: leave out arrays that the compiler keeps in on-chip memory (S(1) and above).
    """
    total = 0
    for kind, dimensions, order, layout in _ARRAY.findall(shape):
        if kind not in SIZES or (slow_only and re.search(r"S\([1-9]\)", layout)):
            continue
        sizes = [int(x) for x in dimensions.split(",") if x]
        tile = re.match(r"T\(([\d,]+)\)", layout)
        if tile and order:
            minor_first = [int(x) for x in order.split(",")]
            for axis, multiple in zip(minor_first, reversed([int(x) for x in tile[1].split(",")])):
                sizes[axis] = math.ceil(sizes[axis] / multiple) * multiple
        total += SIZES[kind] * math.prod(sizes)
    return total


def accessed_bytes(program: Program, slow_only: bool = True) -> int:
    """Returns the bytes that a device reads and writes.

    Each operation reads its operands and writes its result once. Gathers and updates count only the
    affected rows, and kernels count their own estimate. Operands that a fusion passes on unchanged
    count nothing.

    Args:
      program: of one device.
      slow_only: leave out arrays in on-chip memory.
    """
    size = functools.partial(shape_bytes, slow_only=slow_only)
    total, chains = 0, set()
    for line, computation, times in program.runs():
        total += times * _moved(line, computation, program, size, chains)
    return total


def _chain(line: Instruction) -> str | None:
    """Returns the name that the parts of a TPU's collective share, if any."""
    found = re.search(r'chain_id="(\d+)"', line.rest)
    return f"{line.kind.removesuffix('-start')} {found[1]}" if found else None


def _moved(line: Instruction, computation: dict, program: Program, size, chains: set) -> int:
    if line.kind in _FREE or line.kind.endswith("-done"):
        return 0
    shapes = [computation[name].shape for name in line.operands if name in computation]
    estimate = (
        re.search(r'"bytes_accessed":"?(\d+)', line.rest) if line.kind == "custom-call" else None
    )
    if estimate and int(estimate[1]) > 0:
        return int(estimate[1])
    if line.kind in ("gather", "dynamic-slice", "slice"):
        return 2 * size(line.shape) + sum(size(s) for s in shapes[1:])
    if line.kind == "dynamic-update-slice":
        return 2 * size(shapes[1])
    if line.kind == "scatter":
        return sum(size(s) for s in shapes[1:]) + 2 * size(shapes[-1])
    if line.kind.endswith("-start"):  # its result repeats the operand
        return sum(map(size, shapes)) + max(size(line.shape) - sum(map(size, shapes)), 0)
    if line.kind == "fusion":
        return _fusion_moved(line, shapes, program, size, chains)
    return size(line.shape) + sum(map(size, shapes))


def _fusion_moved(line: Instruction, shapes: list[str], program: Program, size, chains: set) -> int:
    inner = program.computations.get(re.search(r"calls=%?([\w.-]+)", line.rest)[1], {})
    parameters, users = {}, {}
    for each in inner.values():
        if each.kind == "parameter":  # in any order
            parameters[each.name] = int(re.match(r"\((\d+)\)", each.rest)[1])
        for place, name in enumerate(each.operands):
            users.setdefault(name, []).append((each, place))
    # Only handed on: results that are parameters, and results of a collective that another fusion has
    # begun.
    under_way = {each.name for each in inner.values() if _chain(each) in chains}
    chains.update(filter(None, map(_chain, inner.values())))
    in_place = {"dynamic-update-slice": 1, "scatter": -1}
    replaced = [each for each in inner.values() if each.kind in in_place]
    total = 0
    for name, number in parameters.items():
        read = _users_behind_bitcasts(name, users)
        working = [
            (user, place)
            for user, place in read
            if user.kind != "tuple" and user.name not in under_way
        ]
        if read and not working:
            continue
        if working and all(
            place == 0 and user.kind in ("gather", "dynamic-slice", "slice", *in_place)
            for user, place in working
        ):
            total += min(
                size(shapes[number]),
                sum(
                    size(_same_space(user.shape, shapes[number]))
                    for user, _ in working
                    if user.kind not in in_place
                ),
            )
        elif number < len(shapes):
            total += size(shapes[number])
    written = size(line.shape)
    root = next((each for each in inner.values() if each.root), None)
    if root and root.kind == "tuple":
        written -= sum(
            size(part[0])
            for part, name in zip(_ARRAY.finditer(line.shape), root.operands)
            if name in parameters or name in under_way
        )
    for each in replaced:
        update = inner.get(each.operands[in_place[each.kind]])
        if update is not None and size(each.shape) <= written:
            written += 2 * size(update.shape) - size(each.shape)
    return total + max(written, 0)


def _users_behind_bitcasts(name: str, users: dict) -> list:
    found = []
    for user, place in users.get(name, ()):
        found += (
            _users_behind_bitcasts(user.name, users) if user.kind == "bitcast" else [(user, place)]
        )
    return found


def _same_space(shape: str, source: str) -> str:
    """Returns `shape`, on chip if `source` is; shapes inside a fusion do not name a memory."""
    space = re.search(r"S\([1-9]\)", source)
    return f"{shape.split('{')[0]}{{0:{space[0]}}}" if space else shape


def sent_bytes(program: Program, devices: int) -> dict[str, float]:
    """Returns bytes sent by a device in a ring, by kind of operation.

    Args:
      program: of one device.
      devices: number that take part if the text does not name groups.
    """
    sent, chains = dict.fromkeys(KINDS, 0.0), set()
    for line, computation, times in program.runs(inside_fusions=True):
        kind = line.kind.removesuffix("-start")
        if kind not in KINDS:
            continue
        chain = _chain(line)
        if chain and chain in chains:
            continue
        chains.add(chain)
        # How a TPU's compiler writes a reduce-scatter: a fusion that sums and keeps a part.
        if kind == "all-reduce" and any(
            each.root and each.kind == "dynamic-slice" and line.name in each.operands
            for each in computation.values()
        ):
            kind = "reduce-scatter"
        group = _group_size(line.rest, devices)
        operand = sum(
            shape_bytes(re.sub(r"\{[^}]*\}", "", computation[name].shape)) for name in line.operands
        )
        sent[kind] += times * _ring_bytes(kind, operand, group)
    return sent


def _ring_bytes(kind: str, operand: float, group: int) -> float:
    if kind == "all-reduce":
        return all_reduce(operand, group)
    if kind == "all-gather":
        return gather(operand * group, group)
    if kind == "reduce-scatter":
        return gather(operand, group)
    return operand


def _group_size(line: str, devices: int) -> int:
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    return int(tiled[1]) if tiled else devices
