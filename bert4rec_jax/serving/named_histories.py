# SPDX-License-Identifier: Apache-2.0
"""JSON files with named histories that users write by hand."""

from typing import Any

from bert4rec_jax.errors import UserError
from bert4rec_jax.files import read_json

_FORMAT = "{name: [title or id, ...]}"
_SHOWN = 60  # characters of a value in a message


def read_histories(path: str) -> dict[str, list[str]]:
    """Reads histories from JSON: {name: [item, ...]}, or a list of histories, which are named 1, 2,
    ...

    Returns:
      Titles or ids as `TitleIndex.find` takes them, by name.

    Raises:
      UserError: the file has another content.
    """
    where = f"--histories {path}"
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        reason = str(error)[:100]
        raise UserError(f"{where} is not JSON ({reason}); write {_FORMAT}.") from None
    if isinstance(content, list):
        content = {str(number): history for number, history in enumerate(content, 1)}
    if not isinstance(content, dict) or not content:
        raise UserError(f"{where} contains no histories; write {_FORMAT}.")
    histories = {}
    for name, history in content.items():
        _check_text(where, name)
        if not isinstance(history, list):
            shown = str(history)[:_SHOWN]
            raise UserError(
                f"{where}: the history {name!r} must be a list of titles or ids, not {shown!r}."
            )
        histories[name] = [_item_text(where, name, item) for item in history]
    return histories


def _item_text(where: str, name: str, item: Any) -> str:
    """Returns an item of a history as text; a number can only be an id."""
    if isinstance(item, str):
        _check_text(where, item)
        return item
    is_number = isinstance(item, int | float) and not isinstance(item, bool)
    if not is_number or item - item != 0:  # NaN and infinity
        raise UserError(
            f"{where}: the history {name!r} contains {str(item)[:_SHOWN]}, which is neither a "
            "title nor an id."
        )
    # Integers keep all digits, since a float cannot represent every one of them.
    return f"id:{int(item) if item == int(item) else item}"


def _check_text(where: str, text: str) -> None:
    """Raises a UserError for text that cannot be printed or stored: JSON may contain half a
    character, `"\\ud800"`.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: {ascii(text)[:_SHOWN]} contains an unpaired surrogate; write the full pair "
            "or the "
            "character itself."
        ) from None
