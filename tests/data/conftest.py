# SPDX-License-Identifier: Apache-2.0
"""Repeats preparations with Spark."""

import contextlib
import dataclasses
import io
import shutil

import prepared
import pytest

from bert4rec_jax.config import FilterConfig
from bert4rec_jax.errors import UserError


@pytest.fixture(
    params=[
        "duckdb",
        pytest.param("spark", marks=[*prepared.SPARK, pytest.mark.timeout(600)]),
    ]
)
def every_engine(request, monkeypatch):
    """With Spark, every preparation of the test's module is repeated and must end the same way."""
    if request.param == "duckdb":
        return
    load_dataset = request.module.load_dataset

    def load_twice(config, filters=FilterConfig()):
        memory = config.memory or "1GiB"
        cache = f"{config.cache_dir}_spark"
        again = dataclasses.replace(config, engine="spark", memory=memory, cache_dir=cache)
        shutil.rmtree(cache, ignore_errors=True)
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                found = prepared.folder_bytes(load_dataset(again, filters).folder)
            except UserError as error:
                found = str(error)
        try:
            dataset = load_dataset(config, filters)
        except UserError as error:
            assert found == str(error)
            raise
        assert found == prepared.folder_bytes(dataset.folder)
        return dataset

    monkeypatch.setattr(request.module, "load_dataset", load_twice)
