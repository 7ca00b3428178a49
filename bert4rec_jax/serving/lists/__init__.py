# SPDX-License-Identifier: Apache-2.0
"""A file with the recommendations of all users.

`user_histories` reads the users and their histories, `item_filters` the items that may be
recommended, `list_file` writes the lists in parts so that a killed command can continue, and
`write_parts` combines them.
"""

from bert4rec_jax.serving.lists.write_parts import ListOptions, write_lists

__all__ = ["ListOptions", "write_lists"]
