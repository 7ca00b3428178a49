# SPDX-License-Identifier: Apache-2.0
"""MovieLens-25M as in the article "Build your own movie recommender system using BERT4Rec".

  python -m bert4rec_jax.main --config configs/ml_25m.py --workdir runs/ml_25m

The log has 162,541 users. The catalogue has 62,423 movies with a title; 59,047 of them have
ratings. The article's hyperparameters are width 128, 6 layers, 4 heads, FFN 2048, 120 positions, a
fifth of the items masked, Adam with learning rate 1e-4, dropout 0.3. To keep validation short,
4,096 users have a validation target; the others train on that event.

Expected result: not measured; this config was not run to the end. Device: a GPU or TPU is
recommended.
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.base()
    config.data.update(source="ml-25m")
    config.model.update(
        width=128,
        layers=6,
        heads=4,
        ffn_width=2048,
        max_length=120,
        head="tied",
        dropout=0.3,
        attention_dropout=0.3,
    )
    config.masking.update(probability=0.2)
    config.optimizer.update(learning_rate=1e-4)
    config.train.update(
        steps=200_000,
        batch_rows=32,
        windows="random",
        eval_every=5000,
        checkpoint_every=1000,
        log_every=100,
    )
    config.split.valid_users = 4096
    config.eval.batch_rows = 32
    return config
