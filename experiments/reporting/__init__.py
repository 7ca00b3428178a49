# SPDX-License-Identifier: Apache-2.0
"""From run directories to tables and figures.

`records` reads finished runs and groups them into rows, `statistics` compares them, `tables` builds a table,
`rendering` writes and checks it, `figures` draws, `page` puts all into one HTML file.
"""
