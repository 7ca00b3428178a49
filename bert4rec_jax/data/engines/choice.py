# SPDX-License-Identifier: Apache-2.0
"""Which engine prepares a log, and how much memory it may take."""

from __future__ import annotations

import importlib.util
import re

from bert4rec_jax.config import DataConfig
from bert4rec_jax.data.sources.log import Source
from bert4rec_jax.errors import UserError
from bert4rec_jax.host_memory import free_host_memory

# Peak of the memory engine on MovieLens-25M's shape, rounded up; longer ids take more.
_BYTES_A_ROW = 130
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


def free_memory() -> int:
    """Returns how many bytes are free; 8 GiB if the system does not report it."""
    return free_host_memory() or 8 << 30


def memory_limit(config: DataConfig) -> int:
    """Returns how many bytes an engine may take: `config.data.memory`, or half of what is free."""
    if not config.memory:
        return max(1 << 29, free_memory() // 2)
    number, unit, binary = re.fullmatch(r"([\d.]+) ?([KMGT])(i?)B", config.memory).groups()
    size = int(float(number) * (2 ** _UNITS[unit] if binary else 10 ** (_UNITS[unit] * 3 // 10)))
    if size < 200 << 20:
        raise UserError(
            f"config.data.memory = {config.memory!r} is too small to work with; set at least '200MiB'."
        )
    return size


def choose(config: DataConfig, source: Source) -> str:
    """Returns "memory", "duckdb" or "spark".

    Raises:
      UserError: the log needs an engine, and DuckDB is not installed.
    """
    if config.engine != "auto":
        if config.engine == "memory" and source.open is None:
            raise UserError(
                f"{config.path} is read by an engine; set config.data.engine to 'duckdb' or 'spark'."
            )
        return config.engine
    needed, free = source.rows() * _BYTES_A_ROW, free_memory()
    if source.open is not None and needed < free / 2:
        return "memory"
    if importlib.util.find_spec("duckdb") is None:
        what = f"about {needed / 2**30:.0f} GiB of the {free / 2**30:.0f} GiB that are free"
        why = "is read by an engine" if source.open is None else f"would take {what}"
        raise UserError(
            f"{source.description} {why}: install DuckDB (pip install 'bert4rec_jax[duckdb]'), which prepares it in "
            "bounded memory, or set config.data.engine."
        )
    return "duckdb"
