"""The wheel holds what the checkout holds, and names the program and its plugins."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


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
