"""How ``make docs`` makes a site of the Markdown pages: Sphinx with MyST, from the repository's root.

The source folder is the repository, not ``docs/``: so links between pages are the same here and on a code host. What
Sphinx does not know (pictures, links to source files and folders) is ``tools/docs_site.py``.
"""

# ruff: noqa: INP001  (read by Sphinx, imported by nobody)
from __future__ import annotations

import os

import carrel

project = "Carrel"
author = "the authors of Carrel"
copyright = "the authors of Carrel, Apache-2.0"  # noqa: A001  (Sphinx's name)
release = version = carrel.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "tools.docs_site"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**.md",
    "clients/js/README.md",
    "examples/**.md",
    "k8s/README.md",
    "ops/README.md",
    "releases/README.md",
]
# Folders are walked unless they are named here, links to folders too.
exclude_patterns = [
    ".*",
    "build",
    "dist",
    "tests",
    "benchmarks",
    "conformance",
    "services",
    "servicekit",
    "gateway",
    "protos",
    "tools",
    "carrel",
    "images",
    "**/node_modules",
    "**/.*",
]
nitpicky = True
# Names of the standard library and of generated stubs have no page here.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!carrel\.).*"),
    (r"py:.*", r"carrel\.v1\..*"),
    (r"py:.*", r"carrel\..*\.(_\w+|T)"),
    (r"py:.*", r"carrel\.(agent_calls|testing\.services)\..*"),
]

myst_enable_extensions = ["colon_fence"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4
# JSON with "…" for what is left out is shown without colours.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"Carrel {release}"
html_static_path = ["site"]
html_css_files = ["carrel.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": False}

# Where the repository is to be read, as https://host/carrel/tree/main: links to source files and folders lead there.
# Without it files are copied beside the pages, and names of folders are no links.
carrel_source_url = os.environ.get("DOCS_SOURCE_URL", "")
