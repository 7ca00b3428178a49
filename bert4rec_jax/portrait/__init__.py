# SPDX-License-Identifier: Apache-2.0
"""A report about a trained run: `python -m bert4rec_jax.portrait`.

`measures` computes the numbers (pure functions of arrays), `plots` draws them, `report` arranges
them in sections, and `html_report` writes one HTML page that works offline.
"""
