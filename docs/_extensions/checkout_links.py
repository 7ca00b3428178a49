# SPDX-License-Identifier: Apache-2.0
"""Links of a page to files of the checkout that are not pages: checked, and turned into links to the repository."""

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform
from sphinx.util.nodes import get_node_source

CHECKOUT = Path(__file__).resolve().parents[2]


class CheckoutLinks(SphinxTransform):
    """Runs before links are resolved."""

    default_priority = 5

    def apply(self, **kwargs) -> None:
        """Replaces every link that leads out of docs/."""
        docs = CHECKOUT / "docs"
        kinds = addnodes.pending_xref | addnodes.download_reference | nodes.reference
        for link in list(self.document.findall(lambda n: isinstance(n, kinds))):
            target, anchor = (
                link.get("reftarget") or link.get("refuri") or "",
                link.get("reftargetid") or "",
            )
            if re.match(r"[a-z]+:|#|$", target):
                continue
            if link.get("refdomain") == "doc":  # Markdown anywhere, its suffix taken off
                target = target + ".md" if target.startswith("/") else ""
            elif target.startswith("/"):
                continue
            file, _, fragment = target.partition("#")
            anchor = anchor or fragment
            # A link of an included file begins where that file lies.
            begins = [
                docs / Path(self.env.docname).parent,
                Path(get_node_source(link) or docs).resolve().parent,
            ]
            paths = [(begin / file).resolve() for begin in begins]
            path = next((path for path in paths if path.exists()), paths[0])
            if not file or path.is_relative_to(docs) or not path.is_relative_to(CHECKOUT):
                continue
            if not path.exists():
                raise ExtensionError(f"{self.env.docname}: there is no {target}")
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
    """Is called by Sphinx."""
    app.add_config_value("repository", "", "html")
    app.add_transform(CheckoutLinks)
    return {"parallel_read_safe": True}
