# SPDX-License-Identifier: Apache-2.0
"""From an interaction log to memory-mapped NumPy sequences and a split.

`sources` finds the log, `movielens` and `tables` read it, `prepare` filters, orders and numbers it and
writes the prepared folder, `dataset` opens that folder, `splits` says what is trained on and what is
predicted.
"""

from bert4rec_jax.data.dataset import Dataset, open_dataset
from bert4rec_jax.data.prepare import load_dataset
from bert4rec_jax.data.splits import Split, split_dataset

__all__ = ["Dataset", "Split", "load_dataset", "open_dataset", "split_dataset"]
