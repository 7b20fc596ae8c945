"""The documentation site: what its pages are made of. `make docs` builds all of it, and checks every link."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from difftool.components import KINDS
from difftool.options import fields
from difftool.testing import invoke

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "website").is_dir(), reason="the site is not beside the tests")


@pytest.fixture(scope="module")
def website() -> Any:
    """The package, which is no part of what is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from website import api, commands, contents, gallery, kinds, links, places

        modules = (api, commands, contents, gallery, kinds, links, places)
        yield type("Website", (), {module.__name__.rpartition(".")[2]: module for module in modules})


def test_an_index_names_every_page(website: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert website.contents.unlisted() == []
    index = website.contents.read("docs/README.md").replace("| [runs.md](runs.md) |", "| runs.md |")
    monkeypatch.setattr(website.contents, "read", lambda file: index if file == "docs/README.md" else "")
    assert "docs/runs.md" in website.contents.unlisted()


def test_links_of_the_checkout_become_links_of_the_site(website: Any, tmp_path: Path) -> None:
    pages = website.places.Pages(tmp_path)
    text = "[a](runs.md#stopping) [b](../README.md) `[c](d.md)` [e](https://f.org) [g](../CHANGELOG.md)"
    moved = "[a](/runs.md#stopping) [b](/index.md) `[c](d.md)` [e](https://f.org) [g](/changelog.md)"
    assert pages.moved(text, "docs/data.md") == moved
    assert pages.moved("![h](images/grid.png)", "docs/data.md") == "![h](/pictures/docs/images/grid.png)"
    assert (tmp_path / "pictures/docs/images/grid.png").is_file()
    assert pages.problems == []
    pages.moved("[i](nowhere.md)", "docs/data.md")
    assert pages.problems == ["docs/data.md: there is no nowhere.md"]


@pytest.mark.parametrize("name", ["train", "sample", "info", "new-plugin"])
def test_the_page_of_a_command_has_the_options_of_its_help(website: Any, name: str) -> None:
    (command,) = (one for one in website.commands.commands() if one.name == name)
    text = website.commands.page(command, {})
    shown = set(re.findall(r"^\| \[?`(--[\w-]+)`", text, re.MULTILINE))
    options = set(re.findall(r"^│ (--[\w-]+)[ ,]", invoke(name, "--help").out, re.MULTILINE)) - {"--help"}
    assert shown == options
    assert "[default" not in text


def test_the_pages_of_kinds_have_every_option(website: Any) -> None:
    for base in KINDS.values():
        text = website.kinds.page(base)
        for cls in website.kinds.built_in(base):
            assert f"\n## {cls.name}\n" in text
            for f in fields(cls):
                name = f.flag.upper() if f.details.positional else f"{f.flag}`"
                assert re.search(rf"\| `(-\w`, `)?(--{base.kind}\.(no-)?|--)?{re.escape(name)}", text), (cls, f.flag)


def test_public_names_are_described(website: Any) -> None:
    groups = website.api.groups()
    text = "".join(map(website.api.page, groups))
    for group in groups:
        for name in group.names:
            assert re.search(rf"^:+{{py:\w+}} {group.module.__name__}\.{name}\b", text, re.MULTILINE), name
    assert " object at 0x" not in text
    assert "| {py:obj}`~difftool.Sampler` | The sampler, which goes from noise to data. |" in website.api.overview(
        groups
    )


def test_pictures_stand_beside_the_commands_that_drew_them(website: Any) -> None:
    found = {one.file: one for file in ("README.md", *website.contents.listed()) for one in _pictures(website, file)}
    pictures = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "images").iterdir()}
    assert pictures <= found.keys()
    assert all(found[file].commands for file in pictures)
    assert "--out grid.png" in found["docs/images/grid.png"].commands[0]
    assert "--interpolate" in found["docs/images/interpolation.png"].commands[0]
    assert found["docs/images/performance.png"].commands == ("make bench",)
    tutorials = "examples/tutorials"
    assert not found[f"{tutorials}/4-linear-attention/cosine.png"].commands
    assert found[f"{tutorials}/2-colour-gradients/panel.png"].commands[0].startswith("difftool train")


def test_a_command_in_the_gallery_is_broken_between_its_options(website: Any) -> None:
    command = (
        "difftool noise --dataset gradients --dataset.size 5 \\\n    --at 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"
    )
    assert website.gallery.folded(command) == (
        "difftool noise --dataset gradients \\\n  --dataset.size 5 \\\n  --at 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"
    )


def _pictures(website: Any, file: str) -> list[Any]:
    return [*website.gallery.pictures(file)] if file.endswith(".md") else []


def test_links_that_lead_nowhere_are_found(website: Any, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="#top"></a><a href="b.html#x"></a><a href="c.html"></a><a href="http://"></a>'
        '<script src="https://cdn.example.org/x.js"></script><img src="data:,"><a href="https://example.org"></a>'
    )
    (tmp_path / "b.html").write_text('<a href="a.html#top"></a>')
    assert sorted(website.links.problems(tmp_path)) == [
        "a.html: b.html#x leads to no place of that page",
        "a.html: c.html leads nowhere",
        "a.html: http:// is not an address",
        "a.html: loads https://cdn.example.org/x.js",
    ]
