# SPDX-License-Identifier: Apache-2.0
r"""BERT4Rec + next item on your own table of interactions.

  python -m bert4rec_jax.main --config configs/own_data.py --config.data.path=views.csv \
      --workdir runs/mine

`--mode suggest` prints hyperparameters that suit the data. See docs/own_data.md for the format and
the names of the columns.

Users and items with fewer than 3 interactions are removed (3-core), because leave-one-out needs one
event each for training, validation and test. The line "Prepared ..." reports how many users and
items were dropped; `--config.filter.user_core=0 --config.filter.item_core=0` keeps all of them.

Expected result: depends on the data. Time and device: 2,000 steps; `--mode suggest` estimates the
time.
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.recommended()
    config.data.source = "table"
    config.filter.update(user_core=3, item_core=3)
    config.model.update(max_length=100, dropout=0.3)
    config.optimizer.update(warmup_steps=100)
    config.train.update(steps=2000, batch_rows=32, eval_every=250, checkpoint_every=250)
    return config
