"""All pages of the site, as Sphinx reads them: those of the checkout, and those made of the code."""

from __future__ import annotations

import json
from pathlib import Path

from difftool.components import KINDS
from website import api, commands, contents, gallery, kinds
from website.markdown import fenced
from website.places import INDEX, ROOT, Pages, page_of

LANGUAGES = {".py": "python", ".toml": "toml"}
MADE = {"First steps": ["gallery"], "Reference": ["commands/index", "components", "api/index"]}
"""Pages that are made of the code, by the part of the contents at whose beginning they stand."""


def write(folder: Path) -> list[str]:
    """Write all pages into a folder, and return what is wrong with them."""
    pages = Pages(folder)
    pages.problems += [
        f"{file}: no row of an index names it ({INDEX} for a page of docs)" for file in contents.unlisted()
    ]
    _made_of_the_code(pages)
    pages.write("index", pages.moved(contents.read("README.md"), "README.md") + _contents())
    pages.write("documentation", "---\norphan: true\n---\n\n" + pages.moved(contents.read(INDEX), INDEX))
    for file in contents.listed():
        if file.endswith(".md") and (name := page_of(file)) not in pages.written:
            below = contents.tree([*map(page_of, contents.children(file))]) if contents.children(file) else ""
            pages.write(name, pages.moved(contents.read(file), file) + below)
    for file in sorted({*pages.linked, *contents.listed()}):
        if not file.endswith(".md"):
            pages.write(page_of(file), _source(file, pages))
    _forget(folder, pages.written)
    return pages.problems


def _made_of_the_code(pages: Pages) -> None:
    found, examples = commands.commands(), commands.examples()
    below = contents.tree([f"commands/{one.name}" for one in found])
    pages.write("commands/index", commands.overview(found) + below)
    for one in found:
        pages.write(f"commands/{one.name}", commands.page(one, examples))
    bases = KINDS.values()
    overview = kinds.overview(lambda base: f"[All options of {kinds.title(base).lower()}](/kinds/{base.plural()}.md)")
    pages.write("components", overview + contents.tree([f"kinds/{base.plural()}" for base in bases]))
    for base in bases:
        pages.write(f"kinds/{base.plural()}", kinds.page(base))
    groups = api.groups()
    pages.write("api/index", api.overview(groups) + contents.tree([group.page for group in groups]))
    for group in groups:
        pages.write(group.page, api.page(group))
    pages.write("gallery", gallery.page(pages))


def _contents() -> str:
    trees = []
    for part in contents.parts():
        made = MADE.get(part.title, [])
        written = [page for file in part.files if (page := page_of(file)) not in made]
        trees.append(contents.tree([*made, *written], part.title))
    return "".join(trees)


def _source(file: str, pages: Pages) -> str:
    """Return a page that shows a file of the checkout."""
    path = ROOT / file
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return pages.moved(_notebook(text), file)
    hidden = "orphan: true\n" + ("nosearch: true\n" if "test" in path.name else "")
    return f"---\n{hidden}---\n\n# {path.name}\n\n`{file}`\n\n{fenced(LANGUAGES.get(path.suffix, 'text'), text)}\n"


def _notebook(text: str) -> str:
    """Return the cells of a notebook as a page."""
    cells = json.loads(text)["cells"]
    sources = ((cell["cell_type"], "".join(cell["source"])) for cell in cells)
    return "\n\n".join(source if kind == "markdown" else fenced("python", source) for kind, source in sources) + "\n"


def _forget(folder: Path, written: set[str]) -> None:
    """Delete pages of an earlier build that are no more."""
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).with_suffix("").as_posix() not in written:
            path.unlink()
