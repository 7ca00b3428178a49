# SPDX-License-Identifier: Apache-2.0
"""Everybody's recommendations in a file.

`histories` reads whose lists are wanted, `choices` what may be in them, `scorer` makes them on the devices, `files`
writes them so that a killed run goes on, `write` puts these together.
"""

from bert4rec_jax.serving.lists.write import write_lists

__all__ = ["write_lists"]
