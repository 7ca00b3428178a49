# SPDX-License-Identifier: Apache-2.0
"""MovieLens-1M, 5-core: 6,040 users, 3,416 items, 999,611 interactions.

  python -m bert4rec_jax.main --config configs/ml_1m.py --workdir runs/ml_1m
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.base()
    config.data.update(source="ml-1m", item_core=5, user_core=5)
    config.model.update(norm="pre", positions="right", head="tied", attention_dropout=0.0)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=200, schedule="cosine", final_fraction=0.01, beta2=0.98)
    config.train.update(steps=6000, batch_rows=32, eval_every=500, checkpoint_every=500)
    return config
