# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert4rec_jax
from bert4rec_jax import config as config_lib
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import init_params

pytest.importorskip("onnx", reason="the extra bert4rec_jax[onnx] is not installed")
onnxruntime = pytest.importorskip(
    "onnxruntime", reason="the extra bert4rec_jax[onnx] is not installed"
)

from bert4rec_jax.export import check, jaxpr_to_onnx, onnx_model
from bert4rec_jax.export.check import pad_left
from bert4rec_jax.export.model_function import score_histories

ITEMS, LENGTH = 90, 12
CAUSAL = {"model.predict_from": "last_item", "masking.next_item_share": 1.0}
MODELS = {
    "rotary": {"model.positions": "rotary", "model.norm": "pre", "model.head": "tied"},
    "left": {"model.positions": "left", "model.norm": "post", "model.head": "transform"},
    "right, bfloat16": {"model.positions": "right", "model.norm": "pre", "model.dtype": "bfloat16"},
    "causal": {"model.positions": "left", "model.norm": "pre", "model.head": "tied"} | CAUSAL,
    "both": {
        "model.positions": "rotary",
        "model.predict_from": "both",
        "model.remat": True,
        "masking.next_item_share": 0.5,
    },
}


def model_config(changes):
    values = config_lib.base()
    values.model.update(
        width=16, layers=2, heads=2, ffn_width=24, max_length=LENGTH, init_scale=0.3
    )
    values.update_from_flattened_dict(changes)
    return config_lib.resolve(values).model


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def histories():
    generator = np.random.default_rng(0)
    lengths = (1, 2, 5, LENGTH - 1, LENGTH, LENGTH + 1, 30)
    return [(generator.permutation(ITEMS)[:length] + 1).tolist() for length in lengths]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A session of the model "left"."""
    config = model_config(MODELS["left"])
    params = init_params(config, ITEMS, jax.random.key(1))
    path = tmp_path_factory.mktemp("left") / "model.onnx"
    onnx_model.write(str(path), config, ITEMS, params)
    return session(path)


def scores_of_model(config, params, histories):
    """The scores of items 0..ITEMS in float32 without removing any."""
    newest = [history[-config.max_history :] for history in histories]
    if config.appends_mask:
        newest = [[*history, ITEMS + 1] for history in newest]
    config = dataclasses.replace(config, dtype="float32")
    tokens = jnp.asarray(pad_left(newest))
    score = jax.jit(lambda params, tokens: score_histories(config, ITEMS, params, tokens))
    return np.array(score(params, tokens))[:, : ITEMS + 1]


@pytest.mark.parametrize("name", MODELS)
def test_file_gives_the_scores_of_the_model(name, histories, tmp_path):
    config = model_config(MODELS[name])
    params = init_params(config, ITEMS, jax.random.key(1))
    (path,) = onnx_model.write(str(tmp_path / "model.onnx"), config, ITEMS, params)
    feed = {"history": pad_left(histories), "k": np.array([10])}
    items, scores, probabilities, all_scores = session(path).run(None, feed)
    expected = scores_of_model(config, params, histories)
    log_total = np.log(np.exp(expected[:, 1:]).sum(axis=1))
    for row, history in enumerate(histories):
        left = expected[row].copy()
        left[[0, *history]] = -2e9
        best = np.argsort(-left, kind="stable")[:10]
        np.testing.assert_allclose(all_scores[row, 1:], left[1:], atol=1e-5)
        assert all_scores[row, 0] < -1e8
        assert items[row].tolist() == best.tolist()
        np.testing.assert_allclose(scores[row], left[best], atol=1e-5)
        expected_probabilities = np.exp(left[best] - log_total[row])
        np.testing.assert_allclose(probabilities[row], expected_probabilities, atol=1e-6)


@pytest.mark.parametrize("name", ["left", "both"])
def test_padding_and_other_histories_do_not_change_scores(name, histories, tmp_path):
    config = model_config(MODELS[name])
    path = tmp_path / "model.onnx"
    onnx_model.write(str(path), config, ITEMS, init_params(config, ITEMS, jax.random.key(1)))
    run = session(path).run
    k = np.array([5])
    padded = pad_left([[0, 0, 0, *history] for history in histories])
    (together,) = run(["scores"], {"history": padded, "k": k})
    for row, history in enumerate(histories):
        (alone,) = run(["scores"], {"history": np.array([history], np.int32), "k": k})
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)


def test_lists_longer_than_the_catalogue_end_in_zeros(left):
    history = [3, 1, 4]
    for k in (ITEMS - 3, ITEMS, ITEMS + 1, ITEMS + 50):
        feed = {"history": np.array([history], np.int32), "k": np.array([k])}
        items, probabilities = left.run(["items", "probabilities"], feed)
        assert items.shape == probabilities.shape == (1, k)
        found = items[0, : ITEMS - 3].tolist()
        assert sorted(found) == [n for n in range(1, ITEMS + 1) if n not in history]
        assert not items[0, ITEMS - 3 :].any()
        assert not probabilities[0, ITEMS - 3 :].any()


@pytest.mark.parametrize("item", [-1, ITEMS + 1, ITEMS + 2, 10**6])
@pytest.mark.parametrize("place", [0, 29])
def test_items_outside_the_catalogue_are_an_error(left, item, place):
    # Only the newest items are read, but older ones are removed from the list.
    history = np.ones((1, 30), np.int32)
    history[0, place] = item
    with pytest.raises(Exception, match="out of|outside|bounds"):
        left.run(["items"], {"history": history, "k": np.array([5])})


def test_large_weights_are_in_a_second_file(histories, tmp_path):
    config = model_config(MODELS["rotary"])
    params = init_params(config, ITEMS, jax.random.key(1))
    feed = {"history": pad_left(histories), "k": np.array([10])}
    folder = tmp_path / "large"
    folder.mkdir()
    one = onnx_model.write(str(tmp_path / "one.onnx"), config, ITEMS, params)
    path = str(folder / "model.onnx")
    two = onnx_model.write(path, config, ITEMS, params, inline_bytes=100)
    assert len(one) == 1 and two == [path, path + ".data"]
    (expected,) = session(one[0]).run(["all_scores"], feed)
    np.testing.assert_array_equal(session(path).run(["all_scores"], feed)[0], expected)


@pytest.mark.parametrize("table_dtype, tolerance", [("float16", 0.01), ("int8", 0.2)])
def test_small_tables_give_nearly_the_same_scores(table_dtype, tolerance, histories, tmp_path):
    config = model_config(MODELS["rotary"])
    params = init_params(config, ITEMS, jax.random.key(1))
    feed = {"history": pad_left(histories), "k": np.array([10])}
    scores = {}
    for dtype in ("float32", table_dtype):
        path = str(tmp_path / f"{dtype}.onnx")
        onnx_model.write(path, config, ITEMS, params, dtype)
        (scores[dtype],) = session(path).run(["all_scores"], feed)
    left = scores["float32"] > -1e8
    assert 0 < np.abs(scores[table_dtype] - scores["float32"])[left].max() < tolerance


def test_a_thousand_lists_are_the_recommenders(small_run, tmp_path):
    recommender = bert4rec_jax.load(str(small_run))
    path = str(tmp_path / "model.onnx")
    onnx_model.write(path, recommender.config.model, recommender.num_items, recommender.params)
    found = check.compare(path, recommender, 1000)
    assert (found.same_top, found.same_items) == (1, 1) and found.largest < 1e-5
    # The comparison detects a change of a single bias.
    bias = np.array(recommender.params["items"]["bias"])
    bias[7] += 1
    other = {**recommender.params, "items": {**recommender.params["items"], "bias": bias}}
    onnx_model.write(path, recommender.config.model, recommender.num_items, other)
    found = check.compare(path, recommender, 50)
    assert found.same_top < 1 and found.largest > 0.5


def test_unsupported_operation_is_named():
    graph = jaxpr_to_onnx.Graph()
    with pytest.raises(UserError, match="operation 'sort'.*stablehlo"):
        jaxpr_to_onnx.translate(graph, jnp.sort, (jax.ShapeDtypeStruct((3,), jnp.float32),), ["x"])


@pytest.mark.parametrize(
    "kind, without", [("onnx", ("jax", "bert4rec_jax")), ("stablehlo", ("bert4rec_jax", "onnx"))]
)
def test_code_in_the_readme_works_without_this_package(kind, without, small_run, tmp_path):
    out = tmp_path / "out"
    command = "import runpy; runpy.run_module('bert4rec_jax.export', run_name='__main__')"
    if kind == "stablehlo":  # which does not require the extra with onnx
        command = "import sys; sys.modules['onnx'] = None; " + command
    run_python(
        [command, "--workdir", str(small_run), "--format", kind, "--out", str(out)], tmp_path
    )
    text = (out / "README.md").read_text()
    assert "NDCG@10" in text and "Protocol: " in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) <= 12
    hide = "".join(f"import sys; sys.modules[{name!r}] = None\n" for name in without)
    output = run_python([hide + code], out)
    printed = [line.rsplit(" ", 2)[0] for line in output.splitlines()]
    recommender = bert4rec_jax.load(str(small_run))
    (best,) = recommender.recommend_numbers([[1, 2, 3]], 10)
    assert printed[:10] == [recommender.items_table.loc[r.number, "title"] for r in best]
    assert len(printed) == (10 if kind == "onnx" else 57)


def run_python(arguments, folder):
    command = [sys.executable, "-c", *arguments]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


WRONG_FLAGS = [
    (
        ["--format", "stablehlo", "--table_dtype", "int8"],
        "--table_dtype does not apply to --format stablehlo; it requires --format onnx or --format",
    ),
    (["--format", "onnx", "--histories", "x"], "--histories does not apply to --format onnx"),
    (["--format", "stablehlo", "--k", "0"], "--k=0 must be at least 1"),
    (["--format", "page", "--histories", "missing.json"], "--histories missing.json "),
    (["--format", "page", "--histories", "deep.json"], "--histories deep.json is not JSON"),
    (["--format", "page", "--histories", "half.json"], "half"),
    (["--format", "onnx"], "run directory"),
]


@pytest.mark.parametrize("arguments, message", WRONG_FLAGS)
def test_wrong_flags_are_one_line(arguments, message, tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "half.json").write_text(json.dumps({"half \ud800": ["a", "b"]}))
    out = str(tmp_path / "out")
    command = [
        sys.executable,
        "-m",
        "bert4rec_jax.export",
        "--workdir",
        str(tmp_path),
        "--out",
        out,
    ]
    done = subprocess.run(
        [*command, *arguments], text=True, capture_output=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in json.dumps(done.stderr.strip().splitlines()[-1])
