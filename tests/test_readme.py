"""What the README prints must work as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not beside the tests")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    extra = {"PYTHONPATH": str(path), "DIFFTOOL_PLUGINS": "difftool-power"} if path else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **extra}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_python_example(tmp_path: Path) -> None:
    (code,) = [b for b in blocks("python") if "difftool.train" in b]
    code += "\nimport torch\nassert torch.equal(points, again) and points.shape == (500, 2)\n"
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "moons" / "model.safetensors").is_file()


@pytest.mark.slow
def test_plugin_example(tmp_path: Path) -> None:
    """The printed package installs, its schedule has the printed formula, and its option reaches the command line."""
    pytest.importorskip("hatchling")
    package, site = tmp_path / "package", tmp_path / "site"
    package.mkdir()
    (toml,) = blocks("toml")
    (code,) = [b for b in blocks("python") if "hookimpl" in b]
    (package / "pyproject.toml").write_text(toml)
    (package / "difftool_power.py").write_text(code)
    assert len(code.strip().splitlines()) <= 25
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site), str(package))
    done = run(*pip, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    shown = run("-m", "difftool", "train", "--schedule", "power", "--help", cwd=tmp_path, path=site)
    assert "--schedule.p" in shown.stdout

    options = ("--schedule.p", "3", "--timesteps", "9", "--json")
    numbers = run("-m", "difftool", "inspect-schedule", "power", *options, cwd=tmp_path, path=site)
    assert numbers.returncode == 0, numbers.stderr
    import json

    alpha_bars = json.loads(numbers.stdout)["schedules"]["power"]["alpha_bar"]
    assert alpha_bars == pytest.approx([1 - 0.9999 * ((t + 1) / 9) ** 3 for t in range(9)], abs=1e-12)

    small = ("--steps", "3", "--dataset.n", "50", "--backbone.width", "8")
    trained = run("-m", "difftool", "train", "--schedule", "power", *small, "--out", "r", cwd=tmp_path, path=site)
    assert trained.returncode == 0, trained.stderr
    shutil.rmtree(site)
    gone = run("-m", "difftool", "sample", "r", cwd=tmp_path)
    assert gone.returncode == 1
    assert "difftool-power 0.1" in gone.stderr
    assert "not installed" in gone.stderr
