"""Runs that are killed, stopped, starved of room or damaged, and resumed: they end bit for bit like an unbroken one."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import IMAGES, POINTS, Outcome, invoke, last_of, tree
from forks import PATIENCE, SIGNALS, Job, Server
from PIL import Image
from torch import Tensor

from difftool.files import TEMPORARY
from difftool.runs import checkpoint
from difftool.runs.averages import files_in
from difftool.runs.folder import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals")

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.close()


# --- jobs ----------------------------------------------------------------------------------------------------------


def quicken(pictures: bool = False) -> None:
    """Leave out what takes longer than a tiny run: pictures that nobody asked for, and waits for the disk.

    A kill leaves what was written in the cache of the system; only a power cut would lose it.
    """
    import difftool.cli.training

    if not pictures:
        difftool.cli.training._attempt = lambda what, draw: None
    os.fsync = lambda file: None


def program(*arguments: object, before: Job | None = None, pictures: bool = False) -> None:
    """The command line."""
    from difftool.cli.main import main

    quicken(pictures)
    if before is not None:
        before()
    main([str(a) for a in last_of(arguments)])


def train(*arguments: object, before: Job | None = None, pictures: bool = False) -> Job:
    return partial(program, "train", *arguments, before=before, pictures=pictures)


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.truncate")
"""The audit events that stand for a change of a file."""


def strike(number: int, at: int | str | None, folder: Path, log: Path | None = None) -> None:
    """Send a signal right before a change of a file in the folder: kill -9 to this process alone, others to its group.

    Every change is a point of its own, and so is a wait for the disk, the middle of writing tensors, and their end.
    `at` is the number of one, counted from 0, or its name; their names go to `log`, each after a digest of the folder.
    """
    import safetensors.torch

    counter = itertools.count()  # of two threads
    descriptor = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT)

    def reach(point: str) -> bool:
        count = next(counter)
        if log is not None:
            os.write(descriptor, f"{content_of(folder)} {point}\n".encode())
        return at in (count, point)

    def hit() -> None:
        if number == signal.SIGKILL:
            os.kill(os.getpid(), number)
        else:
            os.killpg(0, number)

    def point(name: str) -> None:
        if reach(name):
            hit()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or isinstance(arguments[0], int):
            return
        path = os.fsdecode(arguments[0])
        beside = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # relative to a folder that is held open
        if (beside or path.startswith(str(folder))) and (event != "open" or arguments[2] & WRITING):
            point(f"{event} {path.removeprefix(str(folder))}")

    fsync, save_file = os.fsync, safetensors.torch.save_file

    def synced(file: int) -> None:
        point(f"fsync {os.readlink(f'/proc/self/fd/{file}').removeprefix(str(folder))}")
        fsync(file)

    def saved(tensors: Any, path: Path, metadata: Any) -> None:
        point(f"before {path.name} is written")
        if reach(f"while {path.name} is written"):
            data = safetensors.torch.save(tensors, metadata)
            path.with_name(".tmp0123ab").write_bytes(data[: len(data) // 2])  # as the library does on the way
            hit()
        save_file(tensors, path, metadata)
        point(f"after {path.name} is written")

    os.fsync, safetensors.torch.save_file = synced, saved
    sys.addaudithook(hook)


def content_of(folder: Path) -> str:
    """Return a digest of the names, modes and bytes of everything in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # another thread may be at work
            data = path.read_bytes() if path.is_file() else b""
            found.update(repr((str(path), path.stat().st_mode, data)).encode())
    return found.hexdigest()


def strike_at_calls(number: int, at: Collection[int], log: Path | None = None) -> None:
    """Send this process a signal at these calls of functions, counted from where signals are handled; `log` gets how
    many calls there are."""
    count: int | None = None

    def see(frame: Any, event: str, _: object) -> None:
        nonlocal count
        outermost = frame.f_code.co_name == "_exit_code"
        if outermost and event == "call":
            count = 0
        elif outermost and event == "return":
            if log is not None:
                log.write_text(str(count))
            sys.setprofile(None)
        elif count is not None and event in ("call", "c_call"):
            count += 1
            if count in at:
                os.kill(os.getpid(), number)

    sys.setprofile(see)


def strike_group_at_fork(number: int, once: Path) -> None:
    """Send a signal to the whole process group when this process forks for the first time, from the new process."""

    def hit() -> None:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
            os.killpg(0, number)

    os.register_at_fork(after_in_child=hit)


def hang_after(number: int) -> None:
    """After this signal the disk never answers."""

    def waits(_: int) -> None:
        while True:
            signal.pause()

    def hang(*_: object) -> None:
        os.fsync = waits

    signal.signal(number, hang)


