"""Sphinx configuration; the build reads nothing from the network."""

import sys
from pathlib import Path
from typing import Any

import scoresde

project = "scoresde"
author = "The scoresde authors"
copyright = "2026, The scoresde authors"
version = release = scoresde.__version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # a copy of MathJax in the site, so that equations show without a network
    "sphinx.ext.viewcode",
    "sphinx_design",
    "myst_nb",
    "downloads",
]
exclude_patterns = ["_build", "_extensions", "jupyter_execute", "tables"]

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # a page is executed again when its code changes
nb_execution_timeout = -1  # none: a busy machine changes the time alone
nb_render_markdown_format = "myst"
nb_execution_raise_on_error = True

html_theme = "furo"
html_title = f"scoresde {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]


def link_exported_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Link a name by whichever of its paths: ``scoresde.VP`` is documented as ``scoresde.sde.VP``."""

    def find(path: str) -> Any:
        module, _, name = path.rpartition(".")
        return getattr(sys.modules.get(module), name, None)

    target = node.get("reftarget", "")
    wanted = find(target)
    if wanted is None or not target.startswith("scoresde."):
        return None
    domain = env.get_domain("py")
    for path in domain.objects:
        if path.endswith("." + target.rpartition(".")[2]) and find(path) is wanted:
            return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], path, node, contnode)
    return None


def setup(app: Any) -> None:
    app.connect("missing-reference", link_exported_name)
