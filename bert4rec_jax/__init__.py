# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec in JAX: sequences in, ranked catalogues out.

Array names carry their axes: B rows of a batch, L positions of a row, K target slots of a row,
M = B*K slots of a batch, U users, S seen items, D width, F feed-forward width, H heads, V items.
"""

import ctypes

__version__ = "0.1.0"


def _keep_freed_memory() -> None:
    """Makes glibc reuse freed memory. A step on CPU asks for some hundred megabytes anew each time.

    By default they go back to the system and come again page by page, which is a fifth of a step. This has to be said
    before the first thread takes memory; other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # numbers from malloc.h
        for parameter, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1)):
            mallopt(parameter, value)


_keep_freed_memory()
