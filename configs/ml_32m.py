# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec + next item on MovieLens-32M, all ratings: 200,948 users, 87,585 movies.

  python -m bert4rec_jax.main --config configs/ml_32m.py --workdir runs/ml_32m

The hyperparameters are the same as in ml_20m.py, with more steps.

Expected result: not measured; this config was not run. Device: a GPU or TPU is recommended.
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.recommended()
    config.data.source = "ml-32m"
    config.model.update(width=256, heads=4, ffn_width=1024)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=1000)
    config.train.update(
        steps=300_000, batch_rows=32, eval_every=5000, checkpoint_every=1000, log_every=100
    )
    config.split.valid_users = 4096
    return config
