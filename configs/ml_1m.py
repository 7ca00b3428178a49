# SPDX-License-Identifier: Apache-2.0
"""MovieLens-1M, 5-core: 6,040 users, 3,416 items, 999,611 interactions.

  python -m bert4rec_jax.main --config configs/ml_1m.py --workdir runs/ml_1m

Leave-one-out, whole catalogue ranked, seen items removed, checkpoint chosen on validation: test NDCG@10 .1920
(standard error .0040 over users), HR@10 .3298 (.0060), seed 0; the record is in experiments/results/ml_1m. With
version 0.1.0: test NDCG@10 .1899 (mean of seeds 0, 1, 2: .1915, .1900, .1883; standard error .0009 over seeds, .0040
over users of one run), HR@10 .3247 (.0014); 12,000 steps in 1,343 to 1,400 s on one core of an AMD EPYC (Zen 3)
without a GPU. The records are in experiments/results/0.1.0/ml_1m.
"""

from bert4rec_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.recommended()
    config.data.update(source="ml-1m", item_core=5, user_core=5)
    config.train.update(steps=12_000, batch_rows=16, eval_every=1000, checkpoint_every=1000)
    return config
