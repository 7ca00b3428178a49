# SPDX-License-Identifier: Apache-2.0
"""From an interaction log to memory-mapped NumPy sequences, a split, and packed batches.

`sources` finds and reads the log, `prepare` has it filtered, ordered and numbered (by `arrange` in memory, by `engines`
beyond) and written (`writer`) into the prepared folder, `dataset` opens that folder, `splits` says what is trained on
and what is predicted, `batching` packs histories into rows, `prefetch` makes batches ahead, `suggest` says
which settings suit the data, `clean` frees the cache.
"""

from bert4rec_jax.data.batching import Packed, RankingBatch, RankingBatches, TrainingBatches
from bert4rec_jax.data.dataset import Dataset, open_dataset
from bert4rec_jax.data.item_features import ItemFeatures, feature_count
from bert4rec_jax.data.prefetch import prefetch
from bert4rec_jax.data.prepare import load_dataset
from bert4rec_jax.data.ranges import expand_ranges, split_by_size
from bert4rec_jax.data.splits import (
    Split,
    recent_counts,
    split_dataset,
    training_blocks,
    training_counts,
)
from bert4rec_jax.data.suggest import suggestions_text

__all__ = [
    "ItemFeatures",
    "Dataset",
    "Packed",
    "RankingBatch",
    "Split",
    "TrainingBatches",
    "feature_count",
    "split_by_size",
    "load_dataset",
    "open_dataset",
    "expand_ranges",
    "prefetch",
    "RankingBatches",
    "recent_counts",
    "split_dataset",
    "suggestions_text",
    "training_blocks",
    "training_counts",
]
