# SPDX-License-Identifier: Apache-2.0
"""Histories that people write down by name, in JSON."""

from bert4rec_jax.errors import UserError
from bert4rec_jax.files import read_json


def read_histories(path: str) -> dict[str, list[str]]:
    """Returns named histories from JSON: {name: [item, ...]}, or a list of histories, which are named 1, 2, ...

    Raises:
      UserError: the file is something else; says what and where.
    """
    try:
        named = read_json(path)
    except OSError as error:
        raise UserError(f"--histories {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        reason = str(error)[:100]
        raise UserError(
            f"--histories {path} is not JSON ({reason}); it holds {{name: [title or id, ...]}}."
        ) from None
    if isinstance(named, list):
        named = {str(number): history for number, history in enumerate(named, 1)}
    if not isinstance(named, dict) or not named:
        raise UserError(
            f"--histories {path} holds no histories; write {{name: [title or id, ...]}}."
        )
    for name, history in named.items():
        _check_text(path, name)
        if not isinstance(history, list):
            raise UserError(
                f"--histories {path}: the history {name!r} must be a list of titles or ids, not "
                f"{str(history)[:60]!r}."
            )
    return {name: [_item(path, name, item) for item in history] for name, history in named.items()}


def _item(path: str, name: str, item: object) -> str:
    """Returns an item of a history as `TitleIndex.find` takes it; a number can only be an id."""
    if isinstance(item, str):
        _check_text(path, item)
        return item
    if isinstance(item, bool) or not isinstance(item, int | float) or item - item != 0:
        raise UserError(
            f"--histories {path}: the history {name!r} holds {str(item)[:60]}, which is neither a title "
            "nor an id."
        )
    # A whole number stays as it is, however long: not every one is a float.
    return f"id:{int(item) if item == int(item) else item}"


def _check_text(path: str, text: str) -> None:
    """JSON can write half of a character, `"\\ud800"`, which no file and no terminal takes afterwards."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"--histories {path}: {ascii(text)[:60]} holds half of a character, which is no text; write "
            "both halves, or the character itself."
        ) from None
