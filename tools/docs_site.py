"""What the site of ``make docs`` needs beyond Sphinx and MyST: pictures, links to what is no page, a front door.

Pages are written for a code host and are read there as they are. So a mermaid block becomes its drawing (light and
dark, ``tools/docs_pictures.py``), a link to a folder leads to the folder's README, and a link to a source file leads to
where the repository can be read (``carrel_source_url``), or to a copy of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final

from docutils import nodes  # type: ignore[import-untyped]  # its stubs are a package that nothing else needs
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tools.docs_pictures import DRAWN, ROOT, SHADES, drawn_name, title_of

__all__ = ["setup"]

_FRONT_DOOR: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Carrel</title>
<meta http-equiv="refresh" content="0; url={page}"><a href="{page}">Carrel's documentation</a></html>
"""


class Mermaid(SphinxDirective):
    """A mermaid block: its two drawings, of which the theme shows one."""

    has_content: ClassVar[bool] = True

    def run(self) -> list[nodes.Node]:
        """The images."""
        source = "\n".join(self.content)
        try:
            title = title_of(source)
        except ValueError as error:
            raise self.error(str(error)) from error
        images: list[nodes.Node] = []
        for shade in SHADES:
            file = DRAWN / drawn_name(source, shade)
            if not file.exists():
                raise self.error("this picture is not drawn yet: tools/docs_pictures.py says how")
            uri = "/" + file.relative_to(ROOT).as_posix()
            # The drawing by itself, for who wants it larger.
            whole = addnodes.download_reference(
                "", "", reftarget=uri, refdoc=self.env.docname, classes=[f"only-{shade}"]
            )
            whole += nodes.image(uri=uri, alt=title, classes=["drawn"])
            images.append(whole)
        frame = nodes.container(classes=["drawn-scroll"])
        frame += images
        return [frame]


def _beyond_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Links that lead to no page: to folders, and to files, which Sphinx would copy.

    A folder with a README leads to it. Others lead to the repository, where its address is known; where it is not,
    files are copied, and a folder's name is no link. What does not exist stays as it is, and MyST tells it.
    """
    folder = Path(doctree["source"]).parent
    for node in list(doctree.findall(addnodes.pending_xref)):
        path = _path(folder, str(node["reftarget"]))
        if node.get("reftype") == "myst" and path.is_dir() and path.is_relative_to(ROOT):
            readme = (path / "README.md").relative_to(ROOT).with_suffix("").as_posix()
            if readme in app.env.found_docs:
                node["reftype"], node["refdomain"], node["reftarget"] = "myst", "doc", readme
                node["reftargetid"] = None
            else:
                node.replace_self(_source_link(app, path, node.children))
    if app.config.carrel_source_url:
        for file in list(doctree.findall(addnodes.download_reference)):
            file.replace_self(_source_link(app, _path(folder, str(file["reftarget"])), file.children))


def _path(folder: Path, target: str) -> Path:
    return (ROOT / target.lstrip("/") if target.startswith("/") else folder / target).resolve()


def _source_link(app: Sphinx, path: Path, children: list[nodes.Node]) -> nodes.Node:
    base = str(app.config.carrel_source_url).rstrip("/")
    if not base:
        return nodes.inline("", "", *children)
    return nodes.reference("", "", *children, internal=False, refuri=f"{base}/{path.relative_to(ROOT).as_posix()}")


def _whole_sentence(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    lines: list[str],  # as Sphinx calls it
) -> None:
    """Docstrings of attributes are sentences: napoleon would take what stands before a colon for a type."""
    if what in {"attribute", "data", "property"}:
        lines.insert(0, "")


def _front_door(app: Sphinx, failure: Exception | None) -> None:
    """``index.html`` at the top leads to the first page, which lies below ``docs/``."""
    if failure is None and app.builder.format == "html":
        page = app.builder.get_target_uri(app.config.root_doc)
        (Path(app.outdir) / "index.html").write_text(_FRONT_DOOR.format(page=page), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.add_config_value("carrel_source_url", "", "env")
    app.add_directive("mermaid", Mermaid)
    app.connect("doctree-read", _beyond_pages)
    app.connect("autodoc-process-docstring", _whole_sentence, priority=400)
    app.connect("build-finished", _front_door)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
