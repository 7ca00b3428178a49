# SPDX-License-Identifier: Apache-2.0
r"""Takes a trained run out of this package.

  python -m bert4rec_jax.export --workdir runs/ml_1m --format onnx --out exported/ml_1m
  python -m bert4rec_jax.export --workdir runs/ml_1m --format stablehlo --out exported/ml_1m_jax
  python -m bert4rec_jax.export --workdir runs/ml_1m --format page --out site
  python -m http.server --directory site

`onnx` (pip install 'bert4rec_jax[onnx]') runs wherever onnxruntime does, `stablehlo` wherever JAX does; both come
with items.csv and a README of how to call them. `page` (pip install 'bert4rec_jax[page]') is a folder of static files
in which a visitor clicks a history together and the model runs in the browser.
"""

import importlib.util
import os

from absl import flags

from bert4rec_jax.command_line import run_command
from bert4rec_jax.errors import UserError

_PROTOBUF_BYTES = 2**31 - 2**20
_CHECKED = 200


def main(arguments: list[str]) -> int:
    """Writes the files and names them; returns the exit code."""
    f = flags.FLAGS
    if len(arguments) > 1:
        raise UserError(f"{arguments[1]!r} is not a flag; see --help.")
    for name, formats in (
        ("table", ("onnx", "page")),
        ("histories", ("page",)),
        ("onnxruntime_web", ("page",)),
        ("k", ("stablehlo",)),
    ):
        if f[name].present and f.format not in formats:
            raise UserError(
                f"--{name} has no use with --format {f.format}; it goes with {' or '.join(formats)}."
            )
    if f.k < 1:
        raise UserError(f"--k={f.k} must be at least 1.")
    if f.format != "stablehlo" and importlib.util.find_spec("onnx") is None:
        raise UserError(
            f"--format {f.format} needs the package onnx: pip install 'bert4rec_jax[{f.format}]'."
        )
    try:
        os.makedirs(f.out, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {f.out} cannot be made ({error.strerror}); name a folder."
        ) from None
    # Only now: a wrong flag is answered before JAX has started.
    from bert4rec_jax.serving import Recommender, read_histories

    histories = read_histories(f.histories) if f.histories else {}
    recommender = Recommender(f.workdir)
    if f.format == "page":
        _page(recommender, histories)
    else:
        _files(recommender)
    return 0


def _files(recommender) -> None:
    from bert4rec_jax.export import beside, check, stablehlo

    f, model = flags.FLAGS, recommender.config.model
    notes = []
    if model.dtype != "float32":
        notes.append(
            f"The run computed in {model.dtype}; this file computes in float32, so scores differ by rounding."
        )
    if f.format == "onnx":
        from bert4rec_jax.export import onnx_model

        files = onnx_model.write(
            os.path.join(f.out, "model.onnx"),
            model,
            recommender.num_items,
            recommender.params,
            f.table,
        )
        if importlib.util.find_spec("onnxruntime") is not None:
            found = check.compare(files[0], recommender, _CHECKED)
            notes.append(
                f"Beside the model itself, on {found.histories} random histories: {100 * found.same_items:.1f} % of "
                f"the ten best items are the same, {100 * found.same_top:.1f} % of the lists in the same order, and "
                f"scores differ by {found.largest:.1e} at most."
            )
            print(notes[-1])
        if len(files) > 1:
            notes.append("The weights are in `model.onnx.data`, which belongs beside `model.onnx`.")
        if f.table != "float32":
            notes.append(f"The item table is stored as {f.table}.")
    else:
        files = stablehlo.write(
            os.path.join(f.out, "model.stablehlo"),
            model,
            recommender.num_items,
            recommender.params,
            f.k,
        )
    files.append(beside.write_items(f.out, recommender))
    files.append(beside.write_readme(f.out, recommender, f.format, notes, f.k))
    for path in files:
        print(f"{os.path.getsize(path) / 1e6:10.2f} MB  {path}")


def _page(recommender, histories: dict[str, list[str]]) -> None:
    from bert4rec_jax.data.sources.find import cache_folder
    from bert4rec_jax.export import page

    f = flags.FLAGS
    table_bytes = recommender.params["items"]["embedding"].nbytes
    if table_bytes * {"float32": 1, "float16": 0.5, "int8": 0.25}[f.table] > _PROTOBUF_BYTES:
        raise UserError(
            f"an item table of {table_bytes / 1e9:.1f} GB is too large for a page; try --table int8, or "
            "--format onnx."
        )
    page.write(
        f.out,
        recommender,
        histories,
        cache_folder(recommender.config.data),
        f.onnxruntime_web,
        f.table,
    )
    size = sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(f.out)
        for name in names
    )
    print(f"{size / 1e6:.1f} MB in {f.out}; to see it: python -m http.server --directory {f.out}")


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Directory of a trained run.", required=True)
    flags.DEFINE_enum(
        "format", None, ["onnx", "stablehlo", "page"], "What to write.", required=True
    )
    flags.DEFINE_string("out", None, "Folder for the files; made if missing.", required=True)
    flags.DEFINE_enum(
        "table",
        "float32",
        ["float32", "float16", "int8"],
        "How onnx and page store the item table: smaller files, slightly other scores.",
    )
    flags.DEFINE_integer("k", 100, "Of stablehlo: how many items the function returns.")
    flags.DEFINE_string(
        "histories",
        "",
        "Of page: JSON file {name: [title or id, ...]}, offered as starting points.",
    )
    flags.DEFINE_string(
        "onnxruntime_web",
        "",
        "Of page: an onnxruntime-web .tgz that is already here; empty: fetch it "
        "with npm and keep it in the data cache.",
    )


if __name__ == "__main__":
    _define_flags()
    run_command(main)
