# SPDX-License-Identifier: Apache-2.0
"""Lets whatever a test prepares be prepared by every engine."""

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
        pytest.param("duckdb", marks=prepared.DUCKDB),
        pytest.param("spark", marks=[*prepared.SPARK, pytest.mark.timeout(600)]),
    ]
)
def every_engine(request, monkeypatch):
    """Behind each preparation of the test's module stands another by an engine, which has to end in the same way.

    Preparations of a config that names its engine stay alone. What the second one says is not heard.
    """
    load_dataset = request.module.load_dataset

    def load_twice(config, filters=FilterConfig()):
        if config.engine != "auto":
            return load_dataset(config, filters)
        config = dataclasses.replace(config, engine="memory")
        again = dataclasses.replace(
            config,
            engine=request.param,
            memory=config.memory or "1GiB",
            cache_dir=f"{config.cache_dir}_{request.param}",
        )
        shutil.rmtree(again.cache_dir, ignore_errors=True)
        with contextlib.redirect_stderr(io.StringIO()):
            _, found = prepared.outcome(again, filters)
        try:
            dataset = load_dataset(config, filters)
        except UserError as error:
            assert found == str(error)
            raise
        assert found == prepared.folder_bytes(dataset.folder)
        return dataset

    monkeypatch.setattr(request.module, "load_dataset", load_twice)
