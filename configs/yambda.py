# SPDX-License-Identifier: Apache-2.0
"""Yambda (Yandex 2025), the flat files of listens, by the benchmark's split. Not run here on such a file.

50M, 500M or 5B interactions of 10,000, 100,000 or 1,000,000 users in flat/SIZE/listens.parquet, with the columns uid,
item_id, timestamp (seconds, in steps of 5), is_organic, played_ratio_pct, track_length_seconds. A listen of at least
half a track counts ("Listen+"); 300 days are trained on, a gap of 30 minutes is left out, and the last day is the test.
Here a user has one target, the first listen of the day; the benchmark predicts all of them, and its histories end
before the gap, while ours go on to the target. Validation is the day before the gap, which the benchmark trains on in
the end.

  python -m bert4rec_jax.main --config configs/yambda.py:50M --workdir runs/yambda_50m \
      --config.data.path=flat/50m/listens.parquet

All three prepare in bounded memory (docs/data.md); a GPU is advised for the training of any.
"""

from bert4rec_jax import config as config_lib

DAY, MINUTE = 86_400, 60
STEPS = {"50M": 50_000, "500M": 200_000, "5B": 1_000_000}


def get_config(size="50M"):
    """Returns the configuration for one of the three sizes."""
    config = config_lib.recommended()
    config.data.update(
        source="table",
        engine="duckdb",
        user_column="uid",
        item_column="item_id",
        time_column="timestamp",
        where="played_ratio_pct >= 50",
    )
    config.split.update(
        kind="temporal",
        test_seconds=DAY,
        gap_seconds=30 * MINUTE,
        valid_seconds=DAY,
        valid_users=4096,
    )
    config.model.update(width=128, ffn_width=512, max_length=200)
    config.loss.update(name="sampled_softmax", negatives=4096)
    config.train.update(
        steps=config_lib.choose(STEPS, size),
        batch_rows=64,
        eval_every=5000,
        checkpoint_every=5000,
        log_every=100,
    )
    config.eval.batch_rows = 32
    return config