def limit_files(size: int) -> None:
    """As if the disk were full for any file that is to grow beyond a size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# --- runs ----------------------------------------------------------------------------------------------------------


def newest(folder: Path) -> int:
    """The step of the newest state; 0 before there is one."""
    return max((int(p.stem.removeprefix("step-")) for p in RunFolder(folder).saved_states()), default=0)


def logged(folder: Path) -> int:
    """The last step in the metrics."""
    rows = RunFolder(folder).read_metrics()
    return rows[-1]["step"] if rows else 0


def leftovers(folder: Path) -> list[str]:
    """Temporaries, ours and those of safetensors."""
    while True:
        with contextlib.suppress(FileNotFoundError):  # one that went while it was being looked for
            return [str(p) for p in folder.rglob("*") if p.name.startswith((TEMPORARY, ".tmp"))]


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: checkpoint.digest({name: tensor}, "") for name, tensor in tensors.items()}


def end_of(folder: Path) -> dict[str, object]:
    """Return the result of a run bit for bit: everything but times and the places of files."""
    run = RunFolder(folder)
    state = run.saved_states()[0]
    tensors, document = checkpoint.load(state)
    rows = run.read_metrics()
    return {
        "model": run.model.read_bytes(),
        "newest state": state.name,
        "tensors": digests(tensors),
        "averages": {file.path.name: digests(checkpoint.load(file.path)[0]) for file in files_in(run.averages)},
        "counters": {key: document[key] for key in ("step", "skipped", "skipped_in_a_row", "ema_updates", "scaler")},
        "metrics": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
        "pictures": {k: v for k, v in tree(folder).items() if k.endswith(".png")},
        "leftovers": leftovers(folder),
    }


def check_end(folder: Path, straight: Path, *, keep: int = 2, but: str = "") -> None:
    """The run ended as the straight one did."""
    found, expected = end_of(folder), end_of(straight)
    assert [key for key in expected if found[key] != expected[key] and key != but] == []
    assert len(RunFolder(folder).saved_states()) == keep


def option(arguments: tuple[object, ...], name: str) -> int:
    return int(str(arguments[arguments.index(name) + 1]))


def go_on(server: Server, folder: Path, arguments: tuple[object, ...], **how: Any) -> Outcome:
    """Train to the end, by --resume where the run has begun. How often it saves is recorded in its model."""
    every = ("--checkpoint-every", option(arguments, "--checkpoint-every"))
    begun = RunFolder(folder).config.exists()
    job = train("--resume", folder, *every, **how) if begun else train(*arguments, "--out", folder, **how)
    outcome = server.run(job, folder.parent)
    assert outcome.code == 0, outcome.err
    return outcome


# --- killed at every point -----------------------------------------------------------------------------------------

AVERAGES = ("--ema", "0.999,0.9", "--ema-lengths", 0.1)
"""Two averages beside that in the model file, one of which leaves snapshots."""
SAVES = (*POINTS, *AVERAGES, "--snapshot-every", 2, "--threads", 1, "--steps", 3, "--checkpoint-every", 1)
"""A run of three saves."""
PARTS = 7
"""The number of parts of a test that takes all changes of files in turn."""


@dataclass(frozen=True)
class Points:
    """The points of `strike` in a run, and a digest of its folder at each."""

    names: list[str]
    contents: list[str]

    @classmethod
    def of(cls, server: Server, folder: Path, *arguments: object) -> Points:
        """Run `train` with these arguments, which writes into `folder`, and return its points."""
        log = folder.with_name("log")
        before = partial(strike, 0, None, folder, log)
        outcome = server.run(train(*arguments, before=before), folder.parent)
        assert outcome.code == 0, outcome.err
        contents, names = zip(*(line.split(" ", 1) for line in log.read_text().splitlines()), strict=True)
        return cls(list(names), list(contents))

    @property
    def kills(self) -> list[int]:
        """The points at which kill -9 leaves something of its own: the last of those in a row with the same folder."""
        after = (*self.contents[1:], "")
        return [at for at, content in enumerate(self.contents) if content != after[at]]


@pytest.fixture(scope="module")
def points(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Points:
    """Return the changes that a run of three saves makes in its folder, in order."""
    folder = tmp_path_factory.mktemp("points") / "run"
    return Points.of(server, folder, *SAVES, "--out", folder)


@pytest.fixture(scope="module")
def three_saves(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    assert server.run(train(*SAVES, "--out", folder / "run"), folder).code == 0
    return folder / "run"


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=SLOW) for part in range(1, PARTS))])
def test_a_run_killed_before_any_change_of_a_file_ends_like_an_unbroken_one(
    server: Server, points: Points, three_saves: Path, tmp_path: Path, part: int
) -> None:
    for at in points.kills[part::PARTS]:
        folder = tmp_path / f"{at} {points.names[at].split()[0]}"
        begin = train(*SAVES, "--out", folder, before=partial(strike, signal.SIGKILL, at, folder))
        assert server.run(begin, tmp_path).code == -signal.SIGKILL
        go_on(server, folder, SAVES)
        check_end(folder, three_saves)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=SLOW)])
def test_a_resume_killed_before_any_change_of_a_file_can_be_resumed(
    server: Server, three_saves: Path, tmp_path: Path, every: int
) -> None:
    """Also where the newest state is damaged, and is set aside before training goes on."""
    stopped = tmp_path / "stopped"
    shutil.copytree(three_saves, stopped)
    state = RunFolder(stopped).saved_states()[0]
    state.write_bytes(state.read_bytes()[:-1])
    shutil.copytree(stopped, tmp_path / "whole" / "run")
    points = Points.of(server, tmp_path / "whole" / "run", "--resume", tmp_path / "whole" / "run")
    assert len(points.kills) > 20
    for at in points.kills[::every]:
        folder = tmp_path / f"{at}"
        shutil.copytree(stopped, folder)
        before = partial(strike, signal.SIGKILL, at, folder)
        assert server.run(train("--resume", folder, before=before), tmp_path).code == -signal.SIGKILL
        go_on(server, folder, SAVES)
        check_end(folder, three_saves)


@SLOW
@pytest.mark.parametrize("part", range(4))
def test_a_run_killed_while_it_replaces_another_is_one_of_both(
    server: Server, three_saves: Path, tmp_path: Path, part: int
) -> None:
    other, whole = tmp_path / "other", tmp_path / "whole" / "run"
    go_on(server, other, (*SAVES, "--seed", 1))
    shutil.copytree(other, whole)
    points = Points.of(server, whole, *SAVES, "--out", whole, "--overwrite")
    for at in points.kills[part::4]:
        folder = tmp_path / f"{at}"
        shutil.copytree(other, folder)
        replacing = (*SAVES, "--out", folder, "--overwrite")
        begin = train(*replacing, before=partial(strike, signal.SIGKILL, at, folder))
        assert server.run(begin, tmp_path).code == -signal.SIGKILL
        config = RunFolder(folder).config
        if config.exists() and "seed = 1" in config.read_text():
            again = tmp_path / f"{at} again"
            shutil.copytree(folder, again)
            outcome = server.run(train("--resume", again), tmp_path)
            if outcome.code == 0:
                check_end(again, other)
            else:
                assert f"the training states of {again} are gone" in outcome.error
            assert server.run(train(*replacing), tmp_path).code == 0
        go_on(server, folder, SAVES)
        check_end(folder, three_saves)


# --- killed several times ------------------------------------------------------------------------------------------

MIXED = (
    *("--lr-schedule", "cosine", "--warmup", 5, "--clip", 1, "--stratified", "--threads", 1, "--checkpoint-every", 3),
    *(*AVERAGES, "--snapshot-every", 4),
)
ADAMW = ("--optimizer", "adamw", "--optimizer.weight-decay", 0.1, "--lr-schedule", "linear")
"""Two groups of weights, one of them without decay."""
RUNS: dict[str, tuple[object, ...]] = {
    "points": (*POINTS, *MIXED, "--held-out", 60, "--steps", 60),
    "target network": (*POINTS, *MIXED, "--loss", "consistency", "--held-out", 60, "--steps", 60),
    "learnt uncertainty": (*IMAGES, *MIXED, "--loss", "learnt-uncertainty", "--weighting", "min-snr", "--steps", 18),
    "adamw": (*POINTS, *MIXED, *ADAMW, "--steps", 60),
    "adamw, unet": (*IMAGES, *MIXED, *ADAMW, "--steps", 18),
    "muon": (*IMAGES, *MIXED, "--optimizer", "muon", "--steps", 18),
    "gradients": (*IMAGES, *MIXED, "--backbone.dropout", 0.2, "--self-condition", "--learn-variance", "--steps", 18),
    "bf16": (*IMAGES, *MIXED, "--backbone.dropout", 0.1, "--precision", "bf16", "--held-out", 8, "--steps", 18),
    "latents": (*IMAGES, *MIXED, "--codec", "pca", "--held-out", 8, "--steps", 18),
    "digits in latents": (*IMAGES, *MIXED, "--codec", "pca", "--workers", 0, "--held-out", 8, "--steps", 18),
    "digits": (*IMAGES, *MIXED, "--workers", 0, "--steps", 18),
    "digits, 2 workers": (*IMAGES, *MIXED, "--workers", 2, "--held-out", 20, "--steps", 18),
}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred handwritten digits as PNG files in a folder for each class."""
    sklearn = pytest.importorskip("sklearn.datasets")
    folder, data = tmp_path_factory.mktemp("digits"), sklearn.load_digits()
    for i, (pixels, label) in enumerate(zip(data.images[:100], data.target[:100], strict=True)):
        (folder / f"{label}").mkdir(exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).save(folder / f"{label}" / f"{i:03d}.png")
    return folder


