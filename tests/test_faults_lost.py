"""Faults by which something was lost: files of others, files that were saved, and runs that a signal ended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import POINTS, Outcome, Run, tree

from difftool import manifest
from difftool.errors import DifftoolError
from difftool.files import TEMPORARY
from difftool.locks import MARK
from difftool.manifest import atomic_folder
from difftool.runs.folder import RunFolder

TINY = (*POINTS, "--steps", 2)


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


# --- --overwrite of runs -------------------------------------------------------------------------------------------

FOREIGN = {"config.toml": 'title="x"', "logs/a.log": "1", "samples/me.wav": "2", "state/db": "3", "previews/p.png": "4"}
LOCKS = {"no lock": None, "an empty lock": "", "another's lock": "yarn lockfile v1\n", "a number": "12345"}


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("names", [tuple(FOREIGN), ("logs/a.log",), ("config.toml",), ("state/db",)], ids="-".join)
def test_overwrite_refuses_a_folder_of_others(run: Run, tmp_path: Path, names: tuple[str, ...], lock: str) -> None:
    """`train --overwrite` refuses a folder that difftool did not make, whatever its names, and touches nothing."""
    for name in names:
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(FOREIGN[name])
    if (text := LOCKS[lock]) is not None:
        (tmp_path / "site" / "lock").write_text(text)
    before = tree_with_lock(tmp_path / "site")
    refused = run("train", *TINY, "--out", "site", "--overwrite")
    assert refused.code == 1
    assert "--out: site is not a run folder, so --overwrite does not touch it" in refused.error
    assert tree_with_lock(tmp_path / "site") == before


def tree_with_lock(folder: Path) -> dict[str, bytes]:
    lock = folder / "lock"
    return {**tree(folder), **({"lock": lock.read_bytes()} if lock.exists() else {})}


def test_a_lock_of_others_is_not_written_to(run: Run, tmp_path: Path) -> None:
    """A file called lock that difftool did not write is left alone, by `--out` and by `--resume`."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "lock").write_text("mine")
    assert "--out: x is not empty" in run("train", *TINY, "--out", "x").error
    ok(run("train", *TINY, "--out", "y"))
    (tmp_path / "y" / "lock").write_text("mine")
    assert "y/lock cannot be locked: difftool did not write it" in run("train", "--resume", "y", "--steps", 3).error
    assert [(tmp_path / name / "lock").read_text() for name in "xy"] == ["mine", "mine"]


def test_overwrite_leaves_the_users_files_in_a_run(run: Run, tmp_path: Path) -> None:
    """`train --overwrite` deletes what difftool wrote into a run, and leaves notes, pictures, logs and links."""
    ok(run("train", *TINY, "--preview-every", 1, "--logger", "csv", "--out", "x"))
    for _ in range(2):
        ok(run("sample", "x", "-n", 4, "--steps", 2))
    folder, own = (
        tmp_path / "x",
        {"notes.md", "samples/ddim-2-900.png", "previews/a.png", "logs/my/a.log", "state/readme"},
    )
    shutil.copy(folder / "samples" / "ddim-2-002.png", tmp_path / "outside.png")
    (folder / "samples" / "ddim-2-002.png").write_bytes(b"edited")
    for name in own:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    (folder / "samples" / "link.png").symlink_to(tmp_path / "outside.png")
    ok(run("train", *POINTS, "--steps", 1, "--out", "x", "--overwrite"))
    after = tree(folder)
    assert {name for name in after if after[name] == b"mine"} == own
    assert after["samples/ddim-2-002.png"] == b"edited"
    assert (folder / "samples" / "link.png").is_symlink()
    gone = {
        "samples/ddim-2-001.png",
        "logs/metrics.csv",
        "previews/samples-000002.png",
        "state/step-000000002.safetensors",
    }
    assert not gone & after.keys()


