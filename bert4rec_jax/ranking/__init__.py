# SPDX-License-Identifier: Apache-2.0
"""From histories to scores, ranks and metrics.

`scores` computes the scores of a history and `score_results` everything that follows from them: the
best items, counts of better items, probabilities. `history_spans` finds seen items in a log and
`packed_histories` batches histories. `ranker` ranks the targets of `cases` exactly, `large` does so
in chunks of the catalogue, `negatives` draws sampled candidates, `metrics` summarises ranks, and
`baselines` are models without training.
"""

from bert4rec_jax.ranking import baselines
from bert4rec_jax.ranking.cases import (
    Cases,
    Ranking,
    digest,
    protocol,
    repeated_targets,
    tied_targets,
)
from bert4rec_jax.ranking.history_spans import HistorySpans
from bert4rec_jax.ranking.metrics import beyond_accuracy, equal_groups, from_ranks, per_user
from bert4rec_jax.ranking.negatives import sample_negatives
from bert4rec_jax.ranking.packed_histories import PackedHistories, PairFunction, store_rows
from bert4rec_jax.ranking.ranker import Ranker, rank_step
from bert4rec_jax.ranking.scores import Histories, item_scores, local_rows, mask_removed_items

__all__ = [
    "Cases",
    "Histories",
    "HistorySpans",
    "PackedHistories",
    "PairFunction",
    "Ranker",
    "Ranking",
    "baselines",
    "beyond_accuracy",
    "digest",
    "equal_groups",
    "from_ranks",
    "item_scores",
    "local_rows",
    "mask_removed_items",
    "per_user",
    "protocol",
    "rank_step",
    "repeated_targets",
    "sample_negatives",
    "store_rows",
    "tied_targets",
]
