# SPDX-License-Identifier: Apache-2.0
"""Runs the notebooks from a checkout, as a reader would,
and compares their outputs with the stored ones.

  python docs/_extensions/notebooks.py docs/notebooks/*.ipynb            # `make docs` does this
  python docs/_extensions/notebooks.py --write docs/notebooks/*.ipynb    # store the new outputs

Numbers and cells tagged `varies` may differ, because versions of JAX add numbers in different
orders. Everything else must be equal.
"""

import argparse
import hashlib
import os
import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def sources(notebook: dict) -> str:
    """Returns a digest of the code cells. The outputs are valid only for this digest."""
    text = "\0".join(
        "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shown(cell: dict) -> str:
    """Returns the output of a cell as text with normalised numbers, spaces and table rules."""
    texts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        texts.append(
            "".join(output.get("text") or data.get("text/markdown") or data.get("text/plain", ""))
        )
    return " ".join(
        re.sub(r"-?\d[\d.,]*", "#", re.sub(r"[-=─━]{2,}", " ", " ".join(texts))).split()
    )


def run(path: Path) -> dict:
    """Runs a notebook and returns it with its outputs; raises if a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=[
            "--IPKernelApp.log_level=40"
        ],  # hides warnings about the kernel's transport
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":  # without progress bars
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": {"name": "python"},
        "outputs_of": sources(notebook),
    }
    return notebook


def differences(kept: dict, now: dict) -> list[str]:
    """Returns the differences between stored and new outputs, one line per cell."""
    found = (
        []
        if kept["metadata"].get("outputs_of") == sources(kept)
        else ["the code has changed since the outputs were stored"]
    )
    for number, (old, new) in enumerate(zip(kept["cells"], now["cells"])):
        varies = "varies" in old["metadata"].get("tags", [])
        if not varies and shown(old) != shown(new):
            found.append(
                f"cell {number} shows\n  {shown(new)}\nbut the stored output is\n  {shown(old)}"
            )
    return found


def main() -> int:
    """Runs the given notebooks; returns 1 if an output differs."""
    import nbformat

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="store the new outputs")
    parser.add_argument("notebooks", nargs="+", type=Path)
    arguments = parser.parse_args()
    place = CHECKOUT / "build" / "notebooks"  # data and compiled programs
    os.environ |= {
        "BERT4REC_DATA": str(place / "data"),
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(CHECKOUT),
        "COLUMNS": "100",
    }
    differ = False
    for path in arguments.notebooks:
        now = run(path)
        if arguments.write:
            nbformat.write(now, path)
            continue
        for difference in differences(nbformat.read(path, as_version=4), now):
            differ = True
            print(f"{path}: {difference}", file=sys.stderr)
    if differ:
        print(
            "if the new outputs are correct, run: python docs/_extensions/notebooks.py --write "
            "NOTEBOOK",
            file=sys.stderr,
        )
    return differ


if __name__ == "__main__":
    sys.exit(main())
