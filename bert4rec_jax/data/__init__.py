# SPDX-License-Identifier: Apache-2.0
"""From an interaction log to memory-mapped NumPy sequences, a split, and packed batches.

Data flow in one direction:

- `sources` finds and reads the log.
- `prepare` has an SQL engine filter and order the events (`engines`), and writes them to the
  prepared folder (`writer`), which `publish` makes visible when it is complete.
- `dataset` opens that folder; `item_features` derives features from the item table.
- `splits` chooses training events and targets (`order_statistics` computes time quantiles);
  `popularity` counts items; `ranges` has the shared arithmetic of event ranges.
- `batching` packs histories into rows; `prefetch` builds batches ahead of time.

`suggest` recommends settings for a data set, and `clean` removes stale prepared folders.
"""

from bert4rec_jax.data.batching import Packed, RankingBatch, RankingBatches, TrainingBatches
from bert4rec_jax.data.dataset import Dataset, open_dataset
from bert4rec_jax.data.item_features import ItemFeatures, feature_count
from bert4rec_jax.data.popularity import recent_counts, training_blocks, training_counts
from bert4rec_jax.data.prefetch import prefetch
from bert4rec_jax.data.prepare import load_dataset
from bert4rec_jax.data.ranges import expand_ranges, split_by_size
from bert4rec_jax.data.sources.find import cache_folder
from bert4rec_jax.data.splits import Split, split_dataset
from bert4rec_jax.data.suggest import suggestions_text

__all__ = [
    "Dataset",
    "ItemFeatures",
    "Packed",
    "RankingBatch",
    "RankingBatches",
    "Split",
    "TrainingBatches",
    "cache_folder",
    "expand_ranges",
    "feature_count",
    "load_dataset",
    "open_dataset",
    "prefetch",
    "recent_counts",
    "split_by_size",
    "split_dataset",
    "suggestions_text",
    "training_blocks",
    "training_counts",
]
