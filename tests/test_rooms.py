# SPDX-License-Identifier: Apache-2.0
"""The structure of the package: imports in one direction, and folders of few, documented files."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The layers, lowest first. A module imports from its own layer and from lower ones.
LAYERS = [
    {"errors", "files", "progress", "run_files", "terminal", "allocator", "host_memory"},
    {"config"},
    {"command_help", "command_line"},
    {"data"},
    {"devices"},
    {"model"},
    {"ranking"},
    {"training"},
    {"experiment"},
    {"serving", "aot"},
    {"recommend", "export", "portrait", "run_report"},
    {"main"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
# bert4rec_jax.load and .train import higher layers when they are called.
TOP = "bert4rec_jax"
MAX_FILES = 14


def modules(package: str) -> dict[str, pathlib.Path]:
    """Returns {dotted name: file} of a package."""
    files = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(package: str) -> dict[str, set[str]]:
    """Returns {module: modules of the package that it imports}, anywhere in the file."""
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


def part(module: str) -> str:
    """Returns the name of a module, or of its folder, in LAYERS."""
    return module.split(".")[1]


def test_imports_point_to_lower_layers():
    for module, imported in imports("bert4rec_jax").items():
        if module == TOP:
            continue
        assert part(module) in LAYER, f"{module} is missing from the layers; add it to LAYERS"
        for other in imported - {TOP}:
            same = part(other) == part(module)
            assert same or LAYER[part(other)] <= LAYER[part(module)], (
                f"{module} imports {other} from a higher layer"
            )


@pytest.mark.parametrize("package", ["bert4rec_jax", "experiments"])
def test_imports_have_no_cycle(package):
    graph = {name: set(imported) for name, imported in imports(package).items()}
    # A package's `__init__` exports what its files define, so the files cannot import it.
    for module, imported in graph.items():
        above = {module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)} - {package}
        assert not imported & above, f"{module} imports its own package"
    while graph:
        free = [name for name, imported in graph.items() if not imported & graph.keys()]
        if package in graph and not free:
            free = [package]
        assert free, f"a cycle among {sorted(graph)}"
        for name in free:
            del graph[name]


@pytest.mark.parametrize("package", ["bert4rec_jax", "experiments"])
def test_folders_are_small_and_documented(package):
    for init in (ROOT / package).rglob("__init__.py"):
        files = [path for path in init.parent.glob("*.py") if not path.name.startswith("__")]
        text = ast.get_docstring(ast.parse(init.read_text()))
        assert len(files) <= MAX_FILES, f"{init.parent} has {len(files)} files"
        assert text, f"{init} lacks a docstring"
        if init.parent.name not in ("bert4rec_jax", "experiments"):
            for path in files:
                assert f"`{path.stem}`" in text, f"{init} does not mention {path.name}"


def test_an_import_does_not_change_the_process():
    script = """
import ctypes, os, sys
looked_up = []
find = ctypes.CDLL.__getattr__
ctypes.CDLL.__getattr__ = lambda library, name: (looked_up.append(name), find(library, name))[1]
before = dict(os.environ)
import bert4rec_jax, bert4rec_jax.config
assert os.environ == before and "jax" not in sys.modules and "numpy" not in sys.modules
import bert4rec_jax.experiment, bert4rec_jax.serving, bert4rec_jax.allocator
assert "mallopt" not in looked_up
bert4rec_jax.allocator.keep_freed_memory()
assert "mallopt" in looked_up
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
