# SPDX-License-Identifier: Apache-2.0
"""What an engine makes of a log, to be compared with what memory makes of it."""

import dataclasses
import importlib.util
import os
import shutil

import pytest

from bert4rec_jax.config import DataConfig, FilterConfig
from bert4rec_jax.data import load_dataset
from bert4rec_jax.errors import UserError

DUCKDB = pytest.mark.skipif(
    importlib.util.find_spec("duckdb") is None, reason="DuckDB is not installed"
)
SPARK = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
        reason="PySpark or Java is not installed",
    ),
]


def data_and_filter(**options) -> tuple[DataConfig, FilterConfig]:
    """Sorts options into the two groups of the configuration that `load_dataset` takes."""
    names = {field.name for field in dataclasses.fields(FilterConfig)}
    filters = {name: value for name, value in options.items() if name in names}
    data = {name: value for name, value in options.items() if name not in names}
    return DataConfig(**data), FilterConfig(**filters)


def folder_bytes(path) -> dict[str, bytes]:
    """Returns the content of every file of a prepared folder."""
    return {name: open(os.path.join(path, name), "rb").read() for name in sorted(os.listdir(path))}


def outcome(config, filters=FilterConfig()):
    """Returns (data set, what an equal preparation equals): the bytes of the folder, or the words of the refusal.

    Asserts that nothing else is left beside it.
    """
    parent = os.path.join(config.cache_dir, "prepared")
    try:
        dataset = load_dataset(config, filters)
    except UserError as error:
        assert not os.path.exists(parent) or os.listdir(parent) == []
        return None, str(error)
    assert os.listdir(parent) == [os.path.basename(dataset.folder)]
    return dataset, folder_bytes(dataset.folder)


def same_from(engine: str, config, filters=FilterConfig()):
    """Asserts that an engine prepares what memory prepares, or refuses it with the same words; returns the data."""
    found = []
    for name in ("memory", engine):
        cache = f"{config.cache_dir}_{name}"
        shutil.rmtree(cache, ignore_errors=True)
        changed = dataclasses.replace(config, cache_dir=cache, engine=name, memory="1GiB")
        found.append(outcome(changed, filters))
    (dataset, expected), (_, other) = found
    assert other == expected
    return dataset
