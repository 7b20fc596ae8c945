"""Every code block of the README and of docs/ is run, page by page, in the order in which a reader would.

Commands run as they stand, but for their size: what takes minutes is given fewer steps and samples. A block that comes
after the name of a file and a colon is written into that file. Run this file to write the laws into docs/laws.md:
`python tests/test_docs.py`.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from environment import Environment

from difftool.components import KINDS
from difftool.testing import common, laws_of
from difftool.testing.examine import PLUGIN_LAWS
from difftool.testing.laws import name_of, text_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
"""A page whose commands run these very tests, and need only find them."""
pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the docs are not beside the tests")

LAWS = re.compile(r"(?<=<!-- laws -->\n).*?(?=<!-- end of laws -->)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the file that the line before it names."""

    language: str
    text: str
    file: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        before = text[: match.start()]
        named = re.search(r"`(\w[\w./-]*)`:\s*$", before)
        found.append(Block(match[1], match[2], named[1] if named else "", before.count("\n") + 1))
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a console block, word by word: joined where a line goes on, without comments."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


# ── what makes a command small ──────────────────────────────────────────────────────────────────

GENERATED = ("swiss-roll", "two-moons", "gaussian-mixture", "gradients", "rings")
"""Datasets that are made in the size that one asks for."""
SHELL = 'difftool() {{ "{python}" -m difftool "$@"; }}; srun() {{ "$@"; }}\n'
"""The programs that scripts in pages call."""
NOT_HERE = ("make ", "python -m benchmarks")
"""Runs these very tests, or takes many minutes."""


def smaller(words: Sequence[str]) -> list[str]:
    """The same command with less to do."""
    if words[0] == "torchrun":
        at = words.index("difftool")
        return [*words[:at], *smaller(words[at:])]
    less = list(words)
    command = less[1] if less[0] == "difftool" and len(less) > 1 else ""
    if command == "train" and "--help" not in less:
        if "--resume" not in less:
            limit(less, "--steps", 4)
            limit(less, "--batch-size", 8)
            less += ["--preview-every", "0", "--threads", "1"]
            if value(less, "--dataset", "swiss-roll") in GENERATED or (
                "--backbone" in less and "--dataset" not in less
            ):
                less += ["--dataset.n", "64"]
                if "--held-out" in less:
                    limit(less, "--held-out", 16)
        elif "--steps" in less:
            limit(less, "--steps", 8)
    elif command == "sample":
        limit(less, "--steps", 4)
        limit(less, "-n", 4, unless="--interpolate")
    elif command == "evaluate":
        limit(less, "--steps", 2)
        limit(less, "-n", 24)
    elif command == "compare":
        limit(less, "--calls", 5)
        if not {"--metric", "--seeds"}.intersection(less):  # of one run alone
            limit(less, "--reference", 10)
        limit(less, "-n", 10)
    elif command == "sweep" and "--print" not in less:
        less = [re.sub(r"=0\.\.\d+$", "=0..0", word) for word in less]
        known = {"steps": 4, "batch-size": 8, "dataset.n": 64, "held-out": 8, "preview-every": 0, "threads": 1}
        less = [word for word in less if word.partition("=")[0] not in known]
        less = [word for word, after in zip(less, [*less[1:], ""], strict=True) if (word, after[:2]) != ("--set", "--")]
        less += [word for name, value in known.items() for word in ("--set", f"{name}={value}")]
    if "--oracle" in less and value(less, "--oracle", "") == "ideal":
        less += ["--dataset.n", "200"]
    return less


def value(words: list[str], flag: str, default: str) -> str:
    return words[words.index(flag) + 1] if flag in words else default


def limit(words: list[str], flag: str, most: int, *, unless: str = "") -> None:
    """Give the flag a small value."""
    if unless and unless in words:
        return
    if flag in words:
        words[words.index(flag) + 1] = str(most)
    else:
        words += [flag, str(most)]


# ── pages ───────────────────────────────────────────────────────────────────────────────────────


def props(folder: Path) -> None:
    """What readers have of their own: photographs, a mask, a folder of them in two classes, a table."""
    from PIL import Image

    for name, colour in (("cat", (200, 120, 40)), ("dog", (40, 90, 160))):
        (folder / "my-photos" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (50, 40), tuple(min(255, c + 9 * i) for c in colour)).save(
                folder / "my-photos" / name / f"{i}.jpg"
            )
            (folder / "my-photos" / name / f"{i}.txt").write_text(f"a photo of a {name}")
    rows = [f"{i % 7}.5,{i % 5}.25,{('setosa', 'virginica')[i % 2]}" for i in range(20)]
    (folder / "my-table.csv").write_text("\n".join(["length,width,species", *rows]))
    Image.new("RGB", (48, 32), (90, 160, 70)).save(folder / "photo.png")
    Image.new("RGB", (48, 32), (90, 160, 70)).save(folder / "photo.jpg")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 32, 16))
    mask.save(folder / "mask.png")


RUN = {"README.md": "runs/image-folder-unet-001"}
"""What stands for RUN on a page."""


