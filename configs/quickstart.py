# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec on MovieLens-100K in about two minutes on two CPU cores: the first run of `make quickstart`."""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.recommended()
    config.data.source = "ml-100k"
    config.model.update(max_length=100, dropout=0.3)
    config.train.update(steps=1200, batch_rows=32, eval_every=200, checkpoint_every=200)
    return config
