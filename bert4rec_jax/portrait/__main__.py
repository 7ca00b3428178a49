# SPDX-License-Identifier: Apache-2.0
r"""Describes a trained run: its item embeddings, its accuracy by group, and its recommendations.

  python -m bert4rec_jax.portrait --workdir runs/quickstart
  python -m bert4rec_jax.portrait --workdir runs/quickstart --title "Star Wars (1977)" --out
  portraits/quickstart

Writes portrait.html, one page that works offline, and its figures as PNGs.
"""

import os

from absl import flags

from bert4rec_jax.command_line import run_command
from bert4rec_jax.errors import UserError


def main(arguments: list[str]) -> int:
    """Writes the portrait and prints its path; returns the exit code."""
    if len(arguments) > 1:
        raise UserError(f"{arguments[1]!r} is not a flag; give each title its own --title.")
    # Imported after the flags are parsed, because JAX takes seconds to start.
    from bert4rec_jax.portrait import report
    from bert4rec_jax.serving import Recommender

    workdir = flags.FLAGS.workdir
    recommender = Recommender(workdir)
    results = recommender.results
    if results is None:
        raise UserError(f"{workdir} lacks results.json; finish the training first.")
    titles = [recommender.titles.find(title) for title in flags.FLAGS.title]
    folder = flags.FLAGS.out or os.path.join(workdir, "portrait")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {folder} cannot be created ({error.strerror}); choose a folder."
        ) from None
    path = report.write(folder, recommender, results, titles)
    size = os.path.getsize(path) / 1e6
    print(f"{path} ({size:.1f} MB), with its figures as PNGs in the same folder")
    return 0


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Directory of a finished run.", required=True)
    flags.DEFINE_string(
        "out", "", "Folder for the page and its figures; empty: portrait/ in the workdir."
    )
    flags.DEFINE_multi_string(
        "title", [], "Title whose nearest items are shown; may be given several times."
    )


if __name__ == "__main__":
    _define_flags()
    run_command(main)
