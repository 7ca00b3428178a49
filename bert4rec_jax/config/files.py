# SPDX-License-Identifier: Apache-2.0
"""Reads config files: Python with `get_config()`, or the config.json of a run."""

import importlib.util
import inspect
import os
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

import ml_collections

from bert4rec_jax.config.renamed import renamed_hint_in
from bert4rec_jax.config.rules import build
from bert4rec_jax.errors import UserError
from bert4rec_jax.files import read_json

T = TypeVar("T")


def shipped() -> dict[str, str]:
    """Returns {name: path} of the config files that are part of this project."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Inside the package in a wheel, next to it in a checkout.
    for parent in (package, os.path.dirname(package)):
        folder = os.path.join(parent, "configs")
        if os.path.isdir(folder):
            names = sorted(name for name in os.listdir(folder) if name.endswith(".py"))
            return {name.removesuffix(".py"): os.path.join(folder, name) for name in names}
    return {}


def load(path: str) -> ml_collections.ConfigDict:
    """Returns a config file as a locked ConfigDict whose fields can be changed.

    Args:
      path: see `read`.

    Raises:
      UserError: the file cannot be read, or contains an unknown field or a value of the wrong type.
    """
    return ml_collections.ConfigDict(build(read(path)).to_dict()).lock()


def read(path: str) -> dict[str, Any]:
    """Returns the nested values of a config file; pass them to `resolve`.

    Args:
      path: a Python file with `get_config()`, the config.json of a run or a record, or the name of
        one of the `shipped()` files, as in `quickstart`. A name after a colon is passed to
        `get_config`, as in `configs/amazon.py:2023` or `amazon:2023`.

    Raises:
      UserError: the file cannot be read or is not a config file.
    """
    if not path:
        raise UserError("--config is missing: name a config file, such as configs/quickstart.py.")
    if path.endswith(".json"):
        return _read_json(path)
    file, _, variant_name = path.partition(":")
    if re.fullmatch(r"\w+", file):
        file = shipped().get(file, file + ".py")
    if not os.path.isfile(file):
        raise UserError(
            f"the config file {path} does not exist; the files of this project can be given by "
            f"name: {', '.join(shipped())}."
        )
    if not file.endswith(".py"):
        raise UserError(f"the config file {path} is neither Python (.py) nor a config.json.")
    try:
        module = _imported(file)
        if not variant_name:
            return _plain(module.get_config())
        if inspect.signature(module.get_config).parameters:
            return _plain(module.get_config(variant_name))
    except UserError:
        raise
    except Exception as error:  # the file is the user's code
        reason = renamed_hint_in(str(error))
        if reason:
            raise UserError(f"the config file {path} cannot be read: {reason}.") from None
        raise UserError(
            f"the config file {path} cannot be read ({type(error).__name__}): {error}."
        ) from None
    raise UserError(f"the config file {file} has only one variant; remove ':{variant_name}'.")


def variant(variants: Mapping[str, T], name: str) -> T:
    """Returns variants[name], for a config file that takes a name after a colon (`amazon:2023`).

    Raises:
      UserError: the variant is unknown; lists all variants.
    """
    if name not in variants:
        raise UserError(
            f"the config file has no {name!r}; add one of {', '.join(variants)} after the colon."
        )
    return variants[name]


def _imported(file: str) -> ModuleType:
    name = "_" + os.path.basename(file).removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("it cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _plain(values: Any) -> dict[str, Any]:
    """Returns the result of `get_config()`, a ConfigDict or a dict, as nested dicts."""
    if not isinstance(values, dict | ml_collections.ConfigDict):
        raise TypeError("get_config() must return a ConfigDict")
    return ml_collections.ConfigDict(values).to_dict()


def _read_json(path: str) -> dict[str, Any]:
    try:
        values = read_json(path)
    except OSError as error:
        raise UserError(f"the config file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"the config file {path} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"the config file {path} must be a group of fields, in braces.")
    return values
