# SPDX-License-Identifier: Apache-2.0
"""Turns nested values into a `Config` and checks them, each field by itself and all together."""

import dataclasses
import difflib
import functools
import itertools
import math
import os
import typing
from collections.abc import Collection, Iterator
from typing import Any, Literal

import ml_collections

from bert4rec_jax.config.describe import describe
from bert4rec_jax.config.fields import Config
from bert4rec_jax.config.renamed import renamed_hint, renamed_value_hint
from bert4rec_jax.errors import UserError
from bert4rec_jax.terminal import shortened

# Whether a rule holds, the field to blame if not, and what its value must be.
_Check = tuple[bool, str, str]


def resolve(values: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """Returns the checked `Config` of nested values. Fields that are missing have their defaults.

    Raises:
      UserError: a field is unknown, or a value has the wrong type or is out of range; names the
        field.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    config = build(values)
    # Lazily: the joint rules rely on fields that are within their ranges.
    for holds, name, rule in itertools.chain(_field_checks(config), _joint_checks(config)):
        if not holds:
            value = _shown(_value_of(config, name))
            raise UserError(f"config.{name} = {value} is not allowed: it must be {rule}.")
    return config


def build(values: object) -> Config:
    """Returns the `Config` of nested values. Checks names and types only.

    Raises:
      UserError: a field is unknown, or a value has the wrong type; names the field.
    """
    return _build(Config, values, "")


def _build(kind: Any, values: object, prefix: str) -> Any:
    if not isinstance(values, dict):
        group = f"config.{prefix}".rstrip(".")
        raise UserError(f"{group} must be a group of fields, not {_shown(values)}.")
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(types))
    if unknown:
        name = f"{prefix}{unknown[0][:60]}"
        raise UserError(f"unknown config field config.{name}; {_unknown_hint(name, types)}")
    checked = {name: _typed(types[name], value, prefix + name) for name, value in values.items()}
    return kind(**checked)


def _unknown_hint(name: str, known: Collection[str]) -> str:
    """Returns the end of a sentence about an unknown field: its new name, a similar one, or all."""
    group, _, leaf = name.rpartition(".")
    renamed = renamed_hint(name)
    similar = difflib.get_close_matches(leaf, known, n=1)
    if renamed:
        return f"{renamed}."
    if similar:
        return f"did you mean config.{f'{group}.' if group else ''}{similar[0]}?"
    return f"the fields there are: {', '.join(known)}."


def _typed(kind: Any, value: object, name: str) -> Any:
    """Returns a value that has the type of its field, with integers as floats where needed."""
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, name + ".")
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise UserError(
                f"config.{name} must be one of {', '.join(choices)}, not "
                f"{_shown(value)}{renamed_value_hint(name, value)}."
            )
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        # An int may be larger than any float.
        value = float(value) if abs(value) < 1e308 else math.inf
    if type(value) is not kind:
        raise UserError(f"config.{name} must be of type {kind.__name__}, not {_shown(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{name} must be a finite number, not {_shown(value)}.")
    if isinstance(value, str) and not _fits_a_path(value):
        raise UserError(
            f"config.{name} = {_shown(value)} contains an unpaired surrogate or a NUL byte."
        )
    return value


def _shown(value: object) -> str:
    return shortened(repr(value), 100)


def _fits_a_path(value: str) -> bool:
    try:
        # Not as UTF-8: Python represents other bytes in a path as surrogates.
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _value_of(config: Config, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)


def _field_checks(config: Config) -> Iterator[_Check]:
    for field in describe():
        if field.rule:
            yield field.rule.accepts(_value_of(config, field.name)), field.name, field.rule.text


def _joint_checks(config: Config) -> Iterator[_Check]:
    """Yields the rules that involve several fields."""
    yield from _model_checks(config)
    yield from _data_checks(config)
    yield from _split_checks(config)
    yield from _training_checks(config)


def _model_checks(config: Config) -> Iterator[_Check]:
    model = config.model
    masking = config.masking
    yield (
        masking.next_item_share < 1 or model.predict_from == "last_item",
        "model.predict_from",
        "'last_item' if config.masking.next_item_share is 1, because no row learns to predict "
        "from [MASK]",
    )
    yield (
        masking.next_item_share > 0 or model.predict_from == "mask",
        "model.predict_from",
        "'mask' if config.masking.next_item_share is 0, because no row learns to predict from "
        "its last item",
    )
    yield (
        masking.random_token + masking.keep_token <= 1,
        "masking.keep_token",
        "at most 1 together with config.masking.random_token",
    )
    yield (
        model.width % model.heads == 0,
        "model.heads",
        f"a divisor of config.model.width = {model.width}",
    )
    yield (
        model.positions != "rotary" or model.width % (2 * model.heads) == 0,
        "model.heads",
        "such that config.model.width / config.model.heads is even if config.model.positions is "
        "'rotary'",
    )
    yield (
        not model.scale_embeddings or model.norm == "pre" or model.positions != "rotary",
        "model.scale_embeddings",
        "false if config.model.norm is 'post' and config.model.positions is 'rotary', because "
        "the first LayerNorm would undo it",
    )


def _data_checks(config: Config) -> Iterator[_Check]:
    data = config.data
    yield (
        data.source not in ("table", "lines", "sequences") or data.path != "",
        "data.path",
        f"set if config.data.source is {data.source!r}",
    )
    yield (
        data.synthetic.num_items >= 2 * data.synthetic.genres,
        "data.synthetic.num_items",
        "at least twice config.data.synthetic.genres",
    )


def _split_checks(config: Config) -> Iterator[_Check]:
    split = config.split
    for name, seconds in (
        ("split.valid_seconds", split.valid_seconds),
        ("split.gap_seconds", split.gap_seconds),
    ):
        yield (
            seconds == 0 or split.test_seconds > 0,
            name,
            "0 unless config.split.test_seconds is set",
        )
    yield (
        split.test_seconds == 0 or split.kind == "temporal",
        "split.test_seconds",
        "0 unless config.split.kind is 'temporal'",
    )
    yield (
        split.period_target == "first" or split.kind == "temporal",
        "split.period_target",
        "'first' unless config.split.kind is 'temporal'",
    )
    yield (
        split.valid_share < 1 - split.test_share,
        "split.valid_share",
        "such that the sum with config.split.test_share is below 1",
    )


def _training_checks(config: Config) -> Iterator[_Check]:
    train = config.train
    yield (
        config.optimizer.weight_decay == 0 or config.optimizer.name == "adamw",
        "optimizer.weight_decay",
        "0 unless config.optimizer.name is 'adamw'",
    )
    yield (
        train.batch_rows % train.accumulate == 0,
        "train.accumulate",
        f"a divisor of config.train.batch_rows = {train.batch_rows}",
    )
    yield (
        config.parallel.mode == "jit" or config.parallel.item_shards == 1,
        "parallel.item_shards",
        "1 if config.parallel.mode is 'pmap'; use mode 'jit' to split the item table",
    )
