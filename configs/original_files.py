# SPDX-License-Identifier: Apache-2.0
r"""BERT4Rec + next item on the files of the original repository (Sun et al. 2019).

  python -m bert4rec_jax.main --config configs/original_files.py:beauty \
      --config.data.path=beauty.txt --workdir runs/beauty_original

The files have lines `user item` in chronological order. Name one after the colon: `beauty` (40,226
users, 54,542 items), `steam` (281,428 users, 13,044 items), `ml-1m` (6,040 users, 3,416 items) or
`ml-20m`. In `steam` and `ml-20m`, 4,096 users have a validation target; the others train on that
event.

Expected result: not measured on these files. For `ml-1m`, see ml_1m.py, which has the same
interactions in the same order. Device: a GPU or TPU is recommended for `steam` and `ml-20m`.
"""

from bert4rec_jax import config as config_lib

SETTINGS = {
    "beauty": {
        "model.max_length": 50,
        "model.dropout": 0.5,
        "train.steps": 20_000,
        "train.batch_rows": 32,
    },
    "steam": {
        "model.max_length": 50,
        "model.dropout": 0.2,
        "train.steps": 100_000,
        "train.batch_rows": 64,
        "train.eval_every": 5000,
        "split.valid_users": 4096,
    },
    "ml-1m": {"train.steps": 12_000, "train.batch_rows": 16},
    "ml-20m": {
        "model.width": 256,
        "model.ffn_width": 1024,
        "model.heads": 4,
        "train.steps": 200_000,
        "train.batch_rows": 32,
        "train.eval_every": 5000,
        "split.valid_users": 4096,
        "optimizer.learning_rate": 1e-3,
        "optimizer.warmup_steps": 1000,
    },
}


def get_config(name="ml-1m"):
    """Returns the configuration for one of the files."""
    config = config_lib.recommended()
    config.data.source = "lines"
    config.train.update(eval_every=1000, checkpoint_every=1000)
    config.update_from_flattened_dict(config_lib.variant(SETTINGS, name))
    return config
