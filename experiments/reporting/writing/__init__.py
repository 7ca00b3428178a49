# SPDX-License-Identifier: Apache-2.0
"""A table in four formats.

`grids` says what stands in which cell, whatever the format; `markdown`, `latex` and `comma_separated` write it down,
and so does `web`, a page with figures and captions, which is not imported here as it waits for matplotlib.
"""

from experiments.reporting.writing.comma_separated import comma_separated
from experiments.reporting.writing.latex import latex
from experiments.reporting.writing.markdown import markdown

__all__ = ["comma_separated", "latex", "markdown"]
