# SPDX-License-Identifier: Apache-2.0
"""Logs as they lie around in the world, read into one form.

`find` turns a config into a `Source`, `movielens` and `tables` read its files, `download` fetches MovieLens,
`synthetic` makes a log up. Where files are text, `text_file` says how one is laid out, `delimited` reads it in blocks
of whole lines from `text`, and `faults` finds the line that it failed on. What they all produce are blocks, of which
`log` makes a `Log`. `features` turns columns of an item table into features of items.
"""
