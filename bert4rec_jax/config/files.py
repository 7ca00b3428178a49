# SPDX-License-Identifier: Apache-2.0
"""Config files: Python with `get_config()`, or the config.json of a run."""

import importlib.util
import inspect
import os
import re

import ml_collections

from bert4rec_jax.config.fields import Config
from bert4rec_jax.config.renamed import renamed_hint_in
from bert4rec_jax.config.rules import build
from bert4rec_jax.errors import UserError
from bert4rec_jax.files import read_json


def shipped() -> dict[str, str]:
    """Returns {name: path} of the config files that come with the program: beside the package, or inside a wheel's."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = (os.path.join(package, "configs"), os.path.join(os.path.dirname(package), "configs"))
    folder = next((folder for folder in folders if os.path.isdir(folder)), None)
    files = sorted(os.listdir(folder)) if folder else []
    return {
        name.removesuffix(".py"): os.path.join(folder, name)
        for name in files
        if name.endswith(".py")
    }


def load(path: str) -> ml_collections.ConfigDict:
    """Returns the values of a config file: Python with `get_config()`, or the config.json of a run or a record.

    Args:
      path: of the file, or the bare name of one of `shipped()`, as in `quickstart`; a name after a colon is given to
        `get_config`, as in `configs/amazon.py:2023` or `amazon:2023`.

    Raises:
      UserError: the file cannot be read or is not one; names what is wrong.
    """
    if not path:
        raise UserError("--config is missing: name a config file, such as configs/quickstart.py.")
    if path.endswith(".json"):
        return _from_json(path)
    file, _, name = path.partition(":")
    if re.fullmatch(r"\w+", file):
        file = shipped().get(file, file + ".py")
    if os.path.isfile(file) and not file.endswith(".py"):
        raise UserError(f"the config file {path} is neither Python (.py) nor a config.json.")
    try:
        if not os.path.isfile(file):
            raise FileNotFoundError
        spec = importlib.util.spec_from_file_location(
            "_" + os.path.basename(file).removesuffix(".py"), file
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if name and not inspect.signature(module.get_config).parameters:
            raise UserError(
                f"the config file {file} takes no name after a colon, such as {name!r}."
            )
        values = module.get_config(*[name] if name else [])
        return ml_collections.ConfigDict(values).lock()
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(
            f"there is no config file {path}; those that come with the program go by their names: "
            f"{', '.join(shipped())}."
        ) from None
    except Exception as error:  # the file is the user's code
        if renamed := renamed_hint_in(str(error)):
            raise UserError(f"the config file {path} cannot be read: {renamed}.") from None
        raise UserError(
            f"the config file {path} cannot be read ({type(error).__name__}): {error}."
        ) from None


def _from_json(path: str) -> ml_collections.ConfigDict:
    try:
        values = read_json(path)
    except OSError as error:
        raise UserError(f"the config file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"the config file {path} is not valid JSON: {error}.") from None
    # Through `Config`, so that whole numbers become floats where floats belong, and unknown fields are named.
    return ml_collections.ConfigDict(build(Config, values).to_dict()).lock()


def choose(choices: dict, name: str):
    """Returns choices[name], for a config file that takes a name after a colon, as in `amazon.py:2023`.

    Raises:
      UserError: there is no such name; lists those that there are.
    """
    if name not in choices:
        raise UserError(
            f"the config file has no {name!r}; name one of {', '.join(choices)} after the colon."
        )
    return choices[name]
