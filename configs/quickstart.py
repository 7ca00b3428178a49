# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec + next item on MovieLens-100K, the run of `make quickstart`.

  python -m bert4rec_jax.main --config configs/quickstart.py --workdir runs/quickstart

Expected result: leave-one-out, ranked against the whole catalogue without seen items, checkpoint
chosen on validation: test NDCG@10 .1135 (standard error .0014 over three seeds); records in
experiments/results/ml_100k.

Time and device: 82 s of training on one core of an AMD EPYC.
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.recommended()
    config.data.source = "ml-100k"
    config.model.update(max_length=100, dropout=0.3)
    config.train.update(steps=1200, batch_rows=32, eval_every=200, checkpoint_every=200)
    return config
