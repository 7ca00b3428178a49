# SPDX-License-Identifier: Apache-2.0
"""From run directories to tables and figures, for `experiments.report`.

From low to high: `records` reads runs, `rows` groups them by setting, `statistics` computes errors
and tests, `comparisons` compares rows with a baseline row, `published` reads published results,
`tables` builds the table of a data set, `plots` draws its figures, `writing` formats both as
Markdown, LaTeX, CSV and HTML, and `checking` derives committed tables again.
"""
