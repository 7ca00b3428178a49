# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec + next item on a generated log with a known structure, for trying things out.

  python -m bert4rec_jax.main --config configs/synthetic.py --workdir runs/synthetic

Expected result: not recorded; the log is generated for quick trials. Time and device: a few seconds
of training on a CPU.
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.recommended()
    config.data.source = "synthetic"
    config.model.update(width=32, ffn_width=64, max_length=50)
    config.optimizer.update(warmup_steps=50)
    config.train.update(
        steps=300, batch_rows=32, eval_every=100, checkpoint_every=100, log_every=25
    )
    return config
