# SPDX-License-Identifier: Apache-2.0
"""A table of your own: see `DataConfig` for the columns and filters that can be set.

  python -m bert4rec_jax.main --config configs/own_data.py --config.data.path=views.csv --workdir runs/mine
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.base()
    config.data.update(source="table", user_core=3, item_core=3)
    config.model.update(norm="pre", positions="right", head="tied", max_length=100, dropout=0.2, attention_dropout=0.0)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=100, schedule="cosine", final_fraction=0.01, beta2=0.98)
    config.train.update(steps=2000, batch_rows=32, windows="random", eval_every=250, checkpoint_every=250)
    return config
