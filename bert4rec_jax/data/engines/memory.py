# SPDX-License-Identifier: Apache-2.0
"""The memory that an engine may use."""

from __future__ import annotations

import re

from bert4rec_jax.config import DataConfig
from bert4rec_jax.errors import UserError
from bert4rec_jax.host_memory import free_host_memory

_EXPONENTS = {"K": 1, "M": 2, "G": 3, "T": 4}
_LEAST = 200 << 20
_LEAST_DEFAULT = 1 << 29
_UNKNOWN_FREE = 8 << 30  # assumed if the system does not report its free memory


def memory_limit(config: DataConfig) -> int:
    """Returns the bytes an engine may use: `config.data.memory`, or half of the free memory.

    Raises:
      UserError: `config.data.memory` is too small.
    """
    if not config.memory:
        free = free_host_memory()
        return max(_LEAST_DEFAULT, (_UNKNOWN_FREE if free is None else free) // 2)
    match = re.fullmatch(r"([\d.]+) ?([KMGT])(i?)B", config.memory)
    if match is None:
        raise UserError(f"config.data.memory = {config.memory!r} is not a size such as '8GiB'.")
    number, unit, binary = match.groups()
    base = 1024 if binary else 1000
    size = int(float(number) * base ** _EXPONENTS[unit])
    if size < _LEAST:
        raise UserError(
            f"config.data.memory = {config.memory!r} is too small; set at least '200MiB'."
        )
    return size
