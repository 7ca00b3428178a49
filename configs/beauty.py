# SPDX-License-Identifier: Apache-2.0
"""Amazon Beauty 2014, 5-core: 22,363 users, 12,101 items, 198,502 interactions.

The data are read from a folder of yours with interactions.parquet or .csv (columns user, item, timestamp) and,
optionally, items.parquet or .csv:

  python -m bert4rec_jax.main --config configs/beauty.py --config.data.path=FOLDER --workdir runs/beauty
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.base()
    config.data.update(source="table", user_core=5, item_core=5)
    config.model.update(max_length=50, norm="pre", positions="right", head="tied", dropout=0.5, attention_dropout=0.0)
    config.masking.update(probability=0.4)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=200, schedule="cosine", final_fraction=0.01, beta2=0.98)
    config.train.update(steps=6000, batch_rows=64, eval_every=500, checkpoint_every=500)
    return config
