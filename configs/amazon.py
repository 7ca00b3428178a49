# SPDX-License-Identifier: Apache-2.0
r"""A category of the Amazon reviews, 5-core, from the publisher's ratings file.

The 2014 release (McAuley et al. 2015, He and McAuley 2016) has lines `user,item,rating,time`
without a header:

  python -m bert4rec_jax.main --config configs/amazon.py --workdir runs/sports_2014 \
      --config.data.path=ratings_Sports_and_Outdoors.csv

The 2023 release (Hou et al. 2024) has a header `user_id,parent_asin,rating,timestamp`, and times in
milliseconds:

  python -m bert4rec_jax.main --config configs/amazon.py:2023 --workdir runs/sports_2023 \
      --config.data.path=Sports_and_Outdoors.csv

For the whole 2023 release (571 million ratings), set the path to a folder with the ratings files of
all categories, .csv or .csv.gz. A customer is then one user across categories.

  python -m bert4rec_jax.main --config configs/amazon.py:2023 --workdir runs/amazon_2023 \
      --config.data.path=rating_only --config.data.memory=16GiB --config.loss.name=sampled_softmax

The hyperparameters are the same as in beauty.py.

Expected result: not measured; this config was not run on these files.
"""

from bert4rec_jax import config as config_lib

COLUMNS = {
    "2014": {"user_column": "1", "item_column": "2", "rating_column": "3", "time_column": "4"},
    "2023": {
        "user_column": "user_id",
        "item_column": "parent_asin",
        "rating_column": "rating",
        "time_column": "timestamp",
    },
}


def get_config(release="2014"):
    """Returns the configuration for the files of a release."""
    config = config_lib.recommended()
    config.data.update(source="table", **config_lib.variant(COLUMNS, release))
    config.filter.update(user_core=5, item_core=5)
    config.model.update(width=128, ffn_width=512, max_length=50, dropout=0.5)
    config.train.update(steps=8000, batch_rows=32, eval_every=1000, checkpoint_every=1000)
    return config
