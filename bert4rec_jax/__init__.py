# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec in JAX: sequences in, ranked catalogues out.

Array names carry their axes: B rows of a batch, L positions of a row, K target slots of a row,
M = B*K slots of a batch, U users, S seen items, D width, F feed-forward width, H heads, V items.
"""

__version__ = "0.1.0"
