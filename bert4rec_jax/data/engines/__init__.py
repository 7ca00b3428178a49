# SPDX-License-Identifier: Apache-2.0
"""Preparation of logs that do not fit into memory: the same folder, to the last byte, as from memory.

`choice` says which engine, `ingest` brings text into Parquet, `statements` is the SQL that `duckdb_engine` and
`spark_engine` share, `pipeline` its stages, `work` what a second start goes on from, `additions` a new day for an old
folder.
"""

from bert4rec_jax.data.engines.choice import choose
from bert4rec_jax.data.engines.pipeline import prepare
from bert4rec_jax.data.engines.work import WORK_PREFIX

__all__ = ["WORK_PREFIX", "choose", "prepare"]
