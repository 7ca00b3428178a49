# SPDX-License-Identifier: Apache-2.0
"""Numbers of a portrait: pure functions of arrays."""

from typing import NamedTuple

import numpy as np

from bert4rec_jax.ranking import beyond_accuracy, equal_groups, per_user

# Arrays of ranks_test.npz by which cases are grouped, and what they are.
GROUPED_BY = {
    "history_length": "items in the history",
    "item_popularity": "training interactions of the target",
}


class Bin(NamedTuple):
    """Test cases with values from `low` to `high`, both included.

    Attributes:
      low: smallest value.
      high: largest value.
      cases: how many.
      ndcg: NDCG@10.
      hr: HR@10.
    """

    low: int
    high: int
    cases: int
    ndcg: float
    hr: float


def binned(values: np.ndarray, ranks: np.ndarray, count: int = 6) -> list[Bin]:
    """Returns NDCG@10 and HR@10 in bins of about equally many cases; equal values share a bin.

    Args:
      values: int[n], such as the length of each case's history.
      ranks: float[n], 1-based.
      count: bins, at most.
    """
    group = equal_groups(values, count)
    ndcg, hr = per_user("ndcg@10", ranks), per_user("hr@10", ranks)
    bins = []
    for number in range(group.max() + 1):
        chosen = group == number
        bins.append(
            Bin(
                int(values[chosen].min()),
                int(values[chosen].max()),
                int(chosen.sum()),
                float(ndcg[chosen].mean()),
                float(hr[chosen].mean()),
            )
        )
    return bins


def principal_axes(embedding_VD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns float[V, 2], the embeddings on their two directions of largest variance, and the shares of it."""
    centred = embedding_VD - embedding_VD.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
    values, vectors = values[::-1], vectors[:, ::-1]
    # The sign of a direction is arbitrary: the largest component is made positive.
    vectors = vectors * np.sign(
        vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    )
    return centred @ vectors[:, :2], values[:2] / max(values.sum(), 1e-30)


def neighbours(embedding_VD: np.ndarray, number: int, count: int) -> list[tuple[int, float]]:
    """Returns the items nearest to item `number` (1-based) by cosine, with it.

    Args:
      embedding_VD: float[num_items, D], row i of item i + 1.
      number: of the item.
      count: how many.
    """
    unit = embedding_VD / np.maximum(np.linalg.norm(embedding_VD, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit[number - 1]
    cosine[number - 1] = -np.inf
    best = np.argsort(-cosine, kind="stable")[: min(count, len(cosine) - 1)]
    return [(int(i) + 1, float(cosine[i])) for i in best]


def concentration(recommended: np.ndarray, popularity: np.ndarray) -> dict[str, float]:
    """Says how widely lists spread over the catalogue.

    Args:
      recommended: int[n, k], item numbers from 1; 0 where a list is shorter.
      popularity: int[num_items], training events of each item.

    Returns:
      `coverage`, share of the catalogue in some list; `head`, share of places that go to the most popular tenth of
      items; `head_events`, share of training events that do.
    """
    items = recommended[recommended > 0] - 1
    head = np.zeros(len(popularity), bool)
    head[np.argsort(-popularity, kind="stable")[: max(1, len(popularity) // 10)]] = True
    coverage = beyond_accuracy(recommended, np.append(0, popularity))[
        f"coverage@{recommended.shape[1]}"
    ]
    return {
        "coverage": coverage,
        "head": float(head[items].mean()),
        "head_events": float(popularity[head].sum() / max(popularity.sum(), 1)),
    }
