# SPDX-License-Identifier: Apache-2.0
r"""BERT4Rec + next item on Yambda (Yandex 2025), flat files of listens, split as in its benchmark.

  python -m bert4rec_jax.main --config configs/yambda.py:50M --workdir runs/yambda_50m \
      --config.data.path=flat/50m/listens.parquet

flat/SIZE/listens.parquet has 50M, 500M or 5B interactions of 10,000, 100,000 or 1,000,000 users,
with the columns uid, item_id, timestamp (seconds, in steps of 5), is_organic, played_ratio_pct and
track_length_seconds. An interaction is a listen of at least half of a track ("Listen+"). In the
benchmark's split, 300 days are trained on, a gap of 30 minutes is left out, and the last day is the
test period.

Differences from the benchmark: a user has one target, the first listen of the day, while the
benchmark predicts all of them; histories continue up to the target, while the benchmark's end
before the gap; and the day before the gap is the validation period, while the benchmark trains on
it in the end.

All three sizes prepare in bounded memory (docs/data.md).

Expected result: not measured; this config was not run on these files. Device: a GPU or TPU is
recommended.
"""

from bert4rec_jax import config as config_lib

MINUTE = 60  # seconds
DAY = 86_400
STEPS = {"50M": 50_000, "500M": 200_000, "5B": 1_000_000}


def get_config(size="50M"):
    """Returns the configuration for one of the three sizes."""
    config = config_lib.recommended()
    config.data.update(
        source="table",
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
        steps=config_lib.variant(STEPS, size),
        batch_rows=64,
        eval_every=5000,
        checkpoint_every=5000,
        log_every=100,
    )
    config.eval.batch_rows = 32
    return config
