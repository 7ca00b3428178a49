# SPDX-License-Identifier: Apache-2.0
"""Links of a page to files of the checkout that are not pages: checked, and turned into links to the repository."""

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform

CHECKOUT = Path(__file__).resolve().parents[2]


class CheckoutLinks(SphinxTransform):
    """Runs before links are resolved."""

    default_priority = 5

    def apply(self, **kwargs) -> None:
        """Replaces every link that leads out of docs/."""
        docs = CHECKOUT / "docs"
        for link in list(self.document.findall(lambda n: isinstance(n, addnodes.pending_xref | addnodes.download_reference
                                                                        | nodes.reference))):
            target = link.get("reftarget") or link.get("refuri") or ""
            if re.match(r"[a-z]+:|#|/|$", target):
                continue
            file, _, anchor = target.partition("#")
            # Of an included file, `relative-docs` has already made the link relative to this page.
            path = (docs / Path(self.env.docname).parent / file).resolve()
            if path.is_relative_to(docs) or not path.is_relative_to(CHECKOUT):
                continue
            if not path.exists():
                raise ExtensionError(f"{self.env.docname}: there is no {target}")
            text = link.astext() or path.relative_to(CHECKOUT).as_posix()
            base = self.config.repository
            if base:
                uri = f"{base}/blob/main/{path.relative_to(CHECKOUT).as_posix()}" + (f"#{anchor}" if anchor else "")
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
