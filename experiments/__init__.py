# SPDX-License-Identifier: Apache-2.0
"""Sweeps, reports on them, and the numbers that are cited. Beside the package, above all of its floors.

Commands: `launch` runs a sweep, `report` makes tables and figures from run directories, `cite` derives every number
that README, docs and configs state. `sweep` is what sweep files import. Rooms: `sweeping` (behind `launch`),
`reporting` (behind `report`), `citing` (behind `cite`). `results` holds the records, `published.json` other people's.
"""
