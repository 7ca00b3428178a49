# SPDX-License-Identifier: Apache-2.0
"""The table of compiled programs."""

import json
import sys

from commands import succeed


def test_the_length_from_which_attention_dominates_is_solved_from_two_lengths(tmp_path):
    """Each position takes 1,000 operations at any length, and two more for each column of its row."""
    rows = []
    for length, batch in ((2048, 8), (8192, 4)):
        operations = batch * length * (1000 + 2 * length)
        rows.append({"name": f"{length:,} long", "target": "v5e:2x4", "operations": operations})
    rows.append({"name": "1M items", "target": "v5e:2x4", "operations": 1})
    script = (
        f"import json; from benchmarks.targets import quadratic_from as f; rows = {rows}; "
        "print(json.dumps([f(rows), f(rows[1:])]))"
    )
    solved = json.loads(succeed([sys.executable, "-c", script], tmp_path).stdout)
    assert solved == [{"v5e:2x4": 500}, {}]
