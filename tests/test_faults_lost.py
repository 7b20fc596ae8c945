"""Faults by which something was lost: files of others, files that were saved, and runs that a signal ended."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import POINTS, Outcome, Run, invoke, tree

import difftool
from difftool import locks, manifest
from difftool.errors import DifftoolError
from difftool.files import TEMPORARY
from difftool.locks import MARK, hold, holder
from difftool.manifest import atomic_folder
from difftool.runs import checkpoint
from difftool.runs.folder import RunFolder
from difftool.sampling.model import load_model, raw_model
from difftool.training.ema import Averages

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


# --- looking at a run while it is trained --------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["it is opened", "its header is read", "a tensor is read"])
@pytest.mark.parametrize("other", [4, 64])
def test_a_file_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, other: int
) -> None:
    """`sample` and `info` read the old file or the new one of a run that saves meanwhile, and never a mixture."""
    path, replaced = tmp_path / "model.safetensors", []
    checkpoint.save(path, {"a": torch.zeros(4), "b": torch.zeros(3)}, {"step": 1})

    def then_replace(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            result = function(*arguments)
            if not replaced:
                replaced.append(checkpoint.save(path, {"a": torch.ones(other), "b": torch.ones(3)}, {"step": 2}))
            return result

        return called

    owner, name = {
        "it is opened": (checkpoint, "open_regular"),
        "its header is read": (checkpoint, "_read_header"),
        "a tensor is read": (checkpoint._Entry, "read"),
    }[point]
    monkeypatch.setattr(owner, name, then_replace(getattr(owner, name)))
    tensors, document = checkpoint.load(path)
    assert replaced
    assert (document["step"], tensors["a"].tolist(), tensors["b"].tolist()) == (1, [0.0] * 4, [0.0] * 3)
    assert checkpoint.load(path)[1]["step"] == 2


def test_raw_weights_of_a_state_that_is_replaced(
    points_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sample --weights raw` takes the newer state where the one that it found was just deleted by the run."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(points_run, run.path)
    model, (state, *_) = load_model(run.path), run.saved_states()
    newer = run.state(31)
    load = checkpoint.load_with_digest

    def load_late(path: Path) -> Any:
        if path == state:
            tensors, document, _ = load(state)
            checkpoint.save(newer, tensors, {**document, "step": 31})
            state.unlink()
        return load(path)

    monkeypatch.setattr(checkpoint, "load_with_digest", load_late)
    assert raw_model(model, run).source == newer


def test_a_look_is_not_in_the_way_of_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runs` and `info` look at a lock together, and `--resume` waits for them instead of saying "in use"."""
    lock = tmp_path / "lock"
    with hold(lock):
        pass
    with open(lock, "rb") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        assert holder(lock) == ""
        waited = []

        def end_the_look(_: float) -> None:
            waited.append(fcntl.flock(look, fcntl.LOCK_UN))

        monkeypatch.setattr(locks.time, "sleep", end_the_look)
        with hold(lock):
            assert holder(lock) == str(os.getpid())
            with pytest.raises(DifftoolError, match=f"in use by process {os.getpid()}"), hold(lock):
                pass
        assert len(waited) == 1
    assert (holder(lock), lock.read_text()) == ("", MARK)


@pytest.mark.slow
def test_runs_in_a_loop_disturb_nobody(tmp_path: Path) -> None:
    """Thousands of looks at a run leave a process that takes its lock again and again undisturbed."""
    lock, done = tmp_path / "lock", threading.Event()

    def look() -> None:
        while not done.is_set():
            holder(lock)

    looks = [threading.Thread(target=look) for _ in range(2)]
    for one in looks:
        one.start()
    try:
        for _ in range(300):
            with hold(lock):
                assert holder(lock) == str(os.getpid())
    finally:
        done.set()
        for one in looks:
            one.join()


# --- signals, and folders that are moved ---------------------------------------------------------------------------


LONGER = (*POINTS, "--threads", 1, "--steps", 6)
LONGER_CHOICES = {"steps": 6, "batch_size": 64, "threads": 1}
SIGNALS = [
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
]


