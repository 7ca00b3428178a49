# SPDX-License-Identifier: Apache-2.0
"""A table of your own: see `DataConfig` for the columns and filters that can be set, and `--mode suggest` for settings.

python -m bert4rec_jax.main --config configs/own_data.py --config.data.path=views.csv --workdir runs/mine
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.recommended()
    config.data.source = "table"
    config.filter.update(user_core=3, item_core=3)
    config.model.update(max_length=100, dropout=0.3)
    config.optimizer.update(warmup_steps=100)
    config.train.update(steps=2000, batch_rows=32, eval_every=250, checkpoint_every=250)
    return config
