# SPDX-License-Identifier: Apache-2.0
"""From histories to scores, ranks and metrics.

`scores` is the one place that scores a history, for whatever purpose, `large` where all scores are too many to be
held; `ranker` ranks every user's target exactly,
`cases` says what is ranked and how it came out, `negatives` draws sampled candidates, `metrics` condenses ranks,
`baselines` are models that only count.
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
from bert4rec_jax.ranking.metrics import beyond_accuracy, equal_groups, from_ranks, per_user
from bert4rec_jax.ranking.negatives import sample_negatives
from bert4rec_jax.ranking.ranker import Ranker, rank_step
from bert4rec_jax.ranking.scores import (
    Histories,
    PackedHistories,
    item_scores,
    own_histories,
    top_items,
    without_removed,
)

__all__ = [
    "Cases",
    "Histories",
    "PackedHistories",
    "Ranker",
    "Ranking",
    "baselines",
    "beyond_accuracy",
    "digest",
    "equal_groups",
    "from_ranks",
    "item_scores",
    "own_histories",
    "per_user",
    "protocol",
    "rank_step",
    "repeated_targets",
    "sample_negatives",
    "tied_targets",
    "top_items",
    "without_removed",
]
