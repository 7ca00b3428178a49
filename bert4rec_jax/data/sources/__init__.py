# SPDX-License-Identifier: Apache-2.0
"""Readers that bring the common log formats into one form.

`find` turns a config into a `Source`. `movielens` and `tables` read its files; text goes through
`delimited`, which gets its lines from `text`. `download` obtains MovieLens (`archive` fetches and
unpacks files, `recbole` is the fallback for MovieLens-100K), and `synthetic` generates a log.
`row_filter` applies the SQL condition of `config.data.where`. All of them produce blocks of
`log`.
"""
