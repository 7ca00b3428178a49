# SPDX-License-Identifier: Apache-2.0
r"""Exports a trained run for use without this package.

  python -m bert4rec_jax.export --workdir runs/ml_1m --format onnx --out exported/ml_1m
  python -m bert4rec_jax.export --workdir runs/ml_1m --format stablehlo --out exported/ml_1m_jax
  python -m bert4rec_jax.export --workdir runs/ml_1m --format page --out site
  python -m http.server --directory site

`onnx` (pip install 'bert4rec_jax[onnx]') runs wherever onnxruntime does, `stablehlo` wherever JAX
does. Both come with items.csv and a README that shows how to call them. `page` (pip install
'bert4rec_jax[page]') is a folder of static files: visitors pick a few items, and the model runs in
their browser.
"""

import importlib.util
import os
from typing import TYPE_CHECKING

from absl import flags

from bert4rec_jax.command_line import run_command
from bert4rec_jax.errors import UserError

if TYPE_CHECKING:
    from bert4rec_jax.serving import Recommender

_PROTOBUF_BYTES = 2**31 - 2**20
_CHECKED_HISTORIES = 200
_BYTES_PER_NUMBER = {"float32": 4, "float16": 2, "int8": 1}
# The formats for which a flag has a meaning.
_FORMATS_OF_FLAG = {
    "table_dtype": ("onnx", "page"),
    "histories": ("page",),
    "onnxruntime_web": ("page",),
    "k": ("stablehlo",),
}


def main(arguments: list[str]) -> int:
    """Writes the files and prints their names; returns the exit code."""
    _check_flags(arguments)
    out = flags.FLAGS.out
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be created ({error.strerror}); choose a folder."
        ) from None
    # Imported after the flags are checked, because JAX takes seconds to start.
    from bert4rec_jax.serving import Recommender, read_histories

    histories = read_histories(flags.FLAGS.histories) if flags.FLAGS.histories else {}
    recommender = Recommender(flags.FLAGS.workdir)
    if flags.FLAGS.format == "page":
        _write_page(recommender, histories)
    else:
        _write_model(recommender)
    return 0


def _check_flags(arguments: list[str]) -> None:
    values = flags.FLAGS
    if len(arguments) > 1:
        raise UserError(f"{arguments[1]!r} is not a flag; see --help.")
    for name, formats in _FORMATS_OF_FLAG.items():
        if values[name].present and values.format not in formats:
            required = " or ".join(f"--format {known}" for known in formats)
            raise UserError(
                f"--{name} does not apply to --format {values.format}; it requires {required}."
            )
    if values.k < 1:
        raise UserError(f"--k={values.k} must be at least 1.")
    if values.format != "stablehlo" and importlib.util.find_spec("onnx") is None:
        raise UserError(
            f"--format {values.format} requires the package onnx: "
            f"pip install 'bert4rec_jax[{values.format}]'."
        )


def _write_model(recommender: "Recommender") -> None:
    from bert4rec_jax.export import readme, stablehlo

    format_name = flags.FLAGS.format
    model = recommender.config.model
    notes = []
    if model.dtype != "float32":
        notes.append(
            f"The run computed in {model.dtype} and this file computes in float32, so scores "
            "differ by rounding."
        )
    if format_name == "onnx":
        files, onnx_notes = _write_onnx(recommender)
        notes += onnx_notes
    else:
        path = os.path.join(flags.FLAGS.out, "model.stablehlo")
        k = flags.FLAGS.k
        files = stablehlo.write(path, model, recommender.num_items, recommender.params, k)
    files.append(readme.write_items(flags.FLAGS.out, recommender))
    files.append(
        readme.write_readme(flags.FLAGS.out, recommender, format_name, notes, flags.FLAGS.k)
    )
    for path in files:
        print(f"{os.path.getsize(path) / 1e6:10.2f} MB  {path}")


def _write_onnx(recommender: "Recommender") -> tuple[list[str], list[str]]:
    """Writes the ONNX file and compares it with the model; returns files and README notes."""
    from bert4rec_jax.export import check, onnx_model

    table_dtype = flags.FLAGS.table_dtype
    files = onnx_model.write(
        os.path.join(flags.FLAGS.out, "model.onnx"),
        recommender.config.model,
        recommender.num_items,
        recommender.params,
        table_dtype,
    )
    notes = []
    if importlib.util.find_spec("onnxruntime") is not None:
        found = check.compare(files[0], recommender, _CHECKED_HISTORIES)
        notes.append(
            f"Compared with the original model on {found.histories} random histories, "
            f"{100 * found.same_items:.1f} % of the ten best items are the same, "
            f"{100 * found.same_top:.1f} % of the lists have the same order, and scores differ "
            f"by at most {found.largest:.1e}."
        )
        print(notes[-1])
    if len(files) > 1:
        notes.append(
            "The weights are in `model.onnx.data`; keep it in the same folder as `model.onnx`."
        )
    if table_dtype != "float32":
        notes.append(f"The item table is stored as {table_dtype}.")
    return files, notes


def _write_page(recommender: "Recommender", histories: dict[str, list[str]]) -> None:
    from bert4rec_jax.data import cache_folder
    from bert4rec_jax.export import page

    table_dtype = flags.FLAGS.table_dtype
    table_bytes = recommender.embeddings.size * _BYTES_PER_NUMBER[table_dtype]
    if table_bytes > _PROTOBUF_BYTES:
        raise UserError(
            f"an item table of {table_bytes / 1e9:.1f} GB is too large for a page; try "
            "--table_dtype int8, or --format onnx."
        )
    page.write(
        flags.FLAGS.out,
        recommender,
        histories,
        cache_folder(recommender.config.data),
        flags.FLAGS.onnxruntime_web,
        table_dtype,
    )
    sizes = [
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(flags.FLAGS.out)
        for name in names
    ]
    print(
        f"{sum(sizes) / 1e6:.1f} MB in {flags.FLAGS.out}; to open it: "
        f"python -m http.server --directory {flags.FLAGS.out}"
    )


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Directory of a trained run.", required=True)
    flags.DEFINE_enum(
        "format", None, ["onnx", "stablehlo", "page"], "Export format.", required=True
    )
    flags.DEFINE_string("out", None, "Folder for the files; created if missing.", required=True)
    flags.DEFINE_enum(
        "table_dtype",
        "float32",
        ["float32", "float16", "int8"],
        "Storage of the item table in onnx and page: smaller files, slightly different scores.",
    )
    flags.DEFINE_integer(
        "k", 100, "With --format stablehlo: number of items that the function returns."
    )
    flags.DEFINE_string(
        "histories",
        "",
        "With --format page: JSON file {name: [title or id, ...]} of histories to start from.",
    )
    flags.DEFINE_string(
        "onnxruntime_web",
        "",
        "With --format page: .tgz of the package onnxruntime-web; empty: fetch it with npm and "
        "keep it in the data cache.",
    )


if __name__ == "__main__":
    _define_flags()
    run_command(
        main,
        sections={
            "With --format stablehlo": ["k"],
            "With --format page": ["histories", "onnxruntime_web"],
        },
    )
