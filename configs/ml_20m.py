# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec + next item on MovieLens-20M, all ratings: 138,493 users, 26,744 items.

  python -m bert4rec_jax.main --config configs/ml_20m.py --workdir runs/ml_20m

To keep validation short, 4,096 users have a validation target; the others train on that event.

Expected result: not measured; this config was not run. Device: a GPU or TPU is recommended.
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.recommended()
    config.data.source = "ml-20m"
    config.model.update(width=256, heads=4, ffn_width=1024)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=1000)
    config.train.update(
        steps=200_000, batch_rows=32, eval_every=5000, checkpoint_every=1000, log_every=100
    )
    config.split.valid_users = 4096
    return config
