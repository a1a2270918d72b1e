"""Sphinx extension: every executed page can be downloaded as a notebook and as a script, linked below its title."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook

FOLDER = "downloads"
ROLES = re.compile(r"\{(?:func|class|meth|mod|data|attr|doc)\}`~?(?:([^`<]+) <[^`]+>|([^`]+))`")


def notebook(source: str) -> nbformat.NotebookNode:
    """Return the notebook of a page written in MyST Markdown, without outputs."""
    made = read_myst_markdown_notebook(source)
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for cell in made.cells:
        cell.metadata = {}
        if cell.cell_type == "markdown":
            cell.source = ROLES.sub(_name, cell.source)
    return made


def _name(role: re.Match[str]) -> str:
    return role[1] or f"`{role[2]}`"


def script(made: nbformat.NotebookNode) -> str:
    """Return the code of a notebook as a script, its text as comments."""
    parts = []
    for cell in made.cells:
        lines = cell.source.strip().splitlines()
        if cell.cell_type == "code":
            parts.append("\n".join(line for line in lines if not line.lstrip().startswith("%")))
        else:
            parts.append("\n".join(f"# {line}".rstrip() for line in lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def is_executed(source: str) -> bool:
    """Return whether a page has code cells."""
    return source.startswith("---") and "mystnb" in source.split("---", 2)[1] and "{code-cell}" in source


def add_links(app: Any, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Put the links to the notebook and the script below the title of an executed page, and write both files."""
    source = Path(app.srcdir, f"{page}.md")
    if tree is None or not source.is_file() or not is_executed(text := source.read_text()):
        return
    made = notebook(text)
    target = Path(app.outdir, FOLDER, page)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, f"{target}.ipynb")
    Path(f"{target}.py").write_text(script(made))
    up = "../" * page.count("/")
    links = (
        f'<p class="downloads">Download this page: <a href="{up}{FOLDER}/{page}.ipynb" download>notebook</a>, '
        f'<a href="{up}{FOLDER}/{page}.py" download>script</a></p>'
    )
    context["body"] = context["body"].replace("</h1>", "</h1>" + links, 1)


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", add_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
