"""The check of the built site: each link leads to a page and a place on it, and a page asks for nothing elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "source": "src", "iframe": "src", "video": "src"}
"""What a browser loads by itself, by the tag of the element."""


class Page(HTMLParser):
    """The places of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places, self.links, self.loads = set[str](), list[str](), list[str]()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.places |= {attributes[name] for name in ("id", "name") if name in attributes}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif (where := attributes.get(LOADED.get(tag, ""))) is not None:
            self.loads.append(where)


def problems(site: Path) -> list[str]:
    """Return what is wrong with the links of a built site, a line each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        found += [f"{name}: loads {where}" for where in page.loads if _outside(where)]
        for link in {*page.links, *(where for where in page.loads if not _outside(where))}:
            found += [f"{name}: {link} {fault}" for fault in _faults(link, path, pages)]
    return found


def _outside(link: str) -> bool:
    return urlsplit(link).scheme not in ("", "data") or link.startswith("//")


def _faults(link: str, path: Path, pages: dict[Path, Page]) -> list[str]:
    if any(letter.isspace() for letter in link):
        return ["holds white space"]
    parts = urlsplit(link)
    if parts.scheme in ("data", "mailto"):
        return []
    if _outside(link):
        return [] if parts.scheme in ("http", "https") and "." in parts.netloc else ["is not an address"]
    target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    if not target.is_file():
        return ["leads nowhere"]
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
        return ["leads to no place of that page"]
    return []
