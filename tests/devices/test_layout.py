# SPDX-License-Identifier: Apache-2.0
"""The same step in every layout over eight simulated devices gives the same parameters, losses and ranks."""

import pickle
import sys

import eight_devices
import numpy as np
import pytest
from commands import succeed

# The softmax does not see the keys' bias, so its gradient is rounding noise, which Adam scales up to full steps.
NOISE = "['attention']['key']['bias']"


def run_script(which: str, folder) -> dict:
    path = folder / f"{which}.pickle"
    succeed([sys.executable, eight_devices.__file__, str(path), which], folder, devices=8)
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return run_script("quick", tmp_path_factory.mktemp("eight"))


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    return run_script("rest", tmp_path_factory.mktemp("eight"))


def assert_equal_runs(trained: dict, name: str, tolerance: float = 1e-5):
    reference = trained[f"{name.split(':')[0]}: one" if ":" in name else "one"]
    other = trained[name]
    assert other["targets"] == reference["targets"]
    assert other["dtypes"] == {"float32"}
    np.testing.assert_allclose(other["losses"], reference["losses"], rtol=tolerance)
    np.testing.assert_allclose(other["norms"], reference["norms"], rtol=100 * tolerance)
    # Four steps of 0.005: parameters have moved by up to 0.02.
    for leaf, value in reference["params"].items():
        if NOISE not in leaf:
            np.testing.assert_allclose(other["params"][leaf], value, atol=tolerance, err_msg=leaf)


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
            np.testing.assert_array_equal(quick["ranks"][layout][protocol][field], value, err_msg=f"{protocol} {field}")
    sampled = quick["ranks"]["one"]["uni100"]
    assert (sampled["candidates"] == 101).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in eight_devices.REST if not n.endswith("one")
                                  and not n.startswith("dropout")])
def test_other_losses_and_models_in_layouts(rest, name):
    # Half precision rounds activations to 8 bits, at other places in other layouts.
    assert_equal_runs(rest["trained"], name, 1e-2 if name.startswith("bf16") else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["8 pmap", "4x2"])
def test_dropout_differs_by_layout_and_agrees_on_average(rest, layout):
    one, other = rest["trained"]["dropout: one"]["losses"], rest["trained"][f"dropout: {layout}"]["losses"]
    assert one[0] != other[0]
    assert abs(np.mean(one[-20:]) - np.mean(other[-20:])) < 0.03
    assert np.mean(one[-20:]) < np.mean(one[:10]) - 0.2
