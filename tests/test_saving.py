"""States are copied, and written by a thread while training goes on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from conftest import POINTS, Run
from torch import Tensor

from difftool import devices
from difftool.errors import DifftoolError
from difftool.runs import checkpoint
from difftool.runs.checkpoint import Contents
from difftool.runs.folder import INSIDE, RunFolder
from difftool.training.saving import HostCopies, Save, Saver
from difftool.training.watched_folder import WatchedFolder


def save_of(tensor: Tensor, step: int) -> Save:
    """Return a save of a state and a model that hold the same tensor."""
    contents = Contents({"x": tensor}, {"step": step})
    return Save([(INSIDE.state(step), contents), (INSIDE.model, contents)], keep=1)


@pytest.fixture
def saver(tmp_path: Path) -> Saver:
    watched = WatchedFolder(RunFolder(tmp_path))
    watched.locked = lambda: RunFolder(tmp_path)
    watched.describe = lambda folder: None
    (tmp_path / "config.toml").touch()
    return Saver(watched)


def test_what_is_written_is_what_was_copied(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, order, write = threading.Event(), [], checkpoint.write

    def slow(path: Path, *contents: object) -> None:
        assert may_write.wait(60)
        order.append(path.name)
        write(path, *contents)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "write", slow)
    weights = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    with saver:
        saver.start(save_of(weights, 1))
        assert saver.busy
        weights.fill_(-1)  # training goes on
        threading.Timer(0.01, may_write.set).start()
        saver.start(save_of(weights, 2))  # waits for the one before
        assert order[:2] == ["step-000000001.safetensors", "model.safetensors"]
        found = saver.watched.folder
        assert [torch.equal(checkpoint.load(found.model)[0]["x"], torch.arange(6.0).reshape(2, 3).T)] == [True]
    assert [path.name for path in found.saved_states()] == ["step-000000002.safetensors"]
    assert bool((checkpoint.load(found.model)[0]["x"] == -1).all())
    assert not saver.busy


def test_one_copy_is_made_of_a_tensor_and_its_memory_is_used_again() -> None:
    memory, tensor = HostCopies(), torch.randn(5, 3)
    first, second = (memory.copy(save_of(tensor, step)) for step in (1, 2))
    assert first is not None
    assert second is not None
    places = {t.data_ptr() for save in (first, second) for t in save.tensors()}
    assert len(places) == 1
    assert tensor.data_ptr() not in places


def test_short_memory_makes_training_wait(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "host_memory_left", lambda: 100)
    with pytest.warns(UserWarning, match="memory is short, so training waits while a state is saved"):
        saver.start(save_of(torch.randn(30), 1))
    assert not saver.busy
    assert saver.watched.folder.saved_states() == [saver.watched.folder.state(1)]
    saver.start(save_of(torch.randn(20), 2))  # which fits, with a quarter left
    assert saver.busy or saver.watched.folder.saved_states() == [saver.watched.folder.state(2)]
    saver.wait()


def test_an_error_of_the_thread_surfaces_in_the_loop(saver: Saver) -> None:
    (saver.watched.folder.path / "state").write_text("in the way")
    saver.start(save_of(torch.ones(2), 1))
    assert saver._thread is not None
    saver._thread.join()
    with pytest.raises(DifftoolError, match="state is a file"):
        saver.check()
    saver.wait()  # it is told once


def test_the_memory_that_is_left_is_a_number_of_bytes() -> None:
    left = devices.host_memory_left()
    assert left is None or 0 < left < 2**50


def test_a_run_that_saves_at_each_step_is_the_same(run: Run) -> None:
    for name, every in (("often", 1), ("once", 1000)):
        words = (*POINTS, "--threads", 1, "--steps", 40, "--held-out", 50)
        assert run("train", *words, "--checkpoint-every", every, "--out", name).code == 0
    for file in ("best.safetensors", "state/step-000000040.safetensors"):
        first, second = (checkpoint.load(Path(name, file))[0] for name in ("often", "once"))
        assert checkpoint.digest(first, "") == checkpoint.digest(second, "")
