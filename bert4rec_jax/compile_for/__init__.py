# SPDX-License-Identifier: Apache-2.0
"""Compiling a run for machines that are not here, which is what `--compile_for` does: does it fit, what binds it?

`figures` compiles the steps and reads what the compiler says, `words` prints it.
"""

from bert4rec_jax.compile_for.figures import Report, report
from bert4rec_jax.compile_for.words import as_json, as_text
from bert4rec_jax.config import Config
from bert4rec_jax.devices.targets import Target

__all__ = ["Report", "as_json", "as_text", "main", "report"]


def main(config: Config, target: Target, num_items: int, json_output: bool) -> int:
    """Compiles, prints and returns the exit code: 1 where something does not fit."""
    reports = report(config, target, num_items)
    print((as_json if json_output else as_text)(config, target, reports))
    return 0 if all(r.fits for r in reports) else 1
