# SPDX-License-Identifier: Apache-2.0
"""Invalid config values and files: each is rejected in one line that names the field."""

import json

import pytest

from bert4rec_jax import config as config_lib
from bert4rec_jax.errors import UserError

pytestmark = pytest.mark.timeout(60)  # seconds for each
BIG = 99999999999999999999
WRONG = {
    "seed": [-1, 2**32, BIG, 0.5, "zero", None, True],
    "data.source": ["netflix", "", 3, "\ud800"],
    "data.path": ["\ud83d", "log\0.csv", 3],
    "data.user_column": ["\udbff"],
    "filter.min_rating": [-1.0, float("nan"), "four"],
    "filter.user_core": [-1, 1.5],
    "filter.item_core": [-2],
    "filter.first_users": [BIG, "all"],
    "filter.duplicate_events": ["sometimes", True],
    "split.kind": ["random", None],
    "split.period_target": ["last", "second", 1],
    "split.test_share": [0.0, 1.0, -0.1, float("nan")],
    "split.valid_share": [0.0, 0.95],
    "data.synthetic.users": [0, -5],
    "data.synthetic.num_items": [3],
    "data.synthetic.genres": [0],
    "data.synthetic.mean_length": [1],
    "data.synthetic.seed": [-1, BIG],
    "model.width": [0, -8, 7, 64.0, "wide"],
    "model.layers": [0, -1],
    "model.heads": [0, 3],
    "model.ffn_width": [0],
    "model.max_length": [1, 0, -3, 1e3],
    "model.norm": ["middle", ""],
    "model.positions": ["absolute"],
    "model.head": ["none"],
    "model.dropout": [1.0, -0.1, float("nan"), "some"],
    "model.attention_dropout": [1.0],
    "model.attention": ["pallas_gpu", "flash"],
    "model.matmul_precision": ["float32", ""],
    "model.init_scale": [-0.1, float("nan"), float("inf")],
    "model.dtype": ["float16", "int8"],
    "model.remat": [1, "yes"],
    "model.predict_from": ["last_item", "both", "first_item"],
    "masking.probability": [0.0, 1.1, float("nan")],
    "masking.max_masks": [-1],
    "masking.next_item_share": [-0.5, 1.5, 1.0],
    "masking.last_item_only": [-0.1, 1.1],
    "masking.random_token": [-0.1, 1.5],
    "masking.keep_token": [2.0],
    "loss.name": ["bpr", "", "Softmax"],
    "loss.negatives": [0, -4],
    "loss.gbce_t": [-0.1, 1.1],
    "loss.chunk_items": [-1],
    "optimizer.name": ["sgd"],
    "optimizer.learning_rate": [0.0, -1e-3, float("nan"), float("inf")],
    "optimizer.warmup_steps": [-1, 0.5],
    "optimizer.schedule": ["step"],
    "optimizer.final_fraction": [-0.1, 2.0],
    "optimizer.beta1": [1.0, -0.1],
    "optimizer.beta2": [1.0],
    "optimizer.weight_decay": [0.1, -0.1],
    "optimizer.clip_norm": [-1.0, float("nan")],
    "train.steps": [0, -5, "many", 1e3],
    "train.batch_rows": [0],
    "train.windows": ["oldest"],
    "train.accumulate": [0, 5],
    "train.eval_every": [0],
    "train.patience": [-1],
    "train.checkpoint_every": [0],
    "train.log_every": [0],
    "train.on_nan": ["ignore"],
    "train.writers": ["tensorbord"],
    "eval.protocol": ["pop1000"],
    "eval.metric": ["ndgc@10", "ndcg@7", "ndcg", ""],
    "eval.ties": ["optimistic"],
    "eval.filter_seen": [1],
    "eval.seen_targets": ["drop"],
    "eval.negatives_seed": [-1, BIG],
    "eval.batch_rows": [0],
    "split.valid_users": [-1],
    "parallel.mode": ["tpu"],
    "parallel.data": [-1],
    "parallel.item_shards": [0],
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


def test_there_are_at_least_a_hundred_cases():
    assert len(CASES) >= 100


@pytest.mark.parametrize("name, value", CASES, ids=[f"{name}={value}" for name, value in CASES])
def test_a_wrong_value_is_rejected_with_the_name_of_its_field(name, value):
    values = config_lib.base().to_dict()
    group = values
    *path, leaf = name.split(".")
    for part in path:
        group = group[part]
    assert leaf in group, "a misspelt test"
    group[leaf] = value
    with pytest.raises(UserError) as raised:
        config_lib.resolve(values)
    text = str(raised.value)
    related = {"model.width": "model.heads", "masking.next_item_share": "model.predict_from"}.get(
        name, name
    )
    assert f"config.{name}" in text or f"config.{related}" in text
    assert "\n" not in text and len(text) < 400


# {description: (content of a config.json, part of the error message)}
FILES = {
    "nothing": (b"", "not valid JSON"),
    "half": (b'{"seed": 1', "not valid JSON"),
    "text": (b"seed = 1", "not valid JSON"),
    "latin-1": ('{"data": {"path": "\xe9"}}'.encode("latin-1"), "not valid JSON"),
    "zeros": (b"\0" * 99, "not valid JSON"),
    "a list": (b"[1]", "must be a group"),
    "null": (b"null", "must be a group"),
    "a number": (b"3", "must be a group"),
    "no group": (b'{"model": 3}', "config.model must be a group"),
    "unknown": (b'{"sede": 1}', "config.sede"),
    "empty name": (b'{"": 1}', "unknown config field"),
    "half a name": (b'{"\\ud800": 1}', "unknown config field"),
    "half a character": (b'{"data": {"path": "\\ud83d"}}', "config.data.path"),
    "a zero byte": (b'{"data": {"path": "a\\u0000"}}', "config.data.path"),
    "twice": (b'{"seed": 1, "seed": 2}', "the key 'seed' appears twice"),
    "NaN": (b'{"seed": NaN}', "config.seed"),
    "an exponent": (
        b'{"optimizer": {"learning_rate": 1e999}}',
        "learning_rate must be a finite number",
    ),
    "lists in lists": (b"[" * 100_000, "nested too deeply"),
    "a bomb": (b'{"a":' * 50_000, "nested too deeply"),
    "whole, and deep": (
        b'{"seed":' + b"[" * 900 + b"]" * 900 + b"}",
        "nested too deeply|config.seed",
    ),
    "a long text": (b'{"seed": "' + b"x" * 10_000 + b'"}', "config.seed must be"),
    "a long name": (b'{"' + b"x" * 10_000 + b'": 1}', "unknown config field config.xxx"),
    "deep": (b'{"seed":' + b"[" * 3000 + b"]" * 3000 + b"}", "nested too deeply|config.seed"),
}


@pytest.mark.parametrize("content, named", FILES.values(), ids=FILES)
def test_a_file_that_is_not_a_config_is_rejected_in_one_line(tmp_path, content, named):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=named) as raised:
        config_lib.resolve(config_lib.load(str(path)).to_dict())
    text = str(raised.value)
    assert "\n" not in text and len(text) < 500