def here(page: Path, word: str) -> str:
    """A word of a command, where the page's own run and the checkout's examples are meant."""
    if word == "RUN":
        return RUN[page.name]
    return str(ROOT / word) if word.startswith("examples/") else word


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The environment of all pages, which forks in place of importing torch again."""
    place = Environment.make(tmp_path_factory.mktemp("pages"))
    with place.forking():
        yield place


MODULES = {"exchange.md": ("diffusers.models", "diffusers.schedulers")}
"""Modules that take long to import, and that most commands of a page import."""


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(everywhere: Environment, page: Path, tmp_path: Path) -> None:
    found = blocks(page)
    if not found:
        pytest.skip("no code on this page")
    with contextlib.ExitStack() as stack:
        if any(block.language == "console" and "pip install" in block.text for block in found):  # for this page alone
            place = Environment.make(tmp_path)
            stack.enter_context(place.forking())
        else:
            place = replace(everywhere, folder=tmp_path)
        place.forks[0].modules = MODULES.get(page.name, ())
        props(place.folder)
        for block in found:
            run(place, page, block)


def run(place: Environment, page: Path, block: Block) -> None:
    """Run a block as a reader of the page would, or write it into the file that it names."""
    where = f"{page.name}:{block.line}"
    if block.file:
        (place.folder / block.file).write_text(block.text)
    if block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "python" and not block.file:
        done = place.run("python", "-c", block.text)
        assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
    elif block.language == "bash":
        script = SHELL.format(python=place.python) + re.sub(r"--steps \d+", "--steps 3", block.text)
        done = subprocess.run(["bash", "-c", script], cwd=place.folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
    elif block.language == "console":
        for words in commands(block.text):
            if not shlex.join(words).startswith(NOT_HERE):
                done = place.run(*(here(page, word) for word in smaller(words)))
                assert done.returncode == 0, f"{where}: {shlex.join(words)}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
def test_commands_of_contributing_find_tests() -> None:
    (block,) = (block for block in blocks(CONTRIBUTING) if block.language == "console")
    for words in commands(block.text):
        assert words[0] == ".venv/bin/python"
        done = subprocess.run(
            [sys.executable, *words[1:], "-n", "0", "--collect-only", "-q"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"


def test_the_makefile_has_every_target_that_a_page_names() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in (*PAGES, CONTRIBUTING):
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`make ([a-z-]+)`", text) + re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= targets, page.name


@pytest.mark.parametrize("page", [*PAGES, CONTRIBUTING], ids=lambda page: page.name)
def test_blocks_say_what_they_are(page: Path) -> None:
    """No code is out of reach of these tests: it is fenced, and has a language."""
    assert {block.language for block in blocks(page)} <= {"console", "bash", "python", "toml", "latex", ""}
    for block in blocks(page):
        assert block.language or "/" in block.text, f"{page.name}:{block.line}: a tree of files, or code of no language"
    outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"^ {4}(difftool|pip|python|import|from) ", outside, re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, CONTRIBUTING], ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [*re.findall(r"\]\(([^)#]+)[^)]*\)", text), *re.findall(r'src="([^"]+)"', text)]
    for target in targets:
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


# ── the laws ────────────────────────────────────────────────────────────────────────────────────

HEADINGS = {
    "features": "set of features",
    "schedule": "noise schedule",
    "timestep-sampling": "timestep sampling",
    "weighting": "loss weighting",
}


def laws() -> Iterator[str]:
    yield from _table("Every component", common.LAWS)
    for kind in KINDS:
        if own := laws_of(kind)[len(common.LAWS) :]:
            title = HEADINGS.get(kind, kind)
            yield from _table(f"A{'n' if title[0] in 'aeiou' else ''} {title}", own)
    yield from _table("A package as a whole", PLUGIN_LAWS)


def _table(heading: str, rows: Sequence[object]) -> Iterator[str]:
    yield f"\n## {heading}\n\n| law | how it is checked |\n|---|---|\n"
    for law in rows:
        yield f"| {name_of(law)} | {text_of(law)} |\n"  # type: ignore[arg-type]


def test_every_law_is_on_the_page() -> None:
    page = ROOT / "docs" / "laws.md"
    written = LAWS.search(page.read_text(encoding="utf-8"))
    assert written is not None
    assert written[0] == "".join(laws()) + "\n", "python tests/test_docs.py writes them anew"


def test_every_hook_is_on_the_page() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    for base in KINDS.values():
        assert f"| `{base.hook}` | `{base.__name__}` |" in text


def test_every_kind_has_an_example_that_is_run() -> None:
    pages = (ROOT / "docs" / name for name in ("plugins.md", "plugin-kinds.md"))
    code = "".join(block.text for page in pages for block in blocks(page) if block.language == "python")
    for base in KINDS.values():
        assert re.search(rf"^class \w+\({base.__name__}, name=", code, re.MULTILINE), base.__name__


def test_ruff_has_nothing_to_say_of_python_on_the_pages(tmp_path: Path) -> None:
    if shutil.which("ruff") is None and not Path(sys.executable).with_name("ruff").exists():
        pytest.skip("ruff is not installed")
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                (tmp_path / f"{page.stem}_{block.line}.py").write_text(block.text)
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run(
        [ruff, "check", "--isolated", "--select", "E4,E7,E9,F,B", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


if __name__ == "__main__":
    path = ROOT / "docs" / "laws.md"
    path.write_text(LAWS.sub(lambda _: "".join(laws()) + "\n", path.read_text(encoding="utf-8")), encoding="utf-8")
