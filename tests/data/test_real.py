# SPDX-License-Identifier: Apache-2.0
"""Real data sets, which may not be redistributed.

The tests run if the folder $BERT4REC_TEST_DATA contains them.
"""

import os

import numpy as np
import pandas as pd
import pytest
from prepared import data_and_filter

from bert4rec_jax.data import load_dataset, split_dataset

FOLDER = os.environ.get("BERT4REC_TEST_DATA", "")


def load(tmp_path, name, **options):
    path = os.path.join(FOLDER, name)
    if not FOLDER or not os.path.isdir(path):
        pytest.skip(f"$BERT4REC_TEST_DATA does not contain {name}")
    return load_dataset(*data_and_filter(path=path, cache_dir=str(tmp_path), **options))


def test_ml_1m_is_the_published_benchmark(tmp_path):
    data = load(tmp_path, "ml-1m", source="table")
    assert (data.num_users, data.num_items, len(data.items)) == (6040, 3416, 999_611)
    split = split_dataset(data)
    sas_item = data.item_table()["sas_item"].astype(int)
    test_items = sas_item[data.items[split.test_targets]].to_numpy()
    users = data.user_table()["user"].astype(int).iloc[split.test_users]
    numbering = pd.read_parquet(os.path.join(FOLDER, "ml-1m", "users_sas.parquet"))
    order = numbering.sort_values("sas_user")["user"]
    targets = pd.Series(test_items, index=users)[order]
    assert targets.sum() == 5_820_632
    assert targets.nunique() == 1873
    assert targets.head(10).tolist() == [79, 138, 249, 260, 415, 78, 642, 515, 173, 722]


@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [
        ("beauty", {}, (22_363, 12_101, 198_502)),
        ("beauty", {"user_core": 5, "item_core": 5}, (22_363, 12_101, 198_502)),
        ("steam-100k", {}, (10_369, 3_593, 126_824)),
        ("ml-100k", {"rating_column": "rating"}, (943, 1_682, 100_000)),
        ("grouplens/ml-latest-small", {"source": "ml-latest-small"}, (610, 9_724, 100_836)),
    ],
)
def test_counts_and_order(tmp_path, name, options, counts):
    data = load(tmp_path, name, **{"source": "table"} | options)
    assert (data.num_users, data.num_items, len(data.items)) == counts
    if data.manifest["name"] != "ml-latest-small":
        # These files are sorted: the sequences have to equal their rows, also without times.
        frame = pd.read_parquet(os.path.join(FOLDER, name, "interactions.parquet"))
        original = data.item_table()["item"].astype(int).to_numpy()
        assert np.array_equal(original[data.items - 1], frame["item"])
    assert data.item_table()["title"].notna().all()
