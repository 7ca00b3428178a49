# SPDX-License-Identifier: Apache-2.0
"""Settings for glibc's allocator, made by the commands only: importing a library should not change its process."""

import ctypes


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory. A step on CPU asks for some hundred megabytes anew each time.

    By default freed pages go back to the kernel and are faulted in one by one, which costs a fifth
    of a step. This has to be said before the first thread takes memory, so before NumPy is
    imported; other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # numbers from malloc.h
        for parameter, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1)):
            mallopt(parameter, value)
