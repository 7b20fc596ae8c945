"""What docs/compatibility.md promises: model files, run folders and plugins of former releases still work.

`tests/data` holds a run and its samples of each release since 0.2.0, and a plugin for each version of the API.
`python tests/test_compatibility.py` adds the run of this release.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import Run, invoke
from safetensors.torch import load_file

import difftool
from difftool.plugins import loading
from difftool.runs import checkpoint

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).with_name("data")
RELEASES = sorted(path.parent for path in DATA.glob("*/config.toml"))
PLUGINS = sorted(DATA.glob("api_*.py"))
OF_THIS_MINOR = [path for path in RELEASES if path.name.rpartition(".")[0] == difftool.__version__.rpartition(".")[0]]
TINY = ("--dataset", "two-moons", "--dataset.n", 200, "--backbone.width", 8, "--backbone.depth", 1, "--batch-size", 16)
SAMPLE = ("-n", 8, "--steps", 5, "--seed", 3)


def test_this_release_is_kept() -> None:
    """Make it with `python tests/test_compatibility.py`."""
    assert DATA / difftool.__version__ in RELEASES
    assert f"api_{difftool.API_VERSION}" in [path.stem for path in PLUGINS]


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_a_model_file_of_a_former_release_draws_the_samples_it_drew(run: Run, release: Path) -> None:
    assert run("sample", release / "model.safetensors", *SAMPLE, "--out", "again.safetensors").code == 0
    again, then = (load_file(path) for path in ("again.safetensors", release / "samples.safetensors"))
    assert again.keys() == then.keys()
    for name in then:
        torch.testing.assert_close(again[name], then[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("release", OF_THIS_MINOR, ids=lambda path: path.name)
def test_a_run_of_the_same_minor_version_is_resumed(run: Run, tmp_path: Path, release: Path) -> None:
    shutil.copytree(release, tmp_path / "run")
    assert run("train", "--resume", "run", "--steps", 8).code == 0
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == 8


@pytest.mark.parametrize("script", PLUGINS, ids=lambda path: path.stem)
def test_a_plugin_of_this_api_or_the_one_before_works(run: Run, script: Path) -> None:
    if int(script.stem.removeprefix("api_")) < difftool.API_VERSION - 1:
        pytest.skip("older than promised")
    parts = ("schedule", "old-power", "backbone", "old-linear", "loss", "old-quartic", "weighting", "old-truncated")
    flags = [f"--{word}" if i % 2 == 0 else word for i, word in enumerate(parts)]
    tiny = ("--dataset", "two-moons", "--dataset.n", 200, "--batch-size", 16, "--preview-every", 0)
    outcome = run("train", "--plugin", script, *flags, "--callback", "old-watch", *tiny, "--steps", 9, "--out", "run")
    assert outcome.code == 0, outcome.err
    assert "seen enough" in outcome.err
    outcome = run("sample", "run", "--plugin", script, "--sampler", "old-ddim", *SAMPLE, "--out", "x.npz")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(("version", "loads"), [(1, False), (2, False), (3, True), (4, True), (5, False)])
def test_the_next_api_will_take_plugins_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch, version: int, loads: bool
) -> None:
    monkeypatch.setattr(loading, "API_VERSION", 4)
    monkeypatch.setattr(loading, "OLDEST_API", 3)
    plugin = loading.Plugin("somebody", "x", "1")
    found = loading._api_problem(plugin, version)
    assert (found is None) == loads
    if found:
        cure = "difftool" if version > 4 else "somebody"
        wanted = f"made for version {version} of the plugin API; this difftool has 4; pip install --upgrade {cure}"
        assert str(found) == wanted


def test_a_model_file_of_a_later_format_is_refused_in_one_line(run: Run, tmp_path: Path) -> None:
    tensors, document = checkpoint.load(RELEASES[-1] / "model.safetensors")
    checkpoint.save(tmp_path / "later.safetensors", tensors, document | {"format": 99})
    assert run("sample", "later.safetensors").error == (
        "difftool: error: later.safetensors was written by a newer difftool (format 99); upgrade difftool"
    )


def test_files_of_the_project_name_this_version() -> None:
    if not (ROOT / "CITATION.cff").exists():
        pytest.skip("needs the checkout")
    assert f"\nversion: {difftool.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {difftool.__version__} - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def keep() -> None:
    """Write the run of this release, unless it is there already."""
    folder = DATA / difftool.__version__
    if folder.exists():
        sys.exit(f"{folder} is there already; a release stays as it was")
    train = ("train", *TINY, "--steps", 4, "--preview-every", 0, "--out", folder)
    assert invoke(*train).code == 0
    sample = ("sample", folder / "model.safetensors", *SAMPLE, "--out", folder / "samples.safetensors")
    assert invoke(*sample).code == 0
    for name in ("loss.png", "lock"):
        (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    keep()
