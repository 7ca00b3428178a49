# SPDX-License-Identifier: Apache-2.0
"""The starting points of config files."""

import ml_collections

from bert4rec_jax.config.fields import Config


def base() -> ml_collections.ConfigDict:
    """Returns the default of every field, as a locked ConfigDict whose values can be changed."""
    return ml_collections.ConfigDict(Config().to_dict()).lock()


def recommended() -> ml_collections.ConfigDict:
    """Returns `base()` with the settings that trained best on several data sets (docs/quality.md).

    Hyperparameters that depend on the size of the data are left to the config file: width, maximum
    length, dropout, masking, steps and batch size.
    """
    config = base()
    config.model.update(predict_from="both", positions="rotary", head="tied", attention_dropout=0.0)
    config.masking.next_item_share = 0.75
    config.train.windows = "random"
    config.optimizer.update(
        learning_rate=2e-3, warmup_steps=200, schedule="cosine", final_fraction=0.01, beta2=0.98
    )
    return config
