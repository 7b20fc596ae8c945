"""The page of the site that each file of the checkout becomes, and the links between them."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
PICTURES = (".png", ".gif", ".jpg", ".webp", ".svg")
INDEX = "docs/README.md"
FOLDERS = {"examples/papers": "docs/papers.md"}
"""The pages that describe folders without a README."""

FILE = re.compile(r"[\w./-]+\.md|examples/\w+")
"""A text of a link that is the name of a file."""

FENCE = r"^ *(?P<fence>```+)(?P<language>\w*)\n(?P<code>.*?)^ *(?P=fence)$"
LINK = r"\[(?P<text>[^\[\]]*)\]\((?P<link>[^)\s]+)\)"
SOURCE = r"(?<= src=\")(?P<source>[^\"]+)(?=\")"
MARKUP = re.compile(rf"{FENCE}|`[^`\n]+`(?!`)|{LINK}|{SOURCE}", re.DOTALL | re.MULTILINE)


def page_of(file: str) -> str:
    """Return the name of the page that a file of the checkout becomes, without a suffix."""
    if not file.endswith(".md"):
        return f"source/{file}"
    if file == "README.md":
        return "index"
    if file == INDEX:
        return "documentation"
    name = file.removesuffix(".md").removeprefix("docs/").removeprefix("examples/").lower()
    folder = name.removesuffix("/readme")
    return f"{folder}/index" if folder in ("tutorials", "plugins") and folder != name else folder


@dataclass
class Pages:
    """Pages as they are written: the folder that they go to, and what is wrong with them."""

    folder: Path
    problems: list[str] = field(default_factory=list)
    linked: set[str] = field(default_factory=set)
    """The files of the checkout to which written pages link."""
    written: set[str] = field(default_factory=set)
    """The names of the pages."""

    def write(self, name: str, text: str) -> None:
        """Write a page, unless it is there already."""
        self.written.add(name)
        path = self.folder / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # Sphinx reads what is new
            path.write_text(text, encoding="utf-8")

    def moved(self, text: str, file: str) -> str:
        """Return the text of a file of the checkout with links and pictures as the site has them."""

        def replaced(match: re.Match[str]) -> str:
            if match["source"]:
                return self._target(match["source"], file)
            if match["link"]:
                named = FILE.fullmatch(match["text"]) and resolved(file, match["link"]) != file
                text = "" if named else match["text"]  # the site names pages by their titles
                return f"[{text}]({self._target(match['link'], file)})"
            if match["language"] == "console" and not match["code"].startswith("$ "):
                return match[0].replace("console", "bash", 1)  # commands without a prompt
            return match[0]

        return MARKUP.sub(replaced, text)

    def _target(self, target: str, file: str) -> str:
        """Return the place on the site to which a link of a file leads."""
        if re.match(r"\w+:|#", target):
            return target
        path, hash_, anchor = target.partition("#")
        found = resolved(file, path)
        if found is None:
            self.problems.append(f"{file}: there is no {target}")
            return target
        if found.endswith(PICTURES):
            return self.picture(found)
        self.linked.add(found)
        return f"/{page_of(found)}.md{hash_}{anchor}"

    def picture(self, file: str) -> str:
        """Copy a picture of the checkout, and return its place on the site."""
        place = self.folder / "pictures" / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, place)
        return f"/pictures/{file}"


def resolved(file: str, target: str) -> str | None:
    """Return the file of the checkout to which a link of another leads, or None if there is none."""
    path = (ROOT / file).parent.joinpath(target).resolve()
    if not path.is_relative_to(ROOT) or not path.exists():
        return None
    place = PurePosixPath(path.relative_to(ROOT).as_posix())
    if not path.is_dir():
        return str(place)
    return FOLDERS.get(str(place)) or resolved(file, f"{target}/README.md")
