# SPDX-License-Identifier: Apache-2.0
"""Free memory of the host, as seen by this process."""

import contextlib
import resource
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def free_host_memory() -> int | None:
    """Returns the bytes that this process can still allocate, or None if they are unknown.

    This is the least of the machine's free memory, the rest of the container's limit (cgroup v2),
    and the rest of the process's own limit (`ulimit -v`).
    """
    found = [_free_on_machine(), _free_in_container(), _free_in_process()]
    known = [free for free in found if free is not None]
    return max(0, min(known)) if known else None


def _free_on_machine() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return None


def _free_in_container() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            return int(limit) - int((_CGROUP / "memory.current").read_text())
    return None


def _free_in_process() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return limit - pages * resource.getpagesize()
    return None
