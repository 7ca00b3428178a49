# SPDX-License-Identifier: Apache-2.0
"""Every number that README, docs and configs state, derived from a record; behind `experiments.cite`.

From low to high: `sources` takes a number out of records, benchmarks' output or published tables; `citations` reads
experiments/cited.toml, finds its sentences in the documents and numbers that no sentence covers; `blocks` are tables in
documents that are written by the program.
"""
