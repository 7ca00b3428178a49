# SPDX-License-Identifier: Apache-2.0
"""What config files start from, as ConfigDicts whose fields they change."""

import ml_collections

from bert4rec_jax.config.fields import Config


def base() -> ml_collections.ConfigDict:
    """Returns the defaults as a locked ConfigDict, to be changed by a config file."""
    return ml_collections.ConfigDict(Config().to_dict()).lock()


def recommended() -> ml_collections.ConfigDict:
    """Returns `base()` with the choices that trained best on several data sets (docs/quality.md).

    What depends on the size of the data is left to the config file: width, length, dropout, masks, steps and rows.
    """
    config = base()
    config.model.update(predict_from="both", positions="rotary", head="tied", attention_dropout=0.0)
    config.masking.update(next_item_share=0.75)
    config.train.windows = "random"
    config.optimizer.update(
        learning_rate=2e-3, warmup_steps=200, schedule="cosine", final_fraction=0.01, beta2=0.98
    )
    return config
