# SPDX-License-Identifier: Apache-2.0
"""Config fields that were renamed, moved to another group or added in version 0.3.0."""

import re

NEW_NAMES = {
    "data.min_rating": "filter.min_rating",
    "data.user_core": "filter.user_core",
    "data.item_core": "filter.item_core",
    "data.repeats": "filter.duplicate_events",
    "data.first_users": "filter.first_users",
    "data.split": "split.kind",
    "data.test_share": "split.test_share",
    "data.valid_share": "split.valid_share",
    "data.period_target": "split.period_target",
    "data.test_seconds": "split.test_seconds",
    "data.valid_seconds": "split.valid_seconds",
    "data.gap_seconds": "split.gap_seconds",
    "eval.valid_users": "split.valid_users",
    "eval.repeated_targets": "eval.seen_targets",
    "model.ranks_from": "model.predict_from",
    "masking.next_item": "masking.next_item_share",
    "parallel.catalogue": "parallel.item_shards",
}
# New name of a field: {old value: new value}.
NEW_VALUES = {
    "eval.seen_targets": {"last": "rank_last", "compete": "keep"},
    "data.engine": {"auto": "duckdb", "memory": "duckdb"},
}
# Fields added since records were made. Their defaults must reproduce runs whose config.json lacks
# them.
NEW_FIELDS = {
    "model.matmul_precision",
}


def renamed_hint(name: str) -> str:
    """Returns the new name of an unknown field for its error message, or ""."""
    if name not in NEW_NAMES:
        return ""
    return f"it was renamed to config.{NEW_NAMES[name]}"


def renamed_hint_in(text: str) -> str:
    """Returns the new name of the field in an error message of a locked ConfigDict, or ""."""
    missing = re.search(r'Key "(\w+)" does not exist', text)
    for old, new in NEW_NAMES.items():
        if missing and old.partition(".")[2] == missing[1]:
            return f"config.{old} was renamed to config.{new}"
    return ""


def renamed_value_hint(name: str, value: object) -> str:
    """Returns the new value of a renamed value for its error message, or ""."""
    new = NEW_VALUES.get(name, {}).get(value) if isinstance(value, str) else None
    return f"; use {new!r} instead of {value!r}" if new else ""
