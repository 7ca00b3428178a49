# SPDX-License-Identifier: Apache-2.0
"""Checks every number in README, docs and configs against the record that it comes from.

List the numbers that differ from the records or lack a record:

  python -m experiments.cite

Write the numbers of the records into the documents:

  python -m experiments.cite --write

experiments/cited.toml lists the sentences with numbers and their records; experiments/README.md
explains how to add one. Arguments are documents, such as README.md (default: all documents).

Exit code: 0; 1 if something differs (with --write: still differs); 2 for wrong usage.
"""

import sys

from absl import flags

from bert4rec_jax.command_line import run_command
from bert4rec_jax.errors import UserError
from experiments.citing import citations
from experiments.reporting.records import CHECKOUT

WRITE = flags.DEFINE_bool("write", False, "Write the numbers of the records into the documents.")


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    known = citations.documents()
    chosen = argv[1:] or known
    for document in chosen:
        if document not in known:
            raise UserError(
                f"{document!r} is not a known document; choose from {', '.join(known)}."
            )
    cited = citations.load()
    left = 0
    for document in chosen:
        problems, text = citations.check(document, cited)
        if WRITE.value:
            (CHECKOUT / document).write_text(text, encoding="utf-8")
            problems, _ = citations.check(document, cited)
        for problem in problems:
            print(f"{document}: {problem}", file=sys.stderr)
        left += len(problems)
    print(
        f"{len(chosen)} documents, {sum(len(c.numbers) for c in cited)} numbers from records, "
        f"{left} problems"
    )
    return 1 if left else 0


if __name__ == "__main__":
    run_command(main)