def test_a_path_that_is_not_utf8_is_preserved(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"data": {"path": "caf\udce9.csv"}})
    )  # Latin-1, as Python reads it from a command line
    assert config_lib.load(str(path)).data.path == "caf\udce9.csv"


def count_fields(values: object) -> int:
    return sum(map(count_fields, values.values())) if isinstance(values, dict) else 1


def test_every_field_is_documented():
    described = config_lib.describe()
    assert len(described) == count_fields(config_lib.base().to_dict())
    undocumented = [field.name for field in described if len(field.text.split()) < 2]
    assert undocumented == []
    share = next(field for field in described if field.name == "masking.next_item_share")
    assert share.default == 0.0
    assert "next item of every item" in share.text
    assert share.rule.text == "between 0 and 1"


def test_every_default_follows_its_own_rule():
    wrong = [f.name for f in config_lib.describe() if f.rule and not f.rule.accepts(f.default)]
    assert wrong == []


@pytest.mark.parametrize(
    "flag, field, value",
    [
        ("--config.model.width=128", "model.width", 128),
        ("--config.model.dropout=1e-2", "model.dropout", 0.01),
        ("--config.model.remat=true", "model.remat", True),
        ("--config.eval.filter_seen=False", "eval.filter_seen", False),
        ("--config.data.path=", "data.path", ""),
        ("--config.data.path=a=b", "data.path", "a=b"),
        ("--config.data.user_column=1", "data.user_column", "1"),
    ],
)
def test_a_flag_gets_the_type_of_its_field(flag, field, value):
    parsed = config_lib.parse_flags([flag])
    assert parsed == {field: value}
    assert type(parsed[field]) is type(value)
    config_lib.resolve(config_lib.with_fields({}, parsed))


@pytest.mark.parametrize(
    "flag",
    ["--config.filter.min_rating=nan", "--config.model.width=8.0", "--config.seed=" + "9" * 5000],
)
def test_a_flag_of_the_wrong_type_is_rejected(flag):
    name = flag.partition("=")[0].removeprefix("--")
    with pytest.raises(UserError, match=name):
        config_lib.resolve(config_lib.with_fields({}, config_lib.parse_flags([flag])))


def test_config_flags_are_separated_from_other_arguments():
    arguments = ["main", "--config", "a", "--config.model.width", "8", "--config.model.remat"]
    flags, others = config_lib.split_arguments([*arguments, "--mode=train", "--", "--config.x=1"])
    assert flags == ["--config.model.width=8", "--config.model.remat=true"]
    assert others == ["main", "--config", "a", "--mode=train", "--", "--config.x=1"]
    with pytest.raises(UserError, match="--config.seed needs a value"):
        config_lib.split_arguments(["main", "--config.seed"])
