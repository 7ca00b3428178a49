# SPDX-License-Identifier: Apache-2.0
"""From a run directory to recommendations.

`recommender` is the Python API that `bert4rec_jax.load` returns, `titles` finds items by what people type, `histories`
reads what they wrote down, `lists` writes everybody's recommendations into a file.
"""

from bert4rec_jax.serving.histories import read_histories
from bert4rec_jax.serving.recommender import Recommendation, Recommender
from bert4rec_jax.serving.titles import AmbiguousTitle, TitleIndex

__all__ = ["AmbiguousTitle", "Recommendation", "Recommender", "TitleIndex", "read_histories"]
