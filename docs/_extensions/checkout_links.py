# SPDX-License-Identifier: Apache-2.0
"""Checks links to files of the checkout that are not pages,
and turns them into links to the repository.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform
from sphinx.util.nodes import get_node_source

CHECKOUT = Path(__file__).resolve().parents[2]


class CheckoutLinks(SphinxTransform):
    """Rewrites links before Sphinx resolves them."""

    default_priority = 5

    def apply(self, **kwargs) -> None:
        """Replaces every link to a file outside docs/."""
        docs = CHECKOUT / "docs"
        kinds = addnodes.pending_xref | addnodes.download_reference | nodes.reference
        for link in list(self.document.findall(lambda n: isinstance(n, kinds))):
            target, anchor = (
                link.get("reftarget") or link.get("refuri") or "",
                link.get("reftargetid") or "",
            )
            if re.match(r"[a-z]+:|#|$", target):
                continue
            if link.get("refdomain") == "doc":  # a Markdown file, without its suffix
                target = target + ".md" if target.startswith("/") else ""
            elif target.startswith("/"):
                continue
            file, _, fragment = target.partition("#")
            anchor = anchor or fragment
            # A link in an included file is relative to that file.
            folders = [
                docs / Path(self.env.docname).parent,
                Path(get_node_source(link) or docs).resolve().parent,
            ]
            paths = [(folder / file).resolve() for folder in folders]
            path = next((path for path in paths if path.exists()), paths[0])
            if not file or path.is_relative_to(docs) or not path.is_relative_to(CHECKOUT):
                continue
            if not path.exists():
                raise ExtensionError(f"{self.env.docname}: {target} does not exist")
            text = link.astext() or path.relative_to(CHECKOUT).as_posix()
            base = self.config.repository
            if base:
                uri = f"{base}/blob/main/{path.relative_to(CHECKOUT).as_posix()}" + (
                    f"#{anchor}" if anchor else ""
                )
                new = nodes.reference("", "", refuri=uri, internal=False)
            else:
                new = nodes.inline()
            new += link.children or nodes.Text(text)
            if not new.astext():
                new += nodes.Text(text)
            link.replace_self(new)


def setup(app) -> dict:
    """Registers the extension with Sphinx."""
    app.add_config_value("repository", "", "html")
    app.add_transform(CheckoutLinks)
    return {"parallel_read_safe": True}
