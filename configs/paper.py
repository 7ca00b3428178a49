# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec as published for MovieLens-1M (Sun et al. 2019).

  python -m bert4rec_jax.main --config configs/paper.py --workdir runs/paper

The settings follow sections 3 and 4.2 and the authors' code. Model: width 64, 2 layers, 2
heads, FFN 256, 200 positions, post-LN, GELU, and a transform before the tied output with bias.
Masking: a fifth of the items, at most 40, always by [MASK]; in one of eleven histories only the
last item. Optimizer: AdamW with learning rate 1e-4, weight decay 0.01, gradients clipped at 5, 100
steps of linear warm-up, then linear decay. The paper ranks against 100 negatives drawn by
popularity; `--config.eval.protocol=full` ranks against the whole catalogue.

Expected result: not measured; this config was not run to the end. Device: a GPU or TPU is
recommended.
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.base()
    config.data.source = "ml-1m"
    config.filter.update(user_core=5, item_core=5)
    config.model.update(
        width=64,
        layers=2,
        heads=2,
        ffn_width=256,
        max_length=200,
        norm="post",
        positions="left",
        head="transform",
        dropout=0.2,
        attention_dropout=0.2,
    )
    config.masking.update(probability=0.2, max_masks=40, last_item_only=1 / 11)
    config.optimizer.update(
        name="adamw",
        learning_rate=1e-4,
        weight_decay=0.01,
        clip_norm=5.0,
        warmup_steps=100,
        schedule="linear",
    )
    # Rows hold 1.8 histories: as many a step as the 256 of the paper.
    config.train.update(
        steps=400_000, batch_rows=140, windows="random", eval_every=5000, checkpoint_every=1000
    )
    config.eval.update(protocol="pop100")
    return config
