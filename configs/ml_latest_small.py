# SPDX-License-Identifier: Apache-2.0
"""MovieLens latest-small (610 users), in the csv format of MovieLens-25M: for trying out what ml_25m.py needs.

  python -m bert4rec_jax.main --config configs/ml_latest_small.py --workdir runs/ml_latest_small
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.base()
    config.data.update(source="ml-latest-small", user_core=5, item_core=5)
    config.model.update(norm="pre", positions="right", head="tied", max_length=100, dropout=0.3, attention_dropout=0.0)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=50, schedule="cosine", final_fraction=0.01, beta2=0.98)
    config.train.update(steps=1000, batch_rows=32, windows="random", eval_every=250, checkpoint_every=250)
    return config