def arguments_of(name: str, digits: Path) -> tuple[object, ...]:
    """Return the arguments of a run; digits are decoded anew for each batch."""
    if "digits" not in name:
        return RUNS[name]
    plain = without(RUNS[name], "--dataset.n")
    here = ("--dataset", "image-folder", "--dataset.path", digits, "--dataset.memory", 0, "--dataset.channels", 1)
    return (*plain, *here, "--dataset.augment", "flip")


def without(arguments: tuple[object, ...], option: str) -> tuple[object, ...]:
    at = arguments.index(option)
    return (*arguments[:at], *arguments[at + 2 :])


QUICK = ("points", "target network", "adamw", "digits, 2 workers")
"""The runs that are killed in the fast tests, too."""
KILLS = (("while", 4, 2), ("before", 9, 3), ("after", 15, 5))
"""Where a run is killed: at the state of which step, and how often it saves until then."""


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in RUNS])
def test_a_run_killed_several_times_ends_like_an_unbroken_one(
    server: Server, digits: Path, tmp_path: Path, name: str
) -> None:
    arguments, folder = arguments_of(name, digits), tmp_path / "run"
    go_on(server, tmp_path / "straight", arguments)
    for when, step, every in KILLS:
        place = ("--resume", folder) if folder.exists() else (*arguments, "--out", folder)
        at = f"{when} step-{step:09d}.safetensors is written"
        before = partial(strike, signal.SIGKILL, at, folder)
        outcome = server.run(train(*place, "--checkpoint-every", every, before=before), tmp_path)
        assert outcome.code == -signal.SIGKILL, outcome.err
        assert logged(folder) >= step  # training goes on while a thread writes
    go_on(server, folder, arguments)
    check_end(folder, tmp_path / "straight")


