# SPDX-License-Identifier: Apache-2.0
r"""BERT4Rec + next item on Amazon Beauty 2014.

After the filters, 5-core: 22,363 users, 12,101 items, 198,502 interactions.

The data are read from a folder with interactions.parquet or .csv (columns user, item, timestamp)
and, optionally, items.parquet or .csv:

  python -m bert4rec_jax.main --config configs/beauty.py --config.data.path=FOLDER \
      --workdir runs/beauty

Expected result: leave-one-out, ranked against the whole catalogue without seen items, checkpoint
chosen on validation: test NDCG@10 .0601 (standard error .0002 over three seeds), HR@10 .0990
(.0006); records in experiments/results/beauty.

Time and device: 510 s of training on one core of an AMD EPYC.
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.recommended()
    config.data.source = "table"
    config.filter.update(user_core=5, item_core=5)
    config.model.update(width=128, ffn_width=512, max_length=50, dropout=0.5)
    config.train.update(steps=3800, batch_rows=32, eval_every=300, checkpoint_every=300)
    return config
