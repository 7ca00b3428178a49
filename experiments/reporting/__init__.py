# SPDX-License-Identifier: Apache-2.0
"""From run directories to tables and figures, for `experiments.report`.

From low to high: `records` reads runs, `rows` groups them by setting, `statistics` has errors and
tests, `comparisons` sets rows against one of them, `published` knows other people's numbers,
`tables` builds the table of a data set, `figures` draws, `writing` makes Markdown, LaTeX, CSV and
HTML, `checking` derives committed tables again.
"""
