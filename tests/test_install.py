"""The wheel, and packages of strangers: built and installed for real, into a folder of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import spawn

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


def install(package: Path, site: Path) -> None:
    """Install a package folder, built from a copy so that nothing is left in it."""
    copy = site.parent / f"{package.name}-source"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist"))
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    call(*pip, "--disable-pip-version-check", "--target", site, copy, cwd=site.parent)


def with_site(site: Path, *, allowed: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))
    return {"PYTHONPATH": path, "DIFFTOOL_PLUGINS": allowed}


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
    assert "difftool = difftool.cli:main" in text
    for kind in ("datasets", "schedules", "backbones", "samplers", "objectives"):
        assert f"{kind} = difftool_plugins.{kind}" in text


def test_the_example_package_brings_its_dataset(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(ROOT / "examples" / "plugins" / "difftool-digits", site)
    env = with_site(site, allowed="difftool-digits")
    outcome = spawn("list", "datasets", "--json", cwd=tmp_path, env=env)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["datasets"]
    assert {"digits", "swiss-roll"} <= found.keys()
    assert found["digits"]["package"] == "difftool-digits"
    assert found["digits"]["options"]["size"]["default"] == 8
    help_text = spawn("train", "--dataset", "digits", "--help", cwd=tmp_path, env=env).out
    assert "Dataset: digits" in help_text
    assert "--dataset.size" in help_text
    hidden = spawn("train", "--dataset", "digits", cwd=tmp_path, env=with_site(site, allowed=""))
    assert hidden.code == 2
    assert "no dataset is called 'digits'" in hidden.error


BROKEN = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "Difftool_Broken"
version = "0.3"

[project.entry-points.difftool]
missing = "difftool_broken.missing"
nowhere = "difftool_broken.nowhere"
taken = "difftool_broken.taken"

[tool.hatch.build.targets.wheel]
packages = ["difftool_broken"]
""",
    "difftool_broken/__init__.py": "",
    "difftool_broken/missing.py": "import jaxx_is_not_there\n",
    "difftool_broken/taken.py": '''\
from difftool import Sampler, Step, hookimpl, option
from itertools import pairwise


class DDIM(Sampler, name="ddim"):
    """Another DDIM."""

    twist: float = option(default=0.5, help="twist")

    def walk(self, denoise, x, levels, noise):
        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = s.alpha * estimate.x_0 + s.sigma * estimate.eps
            yield Step(x, s, estimate)


@hookimpl
def difftool_samplers():
    return [DDIM]
''',
}


def test_a_broken_package_stops_nobody(tmp_path: Path, points_run: Path) -> None:
    package, site = tmp_path / "broken", tmp_path / "site"
    for name, text in BROKEN.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    install(package, site)
    work, env = tmp_path / "work", with_site(site, allowed="difftool-broken")
    work.mkdir()
    outcome = spawn("plugins", "--json", cwd=work, env=env)
    assert outcome.code == 0, outcome.err
    found = {p["plugin"]: p["problems"] for p in json.loads(outcome.out)["plugins"]}
    assert found["difftool-broken:missing"] == [
        {
            "reason": "needs the module 'jaxx_is_not_there', which is not installed",
            "cure": "install what brings it, perhaps: pip install jaxx_is_not_there",
        }
    ]
    assert "difftool_broken.nowhere" in found["difftool-broken:nowhere"][0]["reason"]
    (taken,) = found["difftool-broken:taken"]
    assert taken["reason"] == "sampler 'ddim': the name is taken by difftool"
    assert taken["cure"] == "reach it as difftool-broken:ddim"
    assert "set aside" in spawn("plugins", cwd=work, env=env).out
    sampled = spawn("sample", points_run, "-n", 3, "--steps", 2, "--out", "x.npy", cwd=work, env=env)
    assert (sampled.code, sampled.out) == (0, "x.npy\n"), sampled.err
    theirs = spawn(
        *("sample", points_run, "-n", 3, "--steps", 2, "--out", "y.npy"),
        *("--sampler", "difftool-broken:ddim", "--sampler.twist", 1),
        cwd=work,
        env=env,
    )
    assert (theirs.code, theirs.out) == (0, "y.npy\n"), theirs.err
    assert (work / "x.npy").read_bytes() == (work / "y.npy").read_bytes()
    asked = spawn("sample", points_run, "--sampler", "missing", cwd=work, env=env)
    assert asked.code == 1
    assert "difftool-broken:missing was set aside: needs the module 'jaxx_is_not_there'" in asked.error
    quiet = spawn("plugins", "--json", cwd=work, env={**env, "DIFFTOOL_DISABLE_PLUGINS": "difftool-broken"})
    assert not any(p["problems"] for p in json.loads(quiet.out)["plugins"])
