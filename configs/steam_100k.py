# SPDX-License-Identifier: Apache-2.0
"""Steam reviews, 100,000 users sampled, 5-core: 10,369 users, 3,593 items, 126,824 interactions.

The data are read from a folder of yours with interactions.parquet or .csv (columns user, item, timestamp):

  python -m bert4rec_jax.main --config configs/steam_100k.py --config.data.path=FOLDER --workdir runs/steam_100k

Leave-one-out, whole catalogue ranked, seen items removed, checkpoint chosen on validation: test NDCG@10 .0478
(standard error .0006 over three seeds), HR@10 .0931 (.0011); records are in experiments/results/steam_100k. Some
targets are items that their users had met before; they rank last here, and compete with
config.eval.seen_targets = "keep".
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
