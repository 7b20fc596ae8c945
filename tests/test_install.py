"""What is published holds what the checkout holds, and is the same wherever it is built."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import difftool

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all((ROOT / name).exists() for name in ("pyproject.toml", "difftool", "plugins", ".git")),
        reason="needs the checkout",
    ),
]


def call(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(*folders: str) -> list[str]:
    """The checkout's files below these folders: tracked, or new and not ignored, and still there."""
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", *folders, cwd=ROOT).splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both distributions of the checkout, and in `again` both of the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, folder)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    build(unpacked, folder / "again")
    return folder


def build(source: Path, folder: Path) -> None:
    program = "import sys; from hatchling.build import *; build_sdist(sys.argv[1]); build_wheel(sys.argv[1])"
    call(sys.executable, "-c", program, folder, cwd=source)


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


def test_what_is_built_again_elsewhere_has_the_same_bytes(built: Path) -> None:
    """Also: the wheel of the source distribution is that of the checkout."""
    names = sorted(path.name for path in built.iterdir() if path.is_file())
    assert names == [f"difftool-{difftool.__version__}-py3-none-any.whl", f"difftool-{difftool.__version__}.tar.gz"]
    for name in names:
        assert (built / name).read_bytes() == (built / "again" / name).read_bytes()


def test_the_source_distribution_holds_what_the_repository_holds(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        packed = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert packed - {"PKG-INFO"} == {name for name in tracked(".") if not name.startswith((".ci/", ".github/"))}


def test_the_description_leads_nowhere_in_a_checkout(built: Path) -> None:
    """Package indexes show it alone: without pictures, and without links to files."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        _, _, description = archive.read(name).decode().partition("\n\n")
    assert "# difftool" in description
    assert re.findall(r"\]\((?!https?:)[^)]*\)|<img|!\[", description) == []
    assert "`docs/data.md`" in description


def test_the_wheel_holds_what_the_checkout_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packed = {name for name in names if ".dist-info/" not in name}
    expected = {*tracked("difftool"), *(n.removeprefix("plugins/") for n in tracked("plugins/difftool_plugins"))}
    assert packed == expected
    assert {name.partition("/")[0] for name in packed} == {"difftool", "difftool_plugins"}
    assert {"difftool/py.typed", "difftool_plugins/py.typed"} <= packed
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_names_the_program_and_the_plugins(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        text = archive.read(name).decode()
    assert "difftool = difftool.cli.main:main" in text
    for kind in ("datasets", "schedules", "backbones", "samplers", "objectives"):
        assert f"{kind} = difftool_plugins.{kind}" in text
