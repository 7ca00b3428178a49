# SPDX-License-Identifier: Apache-2.0
"""Ahead-of-time compilation for accelerators that are not attached (`--compile_for`).

It reports whether a run fits into memory and how fast it could be at most.

`targets` describes the accelerators to XLA, `estimate` compiles the steps of a run, `operations`
counts their arithmetic, and `format` prints the result.
"""

from bert4rec_jax.aot.estimate import Report, report
from bert4rec_jax.aot.format import as_json, as_text
from bert4rec_jax.aot.targets import Target, parse
from bert4rec_jax.config import Config

__all__ = ["Report", "Target", "as_json", "as_text", "main", "parse", "report"]


def main(config: Config, target_text: str, num_items: int, json_output: bool) -> int:
    """Compiles the steps of a run for a target and prints the reports.

    Args:
      config: configuration of the run.
      target_text: value of `--compile_for`, such as "h100:8".
      num_items: number of items, to compile without data; 0: load the data.
      json_output: print JSON instead of text.

    Returns:
      The exit code: 0 if every step fits into the target's memory, otherwise 1.
    """
    target = parse(target_text)
    target.prepare()
    reports = report(config, target, num_items)
    to_text = as_json if json_output else as_text
    print(to_text(config, target, reports))
    return 0 if all(r.fits for r in reports) else 1
