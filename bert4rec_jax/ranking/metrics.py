# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics from the rank of each user's target, and metrics beyond accuracy from recommended
lists.
"""

import re

import numpy as np

from bert4rec_jax.errors import UserError

CUTOFFS = (1, 5, 10, 20, 50, 100)
# Names that papers use for the same numbers, where every user has one target.
SAME = {"recall": "hr", "map": "mrr"}
_NAME = re.compile(r"(ndcg|hr|recall|mrr|map)@(\d+)|mrr")


def from_ranks(ranks: np.ndarray) -> dict[str, float]:
    """Returns all accuracy metrics as means over users.

    With one target a user, HR@k = [rank <= k], NDCG@k = [rank <= k] / log2(1 + rank) and MRR@k =
    [rank <= k] / rank; Recall@k is HR@k and MAP@k is MRR@k (`SAME`).

    Args:
      ranks: float or int [users], 1 is best; halves occur with `ties = "expected"`.
    """
    result = {}
    for k in CUTOFFS:
        for name in ("ndcg", "hr", "mrr"):
            result[f"{name}@{k}"] = float(np.mean(per_user(f"{name}@{k}", ranks)))
        result |= {f"{name}@{k}": result[f"{same}@{k}"] for name, same in SAME.items()}
    result["mrr"] = float(np.mean(per_user("mrr", ranks)))
    return result


def per_user(name: str, ranks: np.ndarray) -> np.ndarray:
    """Returns float64[users], one metric of every user.

    Raises:
      UserError: the metric is unknown.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(
            f"the metric {name!r} is unknown; use ndcg@K, hr@K, recall@K, mrr@K, map@K or mrr."
        )
    ranks = np.asarray(ranks, np.float64)
    if name == "mrr":
        return 1 / ranks
    kind = SAME.get(match[1], match[1])
    hit = ranks <= int(match[2])
    if kind == "ndcg":
        return hit / np.log2(1 + ranks)
    if kind == "mrr":
        return hit / ranks
    return hit * 1.0


def equal_groups(values: np.ndarray, count: int) -> np.ndarray:
    """Returns int[cases], the group of each case, from 0 in the order of the values, every one of
    them occupied.

    Groups are about equally large; equal values share one, so that there may be fewer than `count`.

    Args:
      values: number[cases], such as the length of each case's history.
      count: groups, at most.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1), method="nearest"))
    group = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    return np.unique(group, return_inverse=True)[1]


def beyond_accuracy(lists: np.ndarray, popularity: np.ndarray) -> dict[str, float]:
    """Returns coverage, novelty and popularity of the recommended lists.

    Args:
      lists: int[users, k], recommended item ids, 1-based; 0 where a user has fewer than k
        candidates.
      popularity: int64[num_items + 1], training interactions of each id.

    Returns:
      `coverage@k`, share of the catalogue that is recommended to anyone; `novelty@k`, mean
      self-information -log2(share of training interactions) in bits, with one interaction added to
      each item; `popularity@k`, mean number of training interactions of a recommended item.
      Coverage alone where no user has a candidate left.
    """
    k, shown = lists.shape[1], lists[lists > 0]
    if len(shown) == 0:
        return {f"coverage@{k}": 0.0}
    counts = popularity[1:]
    information = -np.log2((counts + 1) / (counts.sum() + len(counts)))
    return {
        f"coverage@{k}": len(np.unique(shown)) / len(counts),
        f"novelty@{k}": float(information[shown - 1].mean()),
        f"popularity@{k}": float(counts[shown - 1].mean()),
    }
