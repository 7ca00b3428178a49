# SPDX-License-Identifier: Apache-2.0
"""What values fields may have, each by itself and together."""

import dataclasses
import functools
import math
import os
import re
import typing
from typing import Literal

import ml_collections

from bert4rec_jax.config.fields import FORMATS, MOVIELENS, WRITERS, Config
from bert4rec_jax.config.renamed import renamed_hint, renamed_value_hint
from bert4rec_jax.errors import UserError


def resolve(values: ml_collections.ConfigDict | dict) -> Config:
    """Turns nested values into a checked `Config`.

    Raises:
      UserError: an unknown field, a value of the wrong type or out of range; names the field.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    config = build(Config, values)
    _check(config)
    return config


def build(cls: type, values: object, prefix: str = ""):
    """Turns nested values into a `Config` or, below a prefix such as "data.", one of its groups; types are checked.

    Raises:
      UserError: an unknown field, or a value of the wrong type; names the field.
    """
    if not isinstance(values, dict):
        raise UserError(
            f"{f'config.{prefix}'.rstrip('.')} must be a group of fields, not {_shown(values)}."
        )
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        name = f"{prefix}{unknown[0][:60]}"
        hint = renamed_hint(name) or f"the fields there are: {', '.join(fields)}"
        raise UserError(f"unknown config field config.{name}; {hint}.")
    return cls(
        **{name: _value(fields[name].type, value, prefix + name) for name, value in values.items()}
    )


def _value(kind, value, name: str):
    if dataclasses.is_dataclass(kind):
        return build(kind, value, name + ".")
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise UserError(
                f"config.{name} must be one of {', '.join(typing.get_args(kind))}, not "
                f"{_shown(value)}{renamed_value_hint(name, value)}."
            )
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = (
            float(value) if abs(value) < 1e308 else math.inf
        )  # an int may be larger than any float
    if type(value) is not kind:
        raise UserError(f"config.{name} must be of type {kind.__name__}, not {_shown(value)}.")
    if kind is float and not math.isfinite(value):
        raise UserError(f"config.{name} must be a finite number, not {_shown(value)}.")
    if kind is str and not _is_text(value):
        raise UserError(
            f"config.{name} = {_shown(value)} holds what no text and no path can hold: half a character, "
            "or a zero byte."
        )
    return value


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _is_text(value: str) -> bool:
    try:
        os.fsencode(
            value
        )  # not as UTF-8: a path may hold other bytes, which Python keeps as halves of its own
    except UnicodeEncodeError:
        return False
    return "\0" not in value


# Rules of single fields: (what it must be, whether a value is, the fields).
_RANGES = (
    (
        "at least 1",
        lambda x: x >= 1,
        (
            "model.width",
            "model.layers",
            "model.heads",
            "model.ffn_width",
            "train.steps",
            "train.batch_rows",
            "train.accumulate",
            "train.eval_every",
            "train.checkpoint_every",
            "train.log_every",
            "eval.batch_rows",
            "loss.negatives",
            "parallel.item_shards",
            "data.synthetic.users",
            "data.synthetic.genres",
        ),
    ),
    (
        "at least 0",
        lambda x: x >= 0,
        (
            "masking.max_masks",
            "loss.chunk_items",
            "optimizer.warmup_steps",
            "optimizer.weight_decay",
            "optimizer.clip_norm",
            "train.patience",
            "split.valid_users",
            "parallel.data",
            "filter.user_core",
            "filter.item_core",
            "filter.min_rating",
            "split.test_seconds",
            "split.valid_seconds",
            "split.gap_seconds",
        ),
    ),
    (
        "at least 0 and below 2**32",
        lambda x: 0 <= x < 2**32,
        ("seed", "eval.negatives_seed", "data.synthetic.seed"),
    ),
    (
        "at least 0 and below 1",
        lambda x: 0 <= x < 1,
        ("model.dropout", "model.attention_dropout", "optimizer.beta1", "optimizer.beta2"),
    ),
    (
        "between 0 and 1",
        lambda x: 0 <= x <= 1,
        (
            "masking.next_item_share",
            "masking.last_item_only",
            "masking.random_token",
            "masking.keep_token",
            "optimizer.final_fraction",
            "loss.gbce_t",
        ),
    ),
    ("above 0 and at most 1", lambda x: 0 < x <= 1, ("masking.probability",)),
    ("above 0 and below 1", lambda x: 0 < x < 1, ("split.test_share",)),
    ("above 0", lambda x: x > 0, ("model.init_scale", "optimizer.learning_rate")),
    ("at least 2", lambda x: x >= 2, ("model.max_length",)),
    ("at least 5", lambda x: x >= 5, ("data.synthetic.mean_length",)),
    ("within 64 bits", lambda x: abs(x) < 2**63, ("filter.first_users",)),
    (
        "one of " + ", ".join(MOVIELENS + FORMATS),
        lambda x: x in MOVIELENS + FORMATS,
        ("data.source",),
    ),
    (
        "a size such as '8GiB', or '' for half of what is free",
        lambda x: re.fullmatch(r"(\d+(\.\d+)? ?[KMGT]i?B)?", x) is not None,
        ("data.memory",),
    ),
    (
        "empty or some of " + ", ".join(WRITERS),
        lambda x: {name.strip() for name in x.split(",") if name.strip()} <= set(WRITERS),
        ("train.writers",),
    ),
    (
        "mrr, or ndcg, hr, recall, mrr or map at 1, 5, 10, 20, 50 or 100, as in ndcg@10",
        lambda x: re.fullmatch(r"(ndcg|hr|recall|mrr|map)@(1|5|10|20|50|100)|mrr", x) is not None,
        ("eval.metric",),
    ),
)


def _check(c: Config) -> None:
    def value(name: str):
        return functools.reduce(getattr, name.split("."), c)

    def require(ok: bool, name: str, rule: str) -> None:
        if not ok:
            raise UserError(
                f"config.{name} = {_shown(value(name))} is out of range: it must be {rule}."
            )

    for rule, holds, names in _RANGES:
        for name in names:
            require(holds(value(name)), name, rule)

    # Rules of fields together.
    data, split, model, masking = c.data, c.split, c.model, c.masking
    require(
        masking.next_item_share < 1 or model.predict_from == "last_item",
        "model.predict_from",
        "'last_item' when config.masking.next_item_share is 1, because then no row learns what [MASK] stands for",
    )
    require(
        masking.next_item_share > 0 or model.predict_from == "mask",
        "model.predict_from",
        "'mask' when config.masking.next_item_share is 0, because then no row learns to continue from its last item",
    )
    require(
        masking.random_token + masking.keep_token <= 1,
        "masking.keep_token",
        "at most 1 together with config.masking.random_token",
    )
    require(
        model.width % model.heads == 0,
        "model.heads",
        f"a divisor of config.model.width = {model.width}",
    )
    require(
        model.positions != "rotary" or model.width % (2 * model.heads) == 0,
        "model.heads",
        "such that config.model.width / config.model.heads is even when config.model.positions is 'rotary'",
    )
    require(
        not model.scale_embeddings or model.norm == "pre" or model.positions != "rotary",
        "model.scale_embeddings",
        "false when config.model.norm is 'post' and positions are rotary, where embeddings are normalised at once",
    )
    require(
        data.source not in ("table", "lines", "sequences") or data.path != "",
        "data.path",
        f"given when config.data.source is {data.source!r}",
    )
    for name in ("valid_seconds", "gap_seconds"):
        require(
            getattr(split, name) == 0 or split.test_seconds > 0,
            f"split.{name}",
            "0 unless config.split.test_seconds is set",
        )
    require(
        split.test_seconds == 0 or split.kind == "temporal",
        "split.test_seconds",
        "0 unless config.split.kind is 'temporal'",
    )
    require(
        split.period_target == "first" or split.kind == "temporal",
        "split.period_target",
        "'first' unless config.split.kind is 'temporal'",
    )
    require(
        0 < split.valid_share < 1 - split.test_share,
        "split.valid_share",
        "above 0 and, with config.split.test_share, below 1",
    )
    require(
        data.synthetic.num_items >= 2 * data.synthetic.genres,
        "data.synthetic.num_items",
        "at least twice config.data.synthetic.genres",
    )
    require(
        c.optimizer.weight_decay == 0 or c.optimizer.name == "adamw",
        "optimizer.weight_decay",
        "0 unless config.optimizer.name is 'adamw'",
    )
    require(
        c.optimizer.warmup_steps < c.train.steps,
        "optimizer.warmup_steps",
        "less than config.train.steps",
    )
    require(
        c.train.batch_rows % c.train.accumulate == 0,
        "train.accumulate",
        f"a divisor of config.train.batch_rows = {c.train.batch_rows}",
    )
    require(
        c.parallel.mode == "jit" or c.parallel.item_shards == 1,
        "parallel.item_shards",
        "1 when config.parallel.mode is 'pmap'; use mode 'jit' to split the item table",
    )
