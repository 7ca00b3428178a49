# SPDX-License-Identifier: Apache-2.0
"""The machines a run is laid over: meshes, processes, and what they throw at it.

`layout` maps a function of one device's arrays over all of them, `errors` says in words what XLA and lost processes
report.
"""
