# SPDX-License-Identifier: Apache-2.0
"""A table in four formats.

`grids` defines the cells of each table for all formats; `markdown`, `latex` and `comma_separated`
write them, and so does `web`, a page with figures, which is not imported here because it imports
matplotlib.
"""

from experiments.reporting.writing.comma_separated import comma_separated
from experiments.reporting.writing.latex import latex
from experiments.reporting.writing.markdown import markdown

__all__ = ["comma_separated", "latex", "markdown"]
