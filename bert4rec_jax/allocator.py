# SPDX-License-Identifier: Apache-2.0
"""What glibc is told about memory by the commands, never by an import: a library leaves its process alone."""

import ctypes


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory. A step on CPU asks for some hundred megabytes anew each time.

    By default they go back to the system and come again page by page, which is a fifth of a step. This has to be said
    before the first thread takes memory, so before NumPy is imported; other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # numbers from malloc.h
        for parameter, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1)):
            mallopt(parameter, value)
