# SPDX-License-Identifier: Apache-2.0
"""Sweeps, reports and cited numbers. This package uses bert4rec_jax, never the reverse.

Commands: `launch` runs a sweep, `report` makes tables and figures from run directories, `cite`
derives every number that README, docs and configs state. `sweep` is what sweep files import. Rooms:
`sweeping` (behind `launch`), `reporting` (behind `report`), `citing` (behind `cite`). `results`
holds the records, `published.json` other people's.
"""
