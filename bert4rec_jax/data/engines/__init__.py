# SPDX-License-Identifier: Apache-2.0
"""Preparation of logs of any size in SQL, with DuckDB or Spark.

- `ingest` copies text into Parquet; `columns` maps the columns of Parquet logs.
- `statements` is the SQL that `duckdb_engine` and `spark_engine` share; they run it in the
  `background`. `memory` limits the memory they use.
- `pipeline` runs the stages; `stage_cache` keeps finished stages for a restart.
- `incremental` merges new parts of a log into an older prepared folder.
"""

from bert4rec_jax.data.engines.incremental import extend, find_older_folder
from bert4rec_jax.data.engines.pipeline import prepare
from bert4rec_jax.data.engines.stage_cache import STAGE_PREFIX

__all__ = ["STAGE_PREFIX", "extend", "find_older_folder", "prepare"]
