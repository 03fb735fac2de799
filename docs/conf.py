"""How the manual is built: sphinx-build -W docs docs/_build/html."""

import re
from importlib.metadata import version as version_of

project = "quests_md"
author = "the quests_md developers"
copyright = f"2026, {author}"
release = version = version_of("quests_md")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx-mathjax-offline"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"quests_md {release}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Docstrings write `name` for what is defined here, and ``code`` for the rest.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what is taken and returned
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False


def _bars(app, what, name, obj, options, lines):
    """|dH| is an absolute value, and no substitution of reStructuredText."""
    lines[:] = [re.sub(r"(?<!\\)\|", r"\\|", line) for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", _bars)
