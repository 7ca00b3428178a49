# SPDX-License-Identifier: Apache-2.0
"""The committed tables and records can be derived again, and this version can reproduce them."""

import pytest
from hand_made_runs import CHECKOUT

from experiments.reporting import checking, records

RESULTS = CHECKOUT / "experiments" / "results"
FOLDERS = sorted({table.parent for table in RESULTS.glob("*/*.csv")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_program_can_make_every_record_again(folder):
    assert not checking.check_records(records.find([str(folder)])[0])


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_committed_table_follows_from_its_records(folder):
    assert not [problem for table in folder.glob("*.md") for problem in checking.check(table, [])]
