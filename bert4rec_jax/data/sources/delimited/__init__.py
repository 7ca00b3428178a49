# SPDX-License-Identifier: Apache-2.0
"""Delimited text files.

`layout` detects the separator and the columns, and reads a file slowly and exactly. `reader` reads
blocks of rows fast, and `faults` finds the line on which it failed.
"""

from bert4rec_jax.data.sources.delimited.faults import LARGEST_TIME
from bert4rec_jax.data.sources.delimited.layout import (
    TextFile,
    reject_header,
    require_columns,
    sniff,
)
from bert4rec_jax.data.sources.delimited.reader import TextLog, read_all

__all__ = [
    "LARGEST_TIME",
    "TextFile",
    "TextLog",
    "read_all",
    "reject_header",
    "require_columns",
    "sniff",
]
