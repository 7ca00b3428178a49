# SPDX-License-Identifier: Apache-2.0
"""Logs as they lie around in the world, read into one form.

`find` turns a config into a `Source`, `movielens` and `tables` read its files (both through `delimited` where they
are text, which gets whole lines from `text`), `download` fetches MovieLens, `synthetic` makes a log up. What they all
produce are blocks, of which `log` makes a `Log`.
"""