@pytest.mark.parametrize("name", ["state", "model.safetensors", "config.toml", "samples", "previews", "logs"])
def test_a_link_in_place_of_a_runs_file_is_not_replaced(run: Run, tmp_path: Path, name: str) -> None:
    """`train --overwrite` refuses a run in which a link stands for one of its files or folders, and touches nothing."""
    ok(run("train", *TINY, "--preview-every", 1, "--logger", "csv", "--out", "x"))
    ok(run("sample", "x", "-n", 4, "--steps", 2))
    (tmp_path / "x" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "x" / name).symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    refused = run("train", *POINTS, "--steps", 1, "--out", "x", "--overwrite")
    assert (refused.code, f"x/{name} is a link" in refused.error) == (1, True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("content", ["", MARK, f"{MARK}4194304"])
def test_a_half_made_run_is_replaced(run: Run, tmp_path: Path, content: str) -> None:
    """A run that was killed before it had a config is no obstacle to the next one, with or without `--overwrite`."""
    for overwrite in ((), ("--overwrite",)):
        folder = tmp_path / f"x{len(overwrite)}"
        (folder / "state" / "").mkdir(parents=True)
        (folder / ".difftool-tmp-0123456789abcdef").mkdir()
        (folder / "lock").write_text(content)
        ok(run("train", *TINY, "--out", folder, *overwrite))
        assert not list(folder.glob(".difftool-tmp*"))


# --- folders of samples --------------------------------------------------------------------------------------------


def put(folder: Path, *names: str, overwrite: bool = True, text: str = "new") -> None:
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        for name in names:
            (temporary / name).write_text(f"{text} {name}")


def names(folder: Path) -> list[str]:
    """The names in a folder, without the manifest, and without the temporary folder of a killed process."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith((manifest.NAME, TEMPORARY)))


def test_sampling_into_a_folder_of_photos_leaves_them(run: Run, images_run: Path, tmp_path: Path) -> None:
    """`sample --out photos --overwrite` replaces files of the same name and an earlier set, but no photo `2023.png`."""
    (tmp_path / "photos").mkdir()
    for name in ("20240612.png", "2023.png", "0001.png"):
        (tmp_path / "photos" / name).write_text("mine")
    sample = ("sample", images_run, "--steps", 1, "--out", "photos", "--overwrite")
    ok(run(*sample, "-n", 4))
    assert names(tmp_path / "photos") == ["0000.png", "0001.png", "0002.png", "0003.png", "2023.png", "20240612.png"]
    ok(run(*sample, "-n", 1))
    assert names(tmp_path / "photos") == ["0000.png", "2023.png", "20240612.png"]
    assert (tmp_path / "photos" / "2023.png").read_text() == "mine"


def test_a_picture_that_was_changed_is_no_longer_of_the_set(tmp_path: Path) -> None:
    """A smaller set of samples leaves files of the earlier one that somebody has edited or replaced by a link."""
    put(tmp_path / "x", "0000.png", "0001.png", "0002.png", "0003.png")
    (tmp_path / "x" / "0001.png").write_text("edited")
    (tmp_path / "x" / "0002.png").rename(tmp_path / "moved")
    (tmp_path / "x" / "0002.png").symlink_to(tmp_path / "moved")
    put(tmp_path / "x", "0000.png")
    assert names(tmp_path / "x") == ["0000.png", "0001.png", "0002.png"]


@pytest.mark.parametrize("name", ["../0001.png", "/{}/0001.png", "sub/0001.png", "..", ".", "", "0001.png\0"])
def test_a_manifest_names_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    """A manifest of somebody else that names files of other folders deletes nothing there."""
    for folder in ("x", "x/sub", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "0001.png").write_text("mine")
    digest = manifest.entry(tmp_path / "0001.png")[0]
    (tmp_path / "x" / manifest.NAME).write_text(f"{digest}  {name.format(tmp_path)}\n" + "half a li")
    before = tree(tmp_path)
    put(tmp_path / "x", "0000.png")
    after = tree(tmp_path)
    assert {path: after[path] for path in before if manifest.NAME not in path} == {
        path: data for path, data in before.items() if manifest.NAME not in path
    }


@pytest.mark.parametrize("odd", [Path.mkdir, os.mkfifo])
def test_an_odd_manifest_is_no_obstacle(tmp_path: Path, odd: Callable[[Path], object]) -> None:
    """A manifest that is a folder or a pipe is refused in one line, and no file is replaced."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "0000.png").write_text("mine")
    odd(tmp_path / "x" / manifest.NAME)
    with pytest.raises(DifftoolError, match=f"{manifest.NAME} could not be written"):
        put(tmp_path / "x", "0000.png")
    assert (tmp_path / "x" / "0000.png").read_text() == "mine"


class Killed(BaseException):
    """Stands for a kill: nothing handles it, and what comes after it does not happen."""


@pytest.mark.parametrize("moment", range(14))
def test_a_set_that_is_killed_half_way_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Samples that were killed while they replaced a larger set leave no file that the next set does not find."""
    folder = tmp_path / "x"
    put(folder, *(f"{i:04d}.png" for i in range(5)), text="old")
    (folder / "2023.png").write_text("mine")
    count = iter(range(100))

    def counted(change: Callable[..., object]) -> Callable[..., object]:
        def changed(*arguments: object, **options: object) -> object:
            if next(count) >= moment:
                raise Killed
            return change(*arguments, **options)

        return changed

    with monkeypatch.context() as patch, pytest.raises(Killed):  # noqa: PT012
        for name in ("replace", "unlink", "open"):
            patch.setattr(os, name, counted(getattr(os, name)))
        put(folder, "0000.png", "0001.png", text="new")
        raise Killed
    put(folder, "0000.png", text="last")
    assert names(folder) == ["0000.png", "2023.png"]
    assert (folder / "0000.png").read_text() == "last 0000.png"
    assert RunFolder(folder).saved_states() == []
