# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: frozen dataclasses, checked once and used everywhere.

A config file is Python with `get_config()`. It starts from `base()` or `recommended()` and changes
fields. `--config.model.width=128` changes a field on the command line. `resolve` checks the result
and returns a `Config`, or raises an error that names the wrong field.

`option` declares a field with its documentation and accepted values, `fields` contains all of them,
`describe` lists them, and `help` formats them for `--help`. `recipes` has the starting points of
config files, `files` reads these files, `overrides` sets fields by name, `rules` checks values, and
`renamed` lists the old names of fields.
"""

from bert4rec_jax.config.describe import Field, describe, group_text
from bert4rec_jax.config.fields import (
    MOVIELENS,
    NOT_IDENTITY,
    Config,
    DataConfig,
    EvalConfig,
    FilterConfig,
    LossConfig,
    MaskingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    SplitConfig,
    SyntheticConfig,
    TrainConfig,
)
from bert4rec_jax.config.files import load, read, shipped, variant
from bert4rec_jax.config.help import (
    HELP_WIDTH,
    accepted_values,
    fields_help,
    option_help,
    shown_default,
)
from bert4rec_jax.config.overrides import parse_flags, split_arguments, with_fields
from bert4rec_jax.config.recipes import base, recommended
from bert4rec_jax.config.rules import resolve

__all__ = [
    "HELP_WIDTH",
    "MOVIELENS",
    "NOT_IDENTITY",
    "Config",
    "DataConfig",
    "EvalConfig",
    "Field",
    "FilterConfig",
    "LossConfig",
    "MaskingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "SplitConfig",
    "SyntheticConfig",
    "TrainConfig",
    "accepted_values",
    "base",
    "describe",
    "fields_help",
    "group_text",
    "load",
    "option_help",
    "parse_flags",
    "read",
    "recommended",
    "resolve",
    "shipped",
    "shown_default",
    "split_arguments",
    "variant",
    "with_fields",
]
