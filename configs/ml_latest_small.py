# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec + next item on MovieLens latest-small (610 users), a quick check before ml_25m.py.

  python -m bert4rec_jax.main --config configs/ml_latest_small.py --workdir runs/ml_latest_small

The files have the csv format of MovieLens-25M.

Expected result: leave-one-out, ranked against the whole catalogue without seen items, checkpoint
chosen on validation: test NDCG@10 .0704 (standard error .0033 over three seeds); records in
experiments/results/ml_latest_small.

Time and device: 75 s of training on one core of an AMD EPYC.
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.recommended()
    config.data.source = "ml-latest-small"
    config.filter.update(user_core=5, item_core=5)
    config.model.update(max_length=100, dropout=0.3)
    config.optimizer.update(warmup_steps=50)
    config.train.update(steps=1000, batch_rows=32, eval_every=250, checkpoint_every=250)
    return config
