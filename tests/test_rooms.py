# SPDX-License-Identifier: Apache-2.0
"""The package as a house: floors, one way up; rooms of few files, each with a face."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Lowest first; modules of one line may not import each other unless they share a room.
FLOORS = [
    {"errors", "files", "progress", "run_files", "terminal", "allocator"},
    {"config"},
    {"command_help", "command_line"},
    {"data"},
    {"devices"},
    {"model"},
    {"ranking"},
    {"training"},
    {"experiment"},
    {"serving", "compile_for"},
    {"recommend", "export", "portrait"},
    {"main"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# bert4rec_jax.load and .train import, when they are called, what lives above.
FACE_OF_THE_HOUSE = "bert4rec_jax"
MOST_FILES = 14


def modules(package: str) -> dict[str, pathlib.Path]:
    """Returns {dotted name: file} of a package."""
    files = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(package: str) -> dict[str, set[str]]:
    """Returns {module: modules of the package that it imports}, wherever in the file and also for type checkers."""
    files = modules(package)
    graph = {}
    for name, path in files.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), (
                f"{path}: a relative import"
            )
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {
                    f"{node.module}.{alias.name}"
                    if f"{node.module}.{alias.name}" in files
                    else node.module
                    for alias in node.names
                }
        graph[name] = {x for x in found if x in files and x != name}
    return graph


def room(module: str) -> str:
    """Returns the name under bert4rec_jax by which a module stands in FLOORS."""
    return module.split(".")[1]


def test_nothing_is_imported_upwards():
    for module, imported in imports("bert4rec_jax").items():
        if module == FACE_OF_THE_HOUSE:
            continue
        assert room(module) in FLOOR, f"{module} stands on no floor; give it one in {__file__}"
        for other in imported - {FACE_OF_THE_HOUSE}:
            same = room(other) == room(module)
            assert same or FLOOR[room(other)] <= FLOOR[room(module)], (
                f"{module} imports {other}, from above"
            )


@pytest.mark.parametrize("package", ["bert4rec_jax", "experiments"])
def test_there_is_no_circle(package):
    graph = {name: set(imported) for name, imported in imports(package).items()}
    # A face hands out what its files make; files may not import their own face.
    for module, imported in graph.items():
        above = {module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)} - {package}
        assert not imported & above, f"{module} imports its own face"
    while graph:
        free = [name for name, imported in graph.items() if not imported & graph.keys()]
        if package in graph and not free:
            free = [package]
        assert free, f"a circle among {sorted(graph)}"
        for name in free:
            del graph[name]


@pytest.mark.parametrize("package", ["bert4rec_jax", "experiments"])
def test_rooms_are_small_and_say_what_lives_there(package):
    for face in (ROOT / package).rglob("__init__.py"):
        files = [path for path in face.parent.glob("*.py") if path != face]
        text = ast.get_docstring(ast.parse(face.read_text()))
        assert len(files) <= MOST_FILES, f"{face.parent} has {len(files)} files"
        assert text, f"{face} does not say what lives there"
        if face.parent.name not in ("bert4rec_jax", "experiments"):
            for path in files:
                assert f"`{path.stem}`" in text, f"{face} does not mention {path.name}"


def test_an_import_leaves_the_process_alone():
    script = """
import ctypes, os, sys
asked = []
find = ctypes.CDLL.__getattr__
ctypes.CDLL.__getattr__ = lambda library, name: (asked.append(name), find(library, name))[1]
before = dict(os.environ)
import bert4rec_jax, bert4rec_jax.config
assert os.environ == before and "jax" not in sys.modules and "numpy" not in sys.modules
import bert4rec_jax.experiment, bert4rec_jax.serving, bert4rec_jax.allocator
assert "mallopt" not in asked
bert4rec_jax.allocator.keep_freed_memory()
assert "mallopt" in asked
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
