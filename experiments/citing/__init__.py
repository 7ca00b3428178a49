# SPDX-License-Identifier: Apache-2.0
"""Derives every number in README, docs and configs from a record, for `experiments.cite`.

From low to high: `sources` takes a number out of records, benchmarks' output or published tables;
`citations` reads experiments/cited.toml, finds its sentences in the documents and numbers that no
sentence covers; `blocks` are tables in documents that are written by the program.
"""
