# SPDX-License-Identifier: Apache-2.0
"""A category of the Amazon reviews, 5-core, from the ratings file of its publisher. Not run here on such a file.

2014 (McAuley et al. 2015, He and McAuley 2016), lines `user,item,rating,time` without a header:

  python -m bert4rec_jax.main --config configs/amazon.py --workdir runs/sports_2014 \
      --config.data.path=ratings_Sports_and_Outdoors.csv

2023 (Hou et al. 2024), a header `user_id,parent_asin,rating,timestamp` and times in milliseconds:

  python -m bert4rec_jax.main --config configs/amazon.py:2023 --workdir runs/sports_2023 \
      --config.data.path=Sports_and_Outdoors.csv

All of 2023 (571 million ratings) is a folder with the ratings files of all categories, .csv or .csv.gz; a customer is
then one user whatever was bought, and preparation takes DuckDB (docs/data.md): not run here on it.

  python -m bert4rec_jax.main --config configs/amazon.py:2023 --workdir runs/amazon_2023 \
      --config.data.path=rating_only --config.data.memory=16GiB --config.loss.name=sampled_softmax

The settings are those found for Beauty, see beauty.py.
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
    config.data.update(source="table", **config_lib.choose(COLUMNS, release))
    config.filter.update(user_core=5, item_core=5)
    config.model.update(width=128, ffn_width=512, max_length=50, dropout=0.5)
    config.train.update(steps=8000, batch_rows=32, eval_every=1000, checkpoint_every=1000)
    return config