def points_from_python(out: Path) -> difftool.Model:
    """Train the run of `LONGER`."""
    mlp = difftool.component("backbone", "mlp", width=16, depth=1)
    data = difftool.component("dataset", "swiss-roll", n=500)
    return difftool.train(dataset=data, backbone=mlp, out=out, **LONGER_CHOICES)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """`at_step(3, call)` calls a function once, when the third step is logged."""

    def prepare(step: int, call: Callable[[], object]) -> None:
        append, calls = RunFolder.append_metrics, [call]

        def append_and_call(folder: RunFolder, row: Any) -> None:
            append(folder, row)
            if row["step"] == step and calls:
                calls.pop()()

        monkeypatch.setattr(RunFolder, "append_metrics", append_and_call)

    return prepare


AtStep = Callable[[int, Callable[[], object]], None]


def send(*numbers: int) -> Callable[[], None]:
    """Return a function that sends signals to this process."""

    def call() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return call


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `LONGER`, trained without a break."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    ok(invoke("train", *LONGER, "--out", folder))
    return folder


def check_resumes(folder: Path, straight: Path) -> None:
    """A stopped run is resumed, and ends as one that was not."""
    ok(invoke("train", "--resume", folder))
    check_weights(folder, straight)


def check_weights(folder: Path, straight: Path) -> None:
    """Two runs have the same weights."""
    weights, others = (checkpoint.load(run / "model.safetensors")[0] for run in (folder, straight))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_says_which_it_was(run: Run, straight: Path, at_step: AtStep, number: int) -> None:
    """SIGUSR1, SIGUSR2 and SIGXCPU, which queues send, save the run as SIGTERM does, and end it with 128 + number."""
    before = [signal.getsignal(one) for one in SIGNALS]
    at_step(3, send(number))
    stopped = run("train", *LONGER, "--out", "x")
    assert stopped.code == 128 + number
    name = signal.Signals(number).name
    assert f"stopped by {name} after step 3 of 6; everything is saved" in stopped.err
    assert f"{name}: stopping after this step" in stopped.err
    assert [signal.getsignal(one) for one in SIGNALS] == before
    check_resumes(Path("x"), straight)


