# SPDX-License-Identifier: Apache-2.0
r"""BERT4Rec + next item on Steam reviews of 100,000 sampled users, 5-core.

After the filters, 10,369 users, 3,593 items and 126,824 interactions remain. The data are read from
a folder with interactions.parquet or .csv (columns user, item, timestamp):

  python -m bert4rec_jax.main --config configs/steam_100k.py --config.data.path=FOLDER \
      --workdir runs/steam_100k

Some users interact with their target before. Such targets rank last, because they would never be
recommended; `--config.eval.seen_targets=keep` ranks them among the candidates.

Expected result: leave-one-out, ranked against the whole catalogue without seen items, checkpoint
chosen on validation: test NDCG@10 .0478 (standard error .0006 over three seeds), HR@10 .0931
(.0011); records in experiments/results/steam_100k.

Time and device: 134 s of training on one core of an AMD EPYC.
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.recommended()
    config.data.source = "table"
    config.filter.update(user_core=5, item_core=5)
    config.model.update(max_length=50, dropout=0.3)
    config.train.update(steps=2700, batch_rows=32, eval_every=225, checkpoint_every=225)
    return config
