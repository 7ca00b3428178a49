# SPDX-License-Identifier: Apache-2.0
import pytest
from hand_made_runs import make_run


@pytest.fixture
def sweep(tmp_path):
    """Three widths with three seeds each; width 64 is much better than 32, width 33 hardly."""
    root = tmp_path / "sweep"
    for seed in range(3):
        for place, (width, strength) in enumerate(((32, 0.0), (33, 0.02), (64, 0.5))):
            make_run(
                root / f"{3 * seed + place:03d}", strength, seed, model__width=width, model__heads=1
            )
    return root
