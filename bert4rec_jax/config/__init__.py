# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: frozen dataclasses, checked once, used everywhere.

A config file is Python with `get_config()`; it starts from `base()` or `recommended()` and changes fields. On the
command line `--config.model.width=128` overrides one. `resolve` turns the result into a `Config` or says which field
is wrong.

`fields` has what can be set, `recipes` what config files start from, `rules` what values may be; `files` reads config
files, `help` puts the fields into words, `renamed` has the old names of renamed
fields.
"""

from bert4rec_jax.config.fields import (
    INCIDENTAL,
    MOVIELENS,
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
from bert4rec_jax.config.files import choose, load, shipped
from bert4rec_jax.config.help import describe, help_text
from bert4rec_jax.config.recipes import base, recommended
from bert4rec_jax.config.rules import resolve

__all__ = [
    "INCIDENTAL",
    "MOVIELENS",
    "Config",
    "DataConfig",
    "EvalConfig",
    "FilterConfig",
    "LossConfig",
    "MaskingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "SplitConfig",
    "SyntheticConfig",
    "TrainConfig",
    "base",
    "choose",
    "describe",
    "help_text",
    "load",
    "recommended",
    "resolve",
    "shipped",
]
