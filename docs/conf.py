# SPDX-License-Identifier: Apache-2.0
"""The site: Sphinx with furo and myst-nb; `make docs` builds it without a network."""

import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(CHECKOUT / "docs" / "_extensions"), str(CHECKOUT)]

import bert4rec_jax  # noqa: E402

project = "bert4rec_jax"
author = "The bert4rec_jax authors"
release = version = bert4rec_jax.__version__
project_copyright = f"{author}, Apache-2.0"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference", "checkout_links"]
exclude_patterns = ["_extensions"]
templates_path = []
highlight_language = "text"  # blocks without a language are shell commands
html_theme = "furo"
html_title = "bert4rec_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e6e", "color-brand-content": "#0b6e6e"},
    "dark_css_variables": {"color-brand-primary": "#5cc8c0", "color-brand-content": "#5cc8c0"},
}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks.py runs them; they contain their outputs
nb_merge_streams = True
nb_render_markdown_format = "myst"  # includes tables

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# `x` in a docstring is code, as in Markdown.
default_role = "code"
add_module_names = False
suppress_warnings = ["mystnb.unknown_mime_type"]
# The URL of the sources on GitHub. Elsewhere, links into the checkout become plain text.
repository = (
    f"{os.environ.get('GITHUB_SERVER_URL')}/{os.environ['GITHUB_REPOSITORY']}"
    if os.environ.get("GITHUB_REPOSITORY")
    else ""
)
