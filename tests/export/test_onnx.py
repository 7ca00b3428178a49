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

from bert4rec_jax.export import check, jaxpr_to_onnx, onnx_model, stablehlo

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


def padded(histories):
    longest = max(map(len, histories))
    return np.array([[0] * (longest - len(h)) + list(h) for h in histories], np.int32)


@pytest.fixture(scope="module")
def histories():
    generator = np.random.default_rng(0)
    return [
        (generator.permutation(ITEMS)[:n] + 1).tolist()
        for n in (1, 2, 5, LENGTH - 1, LENGTH, LENGTH + 1, 30)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_the_file_scores_what_the_model_scores(name, histories, tmp_path):
    config = model_config(MODELS[name])
    params = init_params(config, ITEMS, jax.random.key(1))
    (path,) = onnx_model.write(str(tmp_path / "model.onnx"), config, ITEMS, params)
    items, scores, probabilities, everything = session(path).run(
        None, {"history": padded(histories), "k": np.array([10])}
    )
    room = LENGTH - config.appends_mask
    tokens = padded([h[-room:] + ([ITEMS + 1] if config.appends_mask else []) for h in histories])
    in_float32 = dataclasses.replace(config, dtype="float32")
    expected = np.array(
        jax.jit(lambda p, t: stablehlo.scores_of(in_float32, ITEMS, p, t))(
            params, jnp.asarray(tokens)
        )
    )
    expected = expected[:, : ITEMS + 1]
    log_total = np.log(np.exp(expected[:, 1:]).sum(axis=1))
    for row, history in enumerate(histories):
        left = expected[row].copy()
        left[[0, *history]] = -2e9
        np.testing.assert_allclose(everything[row, 1:], left[1:], atol=1e-5)
        assert everything[row, 0] < -1e8
        best = np.argsort(-left, kind="stable")[:10]
        assert items[row].tolist() == best.tolist()
        np.testing.assert_allclose(scores[row], left[best], atol=1e-5)
        np.testing.assert_allclose(
            probabilities[row], np.exp(left[best] - log_total[row]), atol=1e-6
        )


@pytest.mark.parametrize("name", ["left", "both"])
def test_zeros_in_front_and_other_histories_beside_change_nothing(name, histories, tmp_path):
    config = model_config(MODELS[name])
    path = tmp_path / "model.onnx"
    onnx_model.write(str(path), config, ITEMS, init_params(config, ITEMS, jax.random.key(1)))
    run = session(path).run
    together = run(
        ["scores"], {"history": padded([[0, 0, 0, *h] for h in histories]), "k": np.array([5])}
    )[0]
    for row, history in enumerate(histories):
        alone = run(["scores"], {"history": np.array([history], np.int32), "k": np.array([5])})[0]
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)


def test_large_tables_lie_beside_the_file_and_small_ones_are_near(histories, tmp_path):
    config = model_config(MODELS["rotary"])
    params = init_params(config, ITEMS, jax.random.key(1))
    feed = {"history": padded(histories), "k": np.array([10])}
    (tmp_path / "beside").mkdir()
    one = onnx_model.write(str(tmp_path / "one.onnx"), config, ITEMS, params)
    two = onnx_model.write(
        str(tmp_path / "beside" / "model.onnx"), config, ITEMS, params, inline_bytes=100
    )
    assert len(one) == 1 and [name.rsplit("/", 1)[1] for name in two] == [
        "model.onnx",
        "model.onnx.data",
    ]
    (expected,) = session(one[0]).run(["all_scores"], feed)
    np.testing.assert_array_equal(session(two[0]).run(["all_scores"], feed)[0], expected)
    kept = expected > -1e8
    for table, largest in (("float16", 0.01), ("int8", 0.2)):
        path = str(tmp_path / f"{table}.onnx")
        onnx_model.write(path, config, ITEMS, params, table)
        got = session(path).run(["all_scores"], feed)[0]
        assert 0 < np.abs(got - expected)[kept].max() < largest


def test_a_thousand_histories_get_what_recommend_says(small_run, tmp_path):
    recommender = bert4rec_jax.load(str(small_run))
    path = str(tmp_path / "model.onnx")
    onnx_model.write(path, recommender.config.model, recommender.num_items, recommender.params)
    found = check.compare(path, recommender, 1000)
    assert (found.same_top, found.same_items) == (1, 1) and found.largest < 1e-5
    # The comparison sees a model that differs in one bias.
    bias = np.array(recommender.params["items"]["bias"])
    bias[7] += 1
    other = {
        "items": {**recommender.params["items"], "bias": bias},
        "encoder": recommender.params["encoder"],
    }
    onnx_model.write(path, recommender.config.model, recommender.num_items, other)
    found = check.compare(path, recommender, 50)
    assert found.same_top < 1 and found.largest > 0.5


def test_an_unknown_operation_is_named():
    graph = jaxpr_to_onnx.Graph()
    with pytest.raises(UserError, match="operation 'sort'.*stablehlo"):
        jaxpr_to_onnx.translate(graph, jnp.sort, (jax.ShapeDtypeStruct((3,), jnp.float32),), ["x"])


@pytest.mark.parametrize(
    "kind, without", [("onnx", ("jax", "bert4rec_jax")), ("stablehlo", ("bert4rec_jax", "onnx"))]
)
def test_the_readme_beside_the_model_works_without_this_package(kind, without, small_run, tmp_path):
    # Only the one format needs the extra that brings onnx.
    hidden = "" if kind == "onnx" else "import sys; sys.modules['onnx'] = None; "
    command = [
        sys.executable,
        "-c",
        f"{hidden}import runpy; runpy.run_module('bert4rec_jax.export', run_name='__main__')",
        "--workdir",
        str(small_run),
        "--format",
        kind,
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "NDCG@10" in text and "Protocol: " in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert (
        len([line for line in code.splitlines() if line.strip() and not line.startswith("import")])
        <= 12
    )
    hidden = "".join(f"import sys; sys.modules[{name!r}] = None\n" for name in without)
    done = subprocess.run(
        [sys.executable, "-c", hidden + code],
        cwd=tmp_path / "out",
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = [line.rsplit(" ", 2)[0] for line in done.stdout.splitlines()]
    recommender = bert4rec_jax.load(str(small_run))
    expected = [
        recommender.catalogue.loc[r.number, "title"] for r in recommender.recommend([1, 2, 3], 10)
    ]
    assert printed[:10] == expected
    assert len(printed) == (10 if kind == "onnx" else 57)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--format", "stablehlo", "--table", "int8"],
            "--table has no use with --format stablehlo",
        ),
        (["--format", "onnx", "--histories", "x"], "--histories has no use with --format onnx"),
        (["--format", "stablehlo", "--k", "0"], "--k=0 must be at least 1"),
        (
            ["--format", "page", "--histories", "missing.json"],
            "--histories missing.json cannot be read",
        ),
        (["--format", "page", "--histories", "deep.json"], "--histories deep.json is not JSON"),
        (["--format", "page", "--histories", "half.json"], "half of a character"),
        (["--format", "onnx"], "is not a run directory"),
    ],
)
def test_wrong_flags_are_answered_in_a_line(arguments, message, tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "half.json").write_text(json.dumps({"half \ud800": ["a", "b"]}))
    command = [
        sys.executable,
        "-m",
        "bert4rec_jax.export",
        "--workdir",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [*command, *arguments], text=True, capture_output=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in json.dumps(done.stderr.strip().splitlines()[-1])
