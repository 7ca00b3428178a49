# SPDX-License-Identifier: Apache-2.0
"""Settings of glibc's allocator.

Only commands change them, because importing a library must not change its process.
"""

import ctypes

# Names and numbers from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory; a step on a CPU allocates hundreds of megabytes each time.

    By default, freed pages return to the kernel and are faulted in one by one, which takes a fifth
    of a step. Call this before any thread allocates memory, hence before NumPy is imported. It has
    no effect with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
