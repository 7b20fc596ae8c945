"""docs/papers.md has a row for each paper, and each row is true: its file, its lines, its test, and commands that run.

Run this file to write the numbers of lines and rows into the page: `PYTHONPATH=tests python tests/papers/test_page.py`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Run
from test_docs import GENERATED, commands, props, smaller

import difftool

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "papers.md"
PAPERS = ROOT / "examples" / "papers"
FILES = sorted(path for path in PAPERS.glob("*") if path.suffix in (".py", ".toml"))
CANNOT = "What cannot be said"
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
YEAR = re.compile(r"\b20[12]\d\b")
LONGEST = 115
"""The most lines of a file that can be read in one go."""
pytestmark = pytest.mark.skipif(not PAPERS.is_dir(), reason="the examples are not beside the tests")


@dataclass(frozen=True)
class Row:
    """A row of a table: its theme and its cells."""

    theme: str
    cells: tuple[str, ...]

    @property
    def paper(self) -> str:
        return self.cells[0]

    @property
    def expressed(self) -> bool:
        return self.theme != CANNOT


def rows() -> Iterator[Row]:
    theme = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            theme = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| paper |"):
            yield Row(theme, tuple(cell.strip() for cell in line.strip("|").split(" | ")))


ROWS = list(rows()) if PAGE.is_file() else []
EXPRESSED = [row for row in ROWS if row.expressed]


def linked(cell: str) -> tuple[str, Path]:
    """Return the words and the path of the one link in a cell."""
    ((words, target),) = LINK.findall(cell)
    return words, (PAGE.parent / target).resolve()


def sources(path: Path) -> list[Path]:
    """Return the files of an example: a script, a config, or the modules of a package."""
    return [path] if path.is_file() else sorted((path / "src").rglob("*.py"))


def lines_of(path: Path) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in sources(path))


def with_numbers(text: str) -> str:
    """Return the page with its numbers of lines and of rows."""
    for row in EXPRESSED:
        _, path = linked(row.cells[2])
        start = f"{' | '.join(row.cells[:3])} | "
        text = re.sub(
            re.escape(start) + r"\d+ \|", lambda _, start=start, path=path: f"{start}{lines_of(path)} |", text
        )
    return re.sub(r"\d+ of \d+ are expressed", f"{len(EXPRESSED)} of {len(ROWS)} are expressed", text)


def test_each_file_has_one_row() -> None:
    expressed = [linked(row.cells[2])[1] for row in EXPRESSED]
    assert sorted(path for path in expressed if path.parent == PAPERS) == FILES
    assert len(set(expressed)) == len(expressed)


def test_the_page_has_the_numbers_of_lines_and_rows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "are expressed" in text
    assert with_numbers(text) == text, "PYTHONPATH=tests python tests/papers/test_page.py writes them anew"
    assert len({row.paper for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", EXPRESSED, ids=lambda row: row.paper)
def test_a_row_is_true(row: Row) -> None:
    paper, change, by, _, test = row.cells
    assert YEAR.search(paper)
    assert change.endswith(".")
    words, path = linked(by)
    assert words == path.name
    assert path.is_relative_to(ROOT / "examples") or path.is_relative_to(ROOT / "plugins")
    _, where = linked(test)
    text = where.read_text(encoding="utf-8")
    assert re.search(r"^def test_", text, re.MULTILINE)
    assert path.stem in text or path.stem.replace("-", "_") in text, f"{where.name} says nothing of {path.stem}"


@pytest.mark.parametrize("row", [row for row in ROWS if not row.expressed], ids=lambda row: row.paper)
def test_a_row_of_what_cannot_be_said_has_a_reason(row: Row) -> None:
    paper, change, reason = row.cells
    assert YEAR.search(paper)
    assert change.endswith(".")
    assert len(reason.split()) >= 8, "say which part of the contract stands in the way"


def heading(path: Path) -> str:
    """Return the text at the top of a file, which says what the paper is and how to run it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    tomllib.loads(text)
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines() if line.startswith("#"))


def steps(path: Path) -> list[list[str]]:
    """Return the commands in the heading of a file."""
    text = re.sub(r"\\\n\s*", " ", heading(path))
    return commands("\n".join(line for line in text.splitlines() if line.startswith("    ")))


def small(words: list[str]) -> list[str]:
    """Return a command with fewer steps and samples, whose files of the checkout are found."""
    less = [str(ROOT / word) if word.startswith("examples/") else word for word in smaller(words)]
    if "--config" in less and "--dataset.n" in less:
        config = tomllib.loads(Path(less[less.index("--config") + 1]).read_text(encoding="utf-8"))
        if config.get("dataset", {}).get("name", GENERATED[0]) not in GENERATED:
            at = less.index("--dataset.n")
            del less[at : at + 2]
    return less


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_can_be_read_in_one_go(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert YEAR.search(heading(path).partition("\n\n")[0]), "the first paragraph names the paper and its year"
    assert steps(path), "the heading holds commands, indented by four spaces"
    assert any(f"examples/papers/{path.name}" in words for words in steps(path))


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix == ".py"], ids=lambda path: path.name)
def test_a_script_uses_the_public_names_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0].startswith("difftool"):
            assert node.module == "difftool"
            assert {alias.name for alias in node.names} <= set(difftool.__all__)
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            assert not any(name.startswith("difftool") and name != "difftool" for name in modules)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            top = (module or "").partition(".")[0]
            assert top in {*sys.stdlib_module_names, "difftool", "torch", "numpy", "PIL", "scipy"}, top


@pytest.mark.slow
@pytest.mark.usefixtures("plugin_manager")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_its_commands_run(path: Path, tmp_path: Path, run: Run) -> None:
    """The commands in the heading run as they stand, with fewer steps and samples."""
    props(tmp_path)
    for words in steps(path):
        program, *rest = small(words)
        if program == "difftool":
            outcome = run(*rest)
            assert outcome.code == 0, f"{' '.join(words)}\n{outcome.err}"
        else:
            assert program == "python"
            subprocess.run([sys.executable, *rest], check=True, capture_output=True)


if __name__ == "__main__":
    PAGE.write_text(with_numbers(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
