# SPDX-License-Identifier: Apache-2.0
"""A look into a trained run: `python -m bert4rec_jax.portrait`.

`__main__` is the command, `measures` the numbers (pure functions of arrays), `figures` draws them, `sheet` puts
figures and tables into one HTML page that needs no network.
"""