def test_a_queue_that_repeats_itself_does_not_end_a_run_that_saves(
    run: Run, straight: Path, at_step: AtStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue's second SIGXCPU, or its SIGTERM after a SIGUSR1, does not end a run before its state is on the disk."""
    write = checkpoint.write

    def write_under_fire(*arguments: Any, **options: Any) -> None:
        send(signal.SIGXCPU, signal.SIGUSR1, signal.SIGTERM)()
        monkeypatch.setattr(checkpoint, "write", write)
        write(*arguments, **options)

    monkeypatch.setattr(checkpoint, "write", write_under_fire)
    at_step(3, send(signal.SIGXCPU))
    assert run("train", *LONGER, "--out", "x").code == 128 + signal.SIGXCPU
    check_resumes(Path("x"), straight)


@pytest.mark.parametrize("number", SIGNALS)
def test_python_saves_at_a_signal(tmp_path: Path, straight: Path, at_step: AtStep, number: int) -> None:
    """Ctrl-C in `difftool.train()` saves, and raises KeyboardInterrupt then; other signals raise SystemExit."""
    before = [signal.getsignal(one) for one in SIGNALS]
    at_step(3, send(number))
    expected = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(expected) as caught:
        points_from_python(tmp_path / "x")
    if number == signal.SIGINT:
        hint = f"go on with: difftool.train(resume={str(tmp_path / 'x')!r})"
        assert str(caught.value) == f"stopped by SIGINT after step 3 of 6; everything is saved; {hint}"
    else:
        assert caught.value.code == 128 + number
    assert [signal.getsignal(one) for one in SIGNALS] == before
    check_resumes(tmp_path / "x", straight)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_python_leaves_handlers_of_the_program(tmp_path: Path, at_step: AtStep, handler: Any) -> None:
    """A signal that the program handles or ignores itself is none of `difftool.train()`'s, which goes on."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        at_step(3, send(*SIGNALS))
        assert points_from_python(tmp_path / "x").step == 6
        assert all(signal.getsignal(number) is handler for number in SIGNALS)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def test_an_interrupt_in_another_thread_is_saved(tmp_path: Path, straight: Path, at_step: AtStep) -> None:
    """KeyboardInterrupt in a thread that is not the main one saves the run of `difftool.train()` before it passes."""
    caught: list[BaseException] = []

    def train() -> None:
        try:
            points_from_python(tmp_path / "x")
        except BaseException as error:
            caught.append(error)

    def interrupt() -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(threading.get_ident()), ctypes.py_object(KeyboardInterrupt)
        )

    at_step(3, interrupt)
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert [type(error) for error in caught] == [KeyboardInterrupt]
    assert len(RunFolder(tmp_path / "x").saved_states()) == 1
    check_resumes(tmp_path / "x", straight)


IN_A_THREAD = """
import os, signal, sys, threading
import difftool
from difftool.runs.folder import RunFolder
append = RunFolder.append_metrics
def append_and_strike(folder, row):
    append(folder, row)
    if row["step"] == 50:
        os.kill(os.getpid(), signal.SIGINT)
RunFolder.append_metrics = append_and_strike
thread = threading.Thread(target=lambda: difftool.train(steps=10**7, out="x", threads=1))
thread.start()
thread.join()
"""


@pytest.mark.slow
def test_a_thread_whose_program_was_interrupted_saves(tmp_path: Path) -> None:
    """Ctrl-C ends a program whose training runs in a thread, and the thread saves before the program is gone."""
    command = [sys.executable, "-c", IN_A_THREAD]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (130, 1, -signal.SIGINT)
    assert "stopped by SIGINT after step" in done.stderr
    assert len(RunFolder(tmp_path / "x").saved_states()) == 1


def test_weights_that_are_half_moved_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt between the weights and their average leaves the last state as it was, and no mixture."""
    update = Averages.update

    def interrupted(averages: Averages) -> None:
        if averages.updates == 3:
            raise KeyboardInterrupt
        update(averages)

    monkeypatch.setattr(Averages, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        points_from_python(tmp_path / "x")
    assert RunFolder(tmp_path / "x").saved_states() == []


def test_a_run_folder_that_is_renamed(run: Run, straight: Path, at_step: AtStep) -> None:
    """A run folder that is renamed during training is followed, with one line, and nothing is left at the old place."""
    at_step(1, lambda: os.rename("x", "y"))  # while no thread writes a state
    moved = ok(run("train", *LONGER, "--checkpoint-every", 2, "--preview-every", 4, "--out", "x"))
    assert moved.err.count("x was moved; training goes on in") == 1
    assert Path(moved.out.strip()) == Path("y").absolute()
    assert not Path("x").exists()
    pictures = {f"previews/{name}-00000{step}.png" for name in ("panel", "samples") for step in (4, 6)}
    new = {*pictures, "state/step-000000004.safetensors"}
    assert tree(Path("y")).keys() - tree(straight).keys() == new
    check_weights(Path("y"), straight)


@pytest.mark.parametrize("moment", ["encoded", "write"])
def test_a_run_folder_that_is_renamed_while_it_is_saved(
    run: Run, straight: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A run folder that is renamed in the middle of a save is saved to, or saved to again, at its new place."""
    save = getattr(checkpoint, moment)

    def rename_and_save(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(checkpoint, moment, save)
        os.rename("x", "y")
        if moment == "write":
            raise DifftoolError(f"{arguments[0]} could not be written")
        return save(*arguments, **options)

    monkeypatch.setattr(checkpoint, moment, rename_and_save)
    ok(run("train", *LONGER, "--checkpoint-every", 2, "--out", "x"))
    assert not Path("x").exists()
    check_weights(Path("y"), straight)


@pytest.mark.parametrize("other", [False, True])
def test_a_run_folder_that_is_deleted(run: Run, at_step: AtStep, other: bool) -> None:
    """A run folder that is deleted during training ends the run with one line, and is not made again."""

    def replace() -> None:
        shutil.rmtree("x")
        if other:
            Path("x").mkdir()
            Path("x", "mine").touch()

    at_step(3, replace)
    gone = run("train", *LONGER, "--out", "x")
    assert (gone.code, "the folder x is gone: it was deleted" in gone.error) == (1, True)
    assert [str(path) for path in Path().rglob("*")] == (["x", "x/mine"] if other else [])


def test_a_run_whose_content_is_moved(run: Run, at_step: AtStep) -> None:
    """A run folder whose content is moved away during training gets its config again, before its next state."""

    def empty() -> None:
        Path("y").mkdir()
        for path in Path("x").iterdir():
            path.rename(Path("y", path.name))

    at_step(3, empty)
    emptied = ok(run("train", *LONGER, "--checkpoint-every", 2, "--out", "x"))
    assert emptied.err.count("x/config.toml was removed; it is written again") == 1
    ok(run("train", "--resume", "x", "--steps", 8))
