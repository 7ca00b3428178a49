# SPDX-License-Identifier: Apache-2.0
"""Numbers of a portrait: pure functions of arrays."""

from typing import NamedTuple

import numpy as np

from bert4rec_jax.ranking import beyond_accuracy, equal_groups, per_user

# Arrays of ranks_test.npz by which test cases are grouped, with axis labels.
GROUPED_BY = {
    "history_length": "items in the history",
    "item_popularity": "training interactions of the target",
}


class Bin(NamedTuple):
    """Test cases with values from `low` to `high`, both included.

    Attributes:
      low: smallest value.
      high: largest value.
      cases: number of cases.
      ndcg: mean NDCG@10.
    """

    low: int
    high: int
    cases: int
    ndcg: float


def ndcg_in_bins(values: np.ndarray, ranks: np.ndarray, count: int = 6) -> list[Bin]:
    """Returns NDCG@10 in bins with about the same number of cases; equal values share a bin.

    Args:
      values: int[n], such as the length of each case's history.
      ranks: float[n], 1-based.
      count: maximum number of bins.
    """
    group = equal_groups(values, count)
    ndcg = per_user("ndcg@10", ranks)
    bins = []
    for number in range(group.max() + 1):
        chosen = group == number
        low = int(values[chosen].min())
        high = int(values[chosen].max())
        bins.append(Bin(low, high, int(chosen.sum()), float(ndcg[chosen].mean())))
    return bins


def principal_axes(embedding_VD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects embeddings onto their two directions of largest variance (PCA).

    Returns:
      float[V, 2], the projections, and float[2], the share of the variance on each axis.
    """
    centred = embedding_VD - embedding_VD.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
    values = values[::-1]
    vectors = vectors[:, ::-1]
    # The sign of a direction is arbitrary; make its largest component positive.
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    projections = centred @ (vectors * np.sign(largest))[:, :2]
    return projections, values[:2] / max(float(values.sum()), 1e-30)


def nearest_items(embedding_VD: np.ndarray, number: int, count: int) -> list[tuple[int, float]]:
    """Returns the items nearest to an item, with their cosines.

    Args:
      embedding_VD: float[num_items, D]; row i belongs to item number i + 1.
      number: the item's number.
      count: maximum number of items.
    """
    lengths_V1 = np.linalg.norm(embedding_VD, axis=1, keepdims=True)
    unit_VD = embedding_VD / np.maximum(lengths_V1, 1e-12)
    cosine_V = unit_VD @ unit_VD[number - 1]
    cosine_V[number - 1] = -np.inf
    best = np.argsort(-cosine_V, kind="stable")[: min(count, len(cosine_V) - 1)]
    return [(int(row) + 1, float(cosine_V[row])) for row in best]


class Concentration(NamedTuple):
    """How lists are distributed over the catalogue.

    Attributes:
      coverage: share of the catalogue that is in at least one list.
      popular_places: share of the places that go to the most popular tenth of the items.
      popular_events: share of the training events that belong to these items.
    """

    coverage: float
    popular_places: float
    popular_events: float


def concentration(lists: np.ndarray, popularity: np.ndarray) -> Concentration:
    """Measures how much recommendations concentrate on popular items.

    Args:
      lists: int[n, k], item numbers from 1; 0 at the end of shorter lists.
      popularity: int[num_items], training events of each item.
    """
    most_popular = np.argsort(-popularity, kind="stable")[: max(1, len(popularity) // 10)]
    is_popular = np.zeros(len(popularity), bool)
    is_popular[most_popular] = True
    recommended = lists[lists > 0] - 1
    metrics = beyond_accuracy(lists, np.append(0, popularity))
    return Concentration(
        metrics[f"coverage@{lists.shape[1]}"],
        float(is_popular[recommended].mean()),
        float(popularity[most_popular].sum() / max(int(popularity.sum()), 1)),
    )
