# SPDX-License-Identifier: Apache-2.0
"""The same step in every layout over eight simulated devices gives the same parameters, losses and ranks."""

import pickle
import sys

import eight_devices
import numpy as np
import pytest
from commands import run, succeed, train_command


def run_script(which: str, made_once) -> dict:
    folder = made_once(
        f"eight-{which}",
        lambda folder: succeed(
            [sys.executable, eight_devices.__file__, str(folder / "layouts.pickle"), which],
            folder,
            devices=8,
        ),
    )
    return pickle.loads((folder / "layouts.pickle").read_bytes())


@pytest.fixture(scope="module")
def quick(made_once):
    return run_script("quick", made_once)


@pytest.fixture(scope="module")
def rest(made_once):
    return run_script("rest", made_once)


def assert_equal_runs(trained: dict, name: str, tolerance: float = 1e-5):
    """Compares what layouts must share: sums of losses and targets, and gradients, to the size of the largest."""
    reference = trained[f"{name.split(':')[0]}: one" if ":" in name else "one"]
    other = trained[name]
    assert other["targets"] == reference["targets"]
    assert other["dtypes"] == {"float32"}
    np.testing.assert_allclose(other["losses"], reference["losses"], rtol=tolerance)
    np.testing.assert_allclose(other["norms"], reference["norms"], rtol=10 * tolerance)
    # The first step starts from the same parameters; the others from what was made of its rounding.
    for step, factor in ((0, 1), (-1, 10)):
        largest = max(np.abs(x).max() for x in reference["moments"][step].values())
        for leaf, value in reference["moments"][step].items():
            np.testing.assert_allclose(
                other["moments"][step][leaf],
                value,
                rtol=0,
                atol=factor * tolerance * largest,
                err_msg=leaf,
            )


@pytest.mark.parametrize("name", [n for n in eight_devices.QUICK if not n.endswith("one")])
def test_layouts_take_the_same_steps(quick, name):
    assert_equal_runs(quick["trained"], name)


def test_the_comparison_means_something(quick):
    one = quick["trained"]["one"]
    most, fewest = quick["histories"]
    assert most > fewest, "every device has as many histories, so means of means would pass too"
    limit = eight_devices.config_of({}).optimizer.clip_norm
    assert min(one["norms"]) > limit, "the gradient was never clipped"
    assert one["losses"][-1] < one["losses"][0]


@pytest.mark.parametrize("layout", [n for n in eight_devices.LAYOUTS if n != "one"])
def test_ranks_are_identical(quick, layout):
    for protocol, expected in quick["ranks"]["one"].items():
        for field, value in expected.items():
            np.testing.assert_array_equal(
                quick["ranks"][layout][protocol][field], value, err_msg=f"{protocol} {field}"
            )
    sampled = quick["ranks"]["one"]["uni100"]
    assert (sampled["candidates"] == 101).all()


def test_tables_with_features_are_the_same(quick):
    one = quick["tables"]["one"]
    for layout, table in quick["tables"].items():
        np.testing.assert_allclose(table, one, rtol=0, atol=1e-6, err_msg=layout)


def test_devices_that_cannot_share_the_table_are_one_line(tmp_path):
    done = run(
        train_command(
            tmp_path / "run",
            {"parallel.item_shards": 3, "train.batch_rows": 12, "eval.batch_rows": 12},
        ),
        tmp_path,
        devices=3,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "config.parallel.item_shards = 3 must divide the 64 rows of the item table" in " ".join(
        done.stderr.split()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in eight_devices.REST if not n.endswith("one")])
def test_other_losses_and_models_in_layouts(rest, name):
    # Half precision rounds activations to 8 bits, at other places in other layouts.
    assert_equal_runs(rest["trained"], name, 1e-2 if name.startswith("bf16") else 1e-5)


def test_dropout_drops_and_differs_from_step_to_step(quick):
    one, plain = quick["trained"]["dropout: one"], quick["trained"]["one"]
    assert one["losses"][0] != plain["losses"][0] and one["targets"] == plain["targets"]
