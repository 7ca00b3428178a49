# SPDX-License-Identifier: Apache-2.0
"""From a run directory to recommendations.

`recommender` is the Python API that `bert4rec_jax.load` returns, `titles` finds items by title or
id and `named_histories` reads histories from JSON. `list_scorer` computes the best items of any
number of histories; `lists` writes them for all users into a file.
"""

from bert4rec_jax.serving.named_histories import read_histories
from bert4rec_jax.serving.recommender import Recommendation, Recommender
from bert4rec_jax.serving.titles import AmbiguousTitle, TitleIndex

__all__ = ["AmbiguousTitle", "Recommendation", "Recommender", "TitleIndex", "read_histories"]