@SLOW
def test_a_run_killed_while_it_draws_has_every_picture(server: Server, tmp_path: Path) -> None:
    arguments = (*POINTS, "--threads", 1, "--steps", 8, "--preview-every", 3, "--checkpoint-every", 1)
    straight, log = tmp_path / "straight", tmp_path / "log"
    go_on(server, straight, arguments, pictures=True, before=partial(strike, 0, None, straight, log))
    points = [line.split(" ", 1)[1] for line in log.read_text().splitlines()]
    for picture in ("panel-000003.png", "samples-000006.png", "panel-000008.png"):
        folder = tmp_path / picture
        at = max(i for i, point in enumerate(points) if picture in point)
        before = partial(strike, signal.SIGKILL, at, folder)
        outcome = server.run(train(*arguments, "--out", folder, pictures=True, before=before), tmp_path)
        assert outcome.code == -signal.SIGKILL, outcome.err
        go_on(server, folder, arguments, pictures=True)
        check_end(folder, straight)
        steps = (f"{kind}-{step:06d}.png" for kind in ("panel", "samples") for step in (3, 6, 8))
        assert [p.name for p in sorted((folder / "previews").iterdir())] == list(steps)


TIMES = ("elapsed", "steps_per_second", "waiting")
"""Metrics that differ from run to run."""
CONSTANT = ("--lr-schedule", "constant", "--warmup", 5)
"""A learning rate that does not depend on how long a run is."""


def test_a_run_that_is_made_longer_under_kills_equals_a_longer_one(server: Server, tmp_path: Path) -> None:
    straight, folder = tmp_path / "straight", tmp_path / "run"
    arguments = (
        *POINTS,
        *CONSTANT,
        *AVERAGES,
        "--snapshot-every",
        7,
        "--threads",
        1,
        "--checkpoint-every",
        2,
        "--steps",
    )
    go_on(server, straight, (*arguments, 45))
    go_on(server, folder, (*arguments, 10))
    for steps, at in ((11, 11), (30, 18), (45, 44)):
        before = partial(strike, signal.SIGKILL, f"before step-{at:09d}.safetensors is written", folder)
        longer = ("--resume", folder, "--steps", steps)
        assert server.run(train(*longer, before=before), tmp_path).code == -signal.SIGKILL
        assert server.run(train(*longer), tmp_path).code == 0
        assert newest(folder) == steps
    check_end(folder, straight)


NINTH = "before step-000000009.safetensors is written"
"""A point of `strike`."""


