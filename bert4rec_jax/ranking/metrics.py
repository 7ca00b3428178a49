# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics from the rank of each user's target, and metrics beyond accuracy from recommended lists."""

import re

import numpy as np

from bert4rec_jax.errors import UserError

CUTOFFS = (1, 5, 10, 20, 50, 100)
_NAME = re.compile(r"(ndcg|hr|recall|mrr|map)@(\d+)|mrr")


def from_ranks(ranks: np.ndarray) -> dict[str, float]:
    """Returns all accuracy metrics as means over users.

    With one target a user, HR@k = Recall@k = [rank <= k], NDCG@k = [rank <= k] / log2(1 + rank) and
    MRR@k = MAP@k = [rank <= k] / rank.

    Args:
      ranks: float or int [users], 1 is best; halves occur with `ties = "expected"`.
    """
    result = {}
    for k in CUTOFFS:
        for name in ("ndcg", "hr", "recall", "mrr", "map"):
            result[f"{name}@{k}"] = float(np.mean(per_user(f"{name}@{k}", ranks)))
    result["mrr"] = float(np.mean(per_user("mrr", ranks)))
    return result


def per_user(name: str, ranks: np.ndarray) -> np.ndarray:
    """Returns float64[users], one metric of every user.

    Raises:
      UserError: there is no such metric.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f"there is no metric {name!r}; use ndcg@K, hr@K, recall@K, mrr@K, map@K or mrr.")
    ranks = np.asarray(ranks, np.float64)
    if name == "mrr":
        return 1 / ranks
    kind, hit = match[1], ranks <= int(match[2])
    gain = {"ndcg": lambda: 1 / np.log2(1 + ranks), "mrr": lambda: 1 / ranks, "map": lambda: 1 / ranks}
    return hit * gain.get(kind, lambda: np.ones_like(ranks))()


def beyond_accuracy(lists: np.ndarray, popularity: np.ndarray) -> dict[str, float]:
    """Returns coverage, novelty and popularity of the recommended lists.

    Args:
      lists: int[users, k], recommended item ids, 1-based.
      popularity: int64[num_items + 1], training interactions of each id.

    Returns:
      `coverage@k`, share of the catalogue that is recommended to anyone; `novelty@k`, mean self-information
      -log2(share of training interactions) in bits, with one interaction added to each item; `popularity@k`, mean
      number of training interactions of a recommended item.
    """
    k = lists.shape[1]
    counts = popularity[1:]
    information = -np.log2((counts + 1) / (counts.sum() + len(counts)))
    return {
        f"coverage@{k}": len(np.unique(lists)) / len(counts),
        f"novelty@{k}": float(information[lists - 1].mean()),
        f"popularity@{k}": float(counts[lists - 1].mean()),
    }
