"""What the site adds to Sphinx: formulas without a script, and links between its pages."""

from __future__ import annotations

import posixpath
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from spcl_lib.runs.notebooks import notebook_names
from spcl_lib.system import paths

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this; see `site`."""
    app.add_config_value("spcl_repository", None, "html")
    app.add_html_math_renderer("mathml", (_write_inline, None), (_write_block, None))
    app.connect("doctree-read", _link_files)
    app.connect("doctree-resolved", _link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write_inline(writer: Any, node: nodes.math) -> None:
    _write_formula(writer, node, "inline")


def _write_block(writer: Any, node: nodes.math_block) -> None:
    _write_formula(writer, node, "block")


def _write_formula(writer: Any, node: nodes.Element, display: str) -> None:
    from docutils import nodes
    from latex2mathml.converter import convert

    formula = convert(" ".join(node.astext().split()), display=display)
    writer.body.append(formula if display == "inline" else f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


def _link_files(app: Sphinx, doctree: nodes.document) -> None:
    """A link to a file of the project that is no page leads to the repository, or to nowhere."""
    from docutils import nodes
    from sphinx.addnodes import download_reference, pending_xref

    page = PurePosixPath(app.env.docname)
    for link in list(
        doctree.findall(lambda node: isinstance(node, pending_xref | download_reference))
    ):
        if link.get("reftype") != "myst" or link.get("refdomain") == "doc":
            continue
        path = posixpath.normpath(page.parent / link["reftarget"])
        if not (paths.project() / path).exists():
            continue  # Sphinx complains
        if f"{path}/README" in app.env.found_docs:
            address = app.builder.get_relative_uri(str(page), f"{path}/README")
        elif app.config.spcl_repository:
            address = app.config.spcl_repository.file(path)
        else:
            link.replace_self(link.children)
            continue
        link.replace_self(nodes.reference("", "", *link.children, refuri=address))


def _link_names(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """A name of a notebook, as code in a text, becomes a link to its page."""
    from docutils import nodes

    names = set(notebook_names())
    for literal in list(doctree.findall(nodes.literal)):
        name = PurePosixPath(literal.astext()).stem
        target = f"notebooks/{name}"
        inside = isinstance(literal.parent, nodes.reference | nodes.title)
        if name in names and " " not in literal.astext() and target != page and not inside:
            address = app.builder.get_relative_uri(page, target)
            link = nodes.reference("", "", literal.deepcopy(), internal=True, refuri=address)
            literal.parent.replace(literal, link)