def test_workers_of_a_killed_run_do_not_hold_it(server: Server, digits: Path, tmp_path: Path) -> None:
    arguments, folder = arguments_of("digits, 2 workers", digits), tmp_path / "run"
    go_on(server, tmp_path / "straight", arguments)
    child = server.start(
        train(*arguments, "--out", folder, before=partial(strike, signal.SIGKILL, NINTH, folder)), tmp_path
    )
    assert child.outcome().code == -signal.SIGKILL
    go_on(server, folder, arguments)
    check_end(folder, tmp_path / "straight")
    with contextlib.suppress(ProcessLookupError):  # they look for their parent every few seconds
        os.killpg(child.pid, signal.SIGKILL)


def stored(kind: str, folder: Path) -> tuple[object, ...]:
    """Write forty items of numbers, in a file or files of a kind, and return the options that read them."""
    import numpy as np

    rows = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    name, path, more = "array", folder / f"x.{kind}", ("--dataset.memory", 0)
    if kind == "npy":
        np.save(path, rows)
    elif kind == "parquet":
        pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        pq.write_table(pa.table({"x": rows[:, 0], "y": rows[:, 1]}), path)
        more = ()  # tables are held in memory
    elif kind == "shards":
        name, path = "webdataset", folder / "shards"
        path.mkdir()
        for k in range(3):
            with tarfile.open(path / f"{k}.tar", "w") as tar:
                for i, row in enumerate(rows[k::3]):
                    stream = io.BytesIO()
                    np.save(stream, row)
                    member = tarfile.TarInfo(f"{i}.npy")
                    member.size = stream.tell()
                    tar.addfile(member, io.BytesIO(stream.getvalue()))
    else:
        name, path = "hf", folder / "saved"
        library = pytest.importorskip("datasets")
        library.Dataset.from_dict({"x": rows}).save_to_disk(path)
    return ("--dataset", name, "--dataset.path", path, "--backbone", "mlp", *more)


STORED = ("npy", "shards", *(pytest.param(kind, marks=pytest.mark.extras) for kind in ("parquet", "save_to_disk")))


@pytest.mark.parametrize("kind", STORED)
def test_a_killed_run_sees_stored_data_in_the_same_order(server: Server, tmp_path: Path, kind: str) -> None:
    data, folder = stored(kind, tmp_path), tmp_path / "run"
    network = (*without(POINTS, "--dataset.n"), "--batch-size", 7, "--workers", 1, "--threads", 1)
    arguments = (*data, *network, "--held-out", 4, "--steps", 18, "--checkpoint-every", 3)
    go_on(server, tmp_path / "straight", arguments)
    begin = train(*arguments, "--out", folder, before=partial(strike, signal.SIGKILL, NINTH, folder))
    assert server.run(begin, tmp_path).code == -signal.SIGKILL
    go_on(server, folder, arguments)
    check_end(folder, tmp_path / "straight")


# --- signals -------------------------------------------------------------------------------------------------------

ENDLESS = (*POINTS, *CONSTANT, "--threads", 1, "--steps", 10**7, "--checkpoint-every", 7)
"""A run that nobody waits for."""
NOTED = "stopping after this step; once more stops at once"


def check_quiet(text: str) -> None:
    for noise in ("Traceback", "Exception ignored", "Stopped", "Interrupt", "Error:"):
        assert noise not in text, text


