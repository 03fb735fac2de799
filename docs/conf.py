"""How the manual is built: sphinx-build -W -n docs docs/_build/html."""

import ast
import re
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.util.nodes import make_refnode

project = "quests_md"
author = "the quests_md developers"
copyright = f"2026, {author}"
release = version = version_of("quests_md")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
]
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


# All names in the source: what a docstring writes as `name` must be one of them.
_nodes = [node for path in Path("../quests_md").rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
_parameters = {node.arg for node in _nodes if isinstance(node, ast.arg)}
_names = {getattr(node, field, None) for node in _nodes for field in ("name", "id", "attr", "arg")}


def _find_object(app, env, node, shown):
    """Link `Name` to the class of that name, and `name` to a function; parameters have no place to link to."""
    target, domain = node["reftarget"], env.domains["py"]
    kinds = ("class", "exception", "method") if target[:1].isupper() else ("function",)
    found = [
        name
        for name, entry in domain.objects.items()
        if entry.objtype in kinds and name.endswith(f".{target}") and target not in _parameters
    ]
    if found:
        name = min(found, key=len)
        entry = domain.objects[name]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, shown, name)
    return shown if _names.issuperset(target.split(".")) else None


def setup(app):
    app.connect("missing-reference", _find_object)
    app.connect("autodoc-process-docstring", _bars)