def check_stopped(outcome: Outcome, number: int, folder: Path) -> None:
    """A signal ended the program in good order; of a run that trained with the line that goes on."""
    assert (outcome.code, outcome.out) == (SIGNALS[signal.Signals(number)], ""), outcome.err
    check_quiet(outcome.err)
    assert outcome.errors == []
    lines = [line for line in outcome.err.splitlines() if line.startswith("difftool: ")]
    assert len(lines) == (NOTED in outcome.err), outcome.err  # otherwise it had not begun to train, or was through
    for line in lines:
        found = re.fullmatch(
            rf"difftool: stopped by {signal.Signals(number).name} after step (\d+) of \d+; everything is saved; "
            r"go on with: difftool train --resume (.+)",
            line,
        )
        assert found, line
        assert Path(shlex.split(found[2])[0]) == folder
        assert newest(folder) == int(found[1])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_says_how_to_go_on(server: Server, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "a run"
    child = server.start(train(*ENDLESS, "--out", folder), tmp_path)
    assert child.wait_until(lambda: logged(folder) >= 20)
    outcome = child.signal(number)
    check_stopped(outcome, number, folder)
    assert "everything is saved; go on with: " in outcome.err
    assert NOTED in outcome.err
    assert leftovers(folder) == []
    end = newest(folder) + 5
    assert server.run(train("--resume", folder, "--steps", end), tmp_path).code == 0
    go_on(server, tmp_path / "straight", (*without(ENDLESS, "--steps"), "--steps", end))
    check_end(folder, tmp_path / "straight", but="metrics")  # of an endless run they are a row for 50 steps


def test_the_signals_of_queues_let_the_same_command_go_on(server: Server, tmp_path: Path) -> None:
    """Ctrl-C ends even a command that could be repeated with a code of its own."""
    folder = tmp_path / "run"
    for number, code in ((signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGINT, 130)):
        child = server.start(train(*ENDLESS, "--out", folder, "--resume", "auto"), tmp_path)
        beyond = newest(folder)
        assert child.wait_until(lambda beyond=beyond: logged(folder) > beyond), child.err
        outcome = child.signal(number)
        assert (outcome.code, outcome.out, outcome.errors) == (code, "", []), outcome.err
        assert f"stopped by {number.name} after step {newest(folder)} of" in outcome.err
        assert newest(folder) > beyond


@pytest.fixture(scope="module")
def calls(server: Server, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return the number of functions that a run of three saves calls."""
    folder = tmp_path_factory.mktemp("calls")
    before = partial(strike_at_calls, 0, (), folder / "log")
    assert server.run(train(*SAVES, "--out", folder / "run", before=before), folder).code == 0
    return int((folder / "log").read_text())


def check_stopped_run(server: Server, outcome: Outcome, number: int, folder: Path, straight: Path) -> None:
    check_stopped(outcome, number, folder)
    go_on(server, folder, SAVES)
    check_end(folder, straight)


@pytest.mark.parametrize("moments", [9, pytest.param(30, marks=SLOW)])
def test_a_signal_at_any_call_of_a_function_ends_a_run_quietly(
    server: Server, calls: int, three_saves: Path, tmp_path: Path, moments: int
) -> None:
    rng = random.Random(moments)
    for moment, number in zip(range(moments), itertools.cycle(SIGNALS)):
        folder, at = tmp_path / f"{moment}", (rng.randrange(calls),)
        begin = train(*SAVES, "--out", folder, before=partial(strike_at_calls, number, at))
        check_stopped_run(server, server.run(begin, tmp_path), number, folder, three_saves)


@SLOW
def test_two_signals_at_any_calls_end_a_run_quietly(
    server: Server, calls: int, three_saves: Path, tmp_path: Path
) -> None:
    rng = random.Random(2)
    for moment, number in zip(range(30), itertools.cycle(SIGNALS)):
        folder, first = tmp_path / f"{moment}", rng.randrange(calls)
        at = (first, first + rng.randint(1, 2000))
        outcome = server.run(train(*SAVES, "--out", folder, before=partial(strike_at_calls, number, at)), tmp_path)
        assert (outcome.code, outcome.out) == (SIGNALS[number], ""), outcome.err
        check_quiet(outcome.err)
        go_on(server, folder, SAVES)
        check_end(folder, three_saves)


@pytest.mark.parametrize("every", [15, pytest.param(4, marks=SLOW)])
def test_a_signal_before_any_change_of_a_file_ends_a_run_quietly(
    server: Server, points: Points, three_saves: Path, tmp_path: Path, every: int
) -> None:
    left = []
    for at, number in zip(range(0, len(points.names), every), itertools.cycle(SIGNALS)):
        folder = tmp_path / f"{at}"
        begin = train(*SAVES, "--out", folder, before=partial(strike, number, at, folder))
        outcome = server.run(begin, tmp_path)
        left += leftovers(folder)
        check_stopped_run(server, outcome, number, folder, three_saves)
    assert left == []


def test_a_second_signal_stops_at_once(server: Server, three_saves: Path, tmp_path: Path) -> None:
    """Also when the disk that the first one had a state saved to never answers."""
    folder = tmp_path / "run"
    shutil.copytree(three_saves, folder)
    before = tree(folder / "state")
    rarely = ("--steps", 10**6, "--checkpoint-every", 10**6)  # more would ask for gigabytes of disk for snapshots
    child = server.start(train("--resume", folder, *rarely, before=partial(hang_after, signal.SIGUSR1)), tmp_path)
    assert child.wait_until(lambda: logged(folder) > 3), f"it ended with {child.code}: {child.err}"
    os.kill(child.pid, signal.SIGUSR1)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait_until(lambda: NOTED in child.err and leftovers(folder))
    outcome = child.signal(signal.SIGINT)
    assert (outcome.code, outcome.out) == (130, "")
    check_quiet(outcome.err)
    assert tree(folder / "state") == before
    assert leftovers(folder) == []


def test_under_nohup_a_run_goes_on(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ignoring = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    child = server.start(train(*ENDLESS, "--out", folder, before=ignoring), tmp_path)
    assert child.wait_until(lambda: logged(folder) >= 5)
    os.kill(child.pid, signal.SIGHUP)
    beyond = logged(folder) + 100
    assert child.wait_until(lambda: logged(folder) >= beyond)
    assert NOTED not in child.err
    check_stopped(child.signal(signal.SIGTERM), signal.SIGTERM, folder)


def is_gone(group: int) -> bool:
    """Return True when no process of a group is left; wait a while for that."""
    for _ in range(PATIENCE * 100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("moment", ["while training", "while the workers start"])
def test_ctrl_c_reaches_the_workers_too(server: Server, digits: Path, tmp_path: Path, moment: str) -> None:
    if moment != "while training" and multiprocessing.get_context().get_start_method() != "fork":
        pytest.skip("workers are not forked from the process that trains")
    arguments, folder = arguments_of("digits, 2 workers", digits), tmp_path / "run"
    go_on(server, tmp_path / "straight", arguments)
    struck = {
        "while training": partial(strike, signal.SIGINT, NINTH, folder),
        "while the workers start": partial(strike_group_at_fork, signal.SIGINT, tmp_path / "once"),
    }
    child = server.start(train(*arguments, "--out", folder, before=struck[moment]), tmp_path)
    check_stopped(child.outcome(), signal.SIGINT, folder)
    assert child.err.count(NOTED) == 1
    assert is_gone(child.pid)
    go_on(server, folder, arguments)
    check_end(folder, tmp_path / "straight")


WHILE_IMPORTING = """
import os, signal, sys
number, module = int(sys.argv[1]), sys.argv[2]
signal.signal(number, signal.SIG_DFL)
def hook(event, arguments):
    if event == "import" and arguments[0] == module:
        os.kill(os.getpid(), number)
sys.addaudithook(hook)
from difftool.cli.main import main
main(sys.argv[3:])
"""
IMPORTED = {"typer": signal.SIGHUP, "torch._C": signal.SIGINT, "torch.nn.functional": signal.SIGTERM}
ALSO = ("rich.console", "pydantic", "numpy", "numpy.linalg", "torch", "torch.optim")
IMPORTS = [
    *IMPORTED.items(),
    *(pytest.param(*pair, marks=SLOW) for pair in zip(ALSO, itertools.cycle(SIGNALS))),
]


@pytest.mark.parametrize(("module", "number"), IMPORTS)
def test_a_signal_while_modules_are_imported_ends_quietly(tmp_path: Path, module: str, number: signal.Signals) -> None:
    words = (WHILE_IMPORTING, int(number), module, "train", *SAVES, "--out", "run")
    command = [sys.executable, "-c", *map(str, words)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (SIGNALS[number], ""), done.stderr
    check_quiet(done.stderr)


def test_the_program_itself(server: Server, tmp_path: Path) -> None:
    """The same in a process that was not forked, to the last thing that Python does; then it loses half a line."""
    folder, straight = tmp_path / "run", tmp_path / "straight"
    command = [sys.executable, "-m", "difftool", "train", *map(str, last_of(ENDLESS)), "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(PATIENCE * 50):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
        if logged(folder) or process.poll() is not None:
            break
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE)
    check_stopped(Outcome(process.returncode, out, err), signal.SIGTERM, folder)
    with RunFolder(folder).metrics.open("a") as file:
        file.write('{"step": 9999999, "lo')
    end = newest(folder) + 9
    assert server.run(train("--resume", folder, "--steps", end), tmp_path).code == 0
    go_on(server, straight, (*without(ENDLESS, "--steps"), "--steps", end))
    check_end(folder, straight, but="metrics")


def test_a_second_process_is_told_who_is_at_work(server: Server, tmp_path: Path) -> None:
    child = server.start(train(*ENDLESS, "--out", tmp_path / "run"), tmp_path)
    assert child.wait_until(lambda: logged(tmp_path / "run") >= 1)
    outcome = invoke("train", "--resume", tmp_path / "run")
    assert outcome.code == 1
    assert f"{tmp_path / 'run'} is in use by process {child.pid}" in outcome.error
    child.kill()


# --- no room -------------------------------------------------------------------------------------------------------

CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
NO_ROOM_HERE = 77


def in_a_small_room(place: Path, kilobytes: int, begin: tuple[object, ...], folder: Path) -> None:
    """Train on a file system of so many kB until it is full, try to go on, make room, and go on. What each left goes to
    `folder`.

    It is mounted for this process alone.
    """
    quicken()
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        sys.exit(NO_ROOM_HERE)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text)

    def mount(options: str) -> None:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=False).returncode:
            sys.exit(NO_ROOM_HERE)

    mount(f"size={kilobytes}k")
    first = invoke("train", *begin, "--out", place / "run")
    shutil.copytree(place / "run", folder / "full")
    second = invoke("train", "--resume", place / "run")
    shutil.copytree(place / "run", folder / "still full")
    mount("remount,size=8m")
    third = invoke("train", "--resume", place / "run")
    shutil.copytree(place / "run", folder / "end")
    print(json.dumps([[o.code, o.out, o.err] for o in (first, second, third)]))


@pytest.mark.parametrize("kilobytes", [150, 250, 350])
def test_a_disk_that_fills_up_leaves_the_older_state(server: Server, tmp_path: Path, kilobytes: int) -> None:
    """One state fits, of 90 kB, and several do not."""
    begin = (*POINTS, "--backbone.width", 40, "--threads", 1, "--steps", 40, "--checkpoint-every", 2, "--keep", 3)
    (tmp_path / "room").mkdir()
    outcome = server.run(partial(in_a_small_room, tmp_path / "room", kilobytes, begin, tmp_path), tmp_path)
    if outcome.code == NO_ROOM_HERE:
        pytest.skip("no file system can be mounted here")
    assert outcome.code == 0, outcome.err
    first, second, third = (Outcome(*parts) for parts in json.loads(outcome.out))
    assert (first.code, first.out) == (second.code, second.out) == (1, "")
    assert "No space left on device" in first.error
    assert "No space left on device" in second.error or "MiB left" in second.error
    check_whole(tmp_path / "full")
    check_whole(tmp_path / "still full")
    assert third.code == 0, third.err
    go_on(server, tmp_path / "straight", begin)
    check_end(tmp_path / "end", tmp_path / "straight", keep=3)


def check_whole(folder: Path) -> None:
    """Every state of a run that failed is whole, and nothing else lies about."""
    assert leftovers(folder) == []
    states = sorted((folder / "state").iterdir())
    assert states == sorted(RunFolder(folder).saved_states())
    for path in (*states, *folder.glob("model.safetensors")):
        checkpoint.load(path)


@pytest.mark.parametrize(("size", "what"), [(20_000, "state/step-"), (30_000, "metrics.jsonl")])
def test_a_file_that_may_not_grow(server: Server, tmp_path: Path, size: int, what: str) -> None:
    """A state takes 27 kB, and the metrics grow."""
    begin, folder = (*POINTS, "--threads", 1, "--steps", 100, "--checkpoint-every", 4), tmp_path / "run"
    outcome = server.run(train(*begin, "--out", folder, before=partial(limit_files, size)), tmp_path)
    assert (outcome.code, outcome.out) == (1, "")
    assert f"{folder}/{what}" in outcome.error
    assert "could not be written" in outcome.error
    check_whole(folder)
    go_on(server, folder, begin)
    go_on(server, tmp_path / "straight", begin)
    check_end(folder, tmp_path / "straight")


# --- damage --------------------------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "one byte short": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a bit of the last tensor": lambda data: flipped(data, len(data) - 3),
    "a bit of the first tensor": lambda data: flipped(data, 8 + int.from_bytes(data[:8], "little")),
    "a bit of the counters": lambda data: flipped(data, data.index(b'"step') + 10),
    "a bit of the size of the header": lambda data: flipped(data, 1),
}


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


BROKEN = (*POINTS, "--threads", 1, "--steps", 24, "--checkpoint-every", 3)


@pytest.fixture(scope="module")
def killed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed when it had its states after 3 and 6 steps."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    begin = train(*BROKEN, "--out", folder, before=partial(strike, signal.SIGKILL, NINTH, folder))
    assert server.run(begin, folder.parent).code == -signal.SIGKILL
    return folder


@pytest.fixture(scope="module")
def unbroken(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    go_on(server, folder, BROKEN)
    return folder


@pytest.mark.parametrize("how", [*DAMAGE, "renamed"])
def test_a_damaged_newest_state_costs_nothing(
    server: Server, killed: Path, unbroken: Path, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    state, older = RunFolder(folder).saved_states()[:2]
    if how == "renamed":
        state = state.rename(RunFolder(folder).state(20))
    else:
        state.write_bytes(DAMAGE[how](state.read_bytes()))
    content = state.read_bytes()
    outcome = go_on(server, folder, BROKEN)
    (warning,) = (line for line in outcome.err.splitlines() if line.startswith("difftool: warning: "))
    assert state.name in warning
    assert f"going on from {older.name}" in warning
    (damaged,) = RunFolder(folder).damaged_states()
    assert damaged.read_bytes() == content
    check_end(folder, unbroken)


def test_where_every_state_is_damaged_nothing_is_begun(server: Server, killed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    for state in RunFolder(folder).saved_states():
        state.write_bytes(flipped(state.read_bytes(), -100))
    outcome = server.run(train("--resume", folder), tmp_path)  # the killed process left a lock and temporaries
    assert outcome.code == 1
    assert f"no valid state in {folder / 'state'}" in outcome.error
    before = tree(folder)
    outcome = server.run(train("--resume", folder), tmp_path)
    assert outcome.code == 1
    assert tree(folder) == before
