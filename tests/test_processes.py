"""Many processes under torchrun: one model, one set of samples, a line from each process that fails, and one end."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import paper_losses
import pytest
import torch
from conftest import IMAGES, POINTS, Outcome, invoke, last_of
from forks import DISTRIBUTED, Server
from PIL import Image
from torch import Tensor

from difftool import devices
from difftool import distributed as processes
from difftool.data.batches import Batches
from difftool.data.samples import Samples
from difftool.distributed import SINGLE, ProcessGroup, World, connect, world
from difftool.errors import UsageError
from difftool.runs.checkpoint import load
from difftool.runs.folder import RunFolder
from difftool.training import state
from difftool.training.metrics import Statistics

PATIENCE = 600
"""The seconds after which a test fails because of processes that hang. Two processes and torchrun start in 10 seconds
on two free cores, and in minutes if other tests share these."""
PROCESSES = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes under /proc")

# --- processes -----------------------------------------------------------------------------------------------------


AGENT = ("--standalone", "--nproc-per-node", "2")


class Torchrun:
    """torchrun and the processes that it started: two, unless `agent` says otherwise."""

    def __init__(self, folder: Path, *words: object, agent: Sequence[str] = AGENT) -> None:
        self.streams = [folder / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        with open(self.streams[0], "wb") as out, open(self.streams[1], "wb") as err:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", *agent),
                    *map(str, last_of(words)),
                ],
                cwd=folder,
                env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def children(self) -> list[int]:
        """The numbers of the processes of difftool."""
        return [*map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split())]

    def pid(self, rank: int) -> int:
        """The number of a process of difftool."""
        own = f"RANK={rank}".encode()
        return next(c for c in self.children() if own in Path(f"/proc/{c}/environ").read_bytes().split(b"\0"))

    def wait_until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert self.process.poll() is None, self.streams[1].read_text()
            assert time.monotonic() < deadline, self.streams[1].read_text()
            time.sleep(0.005)

    def end(self, seconds: float = PATIENCE) -> Outcome:
        code = self.process.wait(seconds)
        return Outcome(code, *(stream.read_text() for stream in self.streams))

    def close(self) -> None:
        """Leave nothing behind, whatever the test found."""
        if self.process.poll() is None:
            self.vanish()

    def vanish(self) -> None:
        """End as a machine does that loses its power."""
        children = self.children()
        self.process.kill()
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Callable[..., Torchrun]]:
    """`torchrun("train", "--steps", 3)` starts two processes, in an empty folder; `script` another program."""
    started: list[Torchrun] = []

    def start(*arguments: object, script: Path | None = None, agent: Sequence[str] = AGENT) -> Torchrun:
        program = ("-m", "difftool") if script is None else (script,)
        started.append(Torchrun(tmp_path, *program, *arguments, agent=agent))
        return started[-1]

    yield start
    for one in started:
        one.close()


def free_port() -> int:
    """A port that no process listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def as_rank(rank: int, port: int, folder: Path, words: Sequence[str]) -> None:
    """Run the command line as a process of two, as torchrun starts it."""
    from difftool.cli.main import main

    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
    os.chdir(folder)
    main([*words])


def as_rank_of_a_job(rank: int, port: int, folder: Path, words: Sequence[str]) -> None:
    """The same in a job of limited time, on a clock that goes on by a second with each look."""
    from difftool.cli import time_limit
    from difftool.training import saving

    ticks = itertools.count()
    changed: Any = time_limit
    changed.started, changed.now = float, lambda: float(next(ticks))
    saving.perf_counter = float  # type: ignore[attr-defined,assignment]
    as_rank(rank, port, folder, words)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    made = [Server(tmp_path_factory.mktemp("server"), *DISTRIBUTED) for _ in range(2)]
    yield made
    for server in made:
        server.close()


@pytest.fixture
def pair(servers: Sequence[Server], tmp_path: Path) -> Callable[..., Outcome]:
    """`pair("train", "--steps", 3)` runs a command in two processes, in an empty folder, without torchrun above them.

    They are forked, since torchrun and its processes take seconds to import torch.
    """

    def run(*arguments: object, start: Callable[[int, int, Path, Sequence[str]], None] = as_rank) -> Outcome:
        port = free_port()
        words, children = [str(word) for word in last_of(arguments)], []
        for rank, server in enumerate(servers):
            streams = tmp_path / f"rank{rank}"
            streams.mkdir(exist_ok=True)
            children.append(server.start(partial(start, rank, port, tmp_path, words), streams))
        ended = [child.outcome() for child in children]
        (code,) = {one.code for one in ended}
        return Outcome(code, "".join(o.out for o in ended), "".join(o.err for o in ended))

    return run


def codes(outcome: Outcome) -> set[int]:
    """The exit codes of the processes, as torchrun tells them."""
    return {int(code) for code in re.findall(r"exitcode\s*: (-?\d+)", outcome.err)}


def final_lines(outcome: Outcome) -> list[str]:
    """The lines that end a run; those of a single process begin with its rank."""
    pattern = r"(\[rank\d\]: )?difftool: (?!warning: )"
    return [line for line in outcome.err.splitlines() if re.match(pattern, line)]


def logged(folder: Path) -> int:
    rows = RunFolder(folder).read_metrics()
    return rows[-1]["step"] if rows else 0


def distance(a: Path, b: Path) -> float:
    """The largest difference of two runs: of their models, and of the weights, moments and averages to go on from."""
    largest = 0.0
    for left, right in ((a, b), *((RunFolder(x).saved_states()[0] for x in (a, b)),)):
        files = [path / "model.safetensors" if path.is_dir() else path for path in (left, right)]
        (ours, _), (theirs, _) = (load(file) for file in files)
        assert ours.keys() == theirs.keys()
        largest = max(largest, *(float((ours[k].double() - theirs[k].double()).abs().max()) for k in ours))
    return largest


def check_rows(folder: Path, other: Path) -> None:
    """Both logged the same, to 1e-5, and each step once."""
    rows, others = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (folder, other)
    )
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, expected in zip(rows, others, strict=True):
        for measured in (row, expected):
            del measured["elapsed"], measured["steps_per_second"], measured["waiting"]
        assert flat(row) == pytest.approx(flat(expected), rel=1e-5, abs=1e-5)


def flat(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row; -1 for none."""
    four = (row.pop(name, [None] * 4) for name in ("loss_quartiles", "held_out_quartiles"))
    quartiles = {f"quartile {i}": value for i, value in enumerate(itertools.chain(*four))}
    return {name: -1.0 if value is None else value for name, value in {**row, **quartiles}.items()}


def one(folder: Path, *arguments: object) -> Outcome:
    """The same in one process: this one."""
    with contextlib.chdir(folder):
        outcome = invoke(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


# --- who one is ----------------------------------------------------------------------------------------------------


def surround(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    for name, value in zip(processes.NAMES, values, strict=False):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), World()),
        (("0", "1", "0", "1"), World()),
        (("5", "8", "1", "4"), World(rank=5, size=8, local_rank=1, local_size=4)),
        (("1", "2"), World(rank=1, size=2, local_rank=1, local_size=2)),
        (("2", "2"), World()),
        (("x", "2"), World()),
        (("", ""), World()),
    ],
)
def test_the_world_is_torchruns(monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...], expected: World) -> None:
    surround(monkeypatch, *values)
    assert world() == expected
    processes.leave_world()
    assert world() == World()


def test_a_single_process_connects_to_nobody() -> None:
    with connect() as group:
        assert group is SINGLE
        assert not torch.distributed.is_initialized()
    network = torch.nn.Linear(2, 2)
    assert group.wrap(network) is network
    assert (group.all_max(15), group.all_sum(1.5), group.all_mean(1.5)) == (15, 1.5, 1.5)
    assert (group.all_gather("x"), group.on_main(lambda: "y"), group.key) == (["x"], "y", ())
    assert (group.shard(7), group.loss_factor(7)) == (slice(0, 7), 1.0)


@pytest.mark.parametrize(("n", "size"), [(7, 2), (8, 2), (5, 5), (64, 3)])
def test_shards_are_a_whole_and_weigh_as_much(n: int, size: int) -> None:
    groups = [ProcessGroup(World(rank, size, rank, size)) for rank in range(size)]
    losses = torch.arange(float(n)) ** 2
    assert torch.equal(torch.cat([losses[group.shard(n)] for group in groups]), losses)
    means = [losses[group.shard(n)].mean() * group.loss_factor(n) for group in groups]
    assert float(sum(means)) / size == pytest.approx(float(losses.mean()))
    assert len({group.key for group in groups}) == size


def test_moments_are_pooled() -> None:
    x = torch.randn(100) * 3 + 1
    pooled, whole = Statistics.pooled([Statistics.of(x[:30]), Statistics.of(x[30:])]), Statistics.of(x)
    assert (pooled.count, pooled.mean) == (100, pytest.approx(whole.mean, abs=1e-6))
    assert pooled.variance == pytest.approx(whole.variance, rel=1e-6)


class Source:
    """Items that are read one by one."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor([float(i), float(i) ** 2])


def jitter(x: Tensor, random: torch.Generator) -> Tensor:
    return x + torch.rand(len(x), 1, generator=random)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("augment", [None, jitter])
def test_each_process_reads_its_part_of_every_batch(in_memory: bool, augment: Any) -> None:
    items: Any = torch.stack([Source()[i] for i in range(11)]) if in_memory else Source()
    samples = Samples(items=items, shape=(2,), labels=torch.arange(11), augment=augment)
    parts = [Batches(samples, 5, seed=0, part=slice(*ends)).start(2) for ends in ((0, 2), (2, 5))]
    for whole, *own in zip(islice(Batches(samples, 5, seed=0).start(2), 4), *parts, strict=False):
        assert torch.equal(torch.cat([batch.items for batch in own]), whole.items)
        assert torch.equal(torch.cat([batch.condition.label for batch in own]), whole.condition.label)


def test_processes_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    surround(monkeypatch, "0", "2", "0", "2")
    for given, expected in (("1", max(1, cores // 2)), ("3", 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        before = torch.get_num_threads()
        torch.set_num_threads(int(given))
        with devices.threads(None):
            assert torch.get_num_threads() == expected
        with devices.threads(1):
            assert torch.get_num_threads() == 1
        torch.set_num_threads(before)


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    surround(monkeypatch, "3", "4", "1", "2")
    assert devices.choose("auto").type == "cpu" or torch.cuda.is_available()
    monkeypatch.setattr(devices, "available", lambda: ["cuda:0", "cuda:1", "cpu"])
    assert devices.choose("auto") == devices.choose("cuda") == torch.device("cuda:1")
    assert devices.choose("cpu") == torch.device("cpu")
    for name in ("cuda:0", "mps"):
        with pytest.raises(UsageError, match=f"4 processes cannot share {name}; choose auto, cuda or cpu"):
            devices.choose(name)
    surround(monkeypatch, "3", "4", "3", "4")
    with pytest.raises(UsageError, match="4 processes need a GPU each, and this machine has 2"):
        devices.choose("cuda")


# --- one model -----------------------------------------------------------------------------------------------------

LABELLED = (
    *("--dataset", "gaussian-mixture", "--dataset.components", 4, "--dataset.labels"),
    *(*POINTS, "--threads", 1, "--held-out", 50, "--steps", 40, "--checkpoint-every", 25, "--stratified"),
)
UNEVEN = (
    *(*IMAGES, "--optimizer", "adam", "--batch-size", 7, "--self-condition", "--learn-variance", "--clip", 0.5),
    *("--steps", 12),
)
STREAMED = (
    *("--dataset", "image-folder", "--dataset.path", "photos", "--dataset.size", 8, "--dataset.memory", 0),
    *(
        "--dataset.augment",
        "flip",
        "--workers",
        1,
        "--backbone",
        "unet",
        "--backbone.dim",
        8,
        "--backbone.dim-mults",
        "1,2",
    ),
    *("--backbone.groups", 4, "--batch-size", 5, "--threads", 1, "--preview-every", 0, "--steps", 8),
    *("--optimizer", "adam", "--lr", 1e-3),  # Muon rounds to bfloat16 on the way
)
LATENT = (*STREAMED, "--codec", "pca", "--codec.size", 2)
"""Batches that are encoded as they come, for each half of them is flipped."""


def photos(folder: Path, count: int = 20) -> None:
    """Little pictures in two classes, all different."""
    for i in range(count):
        place = folder / "photos" / ("cat" if i % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(noise.numpy()).save(place / f"{i:03d}.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [LABELLED, UNEVEN, STREAMED, LATENT], ids=["labelled", "uneven", "streamed", "latent"]
)
def test_two_processes_make_the_model_of_one(
    pair: Callable[..., Outcome], tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    photos(tmp_path)
    outcome = pair("train", *arguments, "--out", "two")
    assert (outcome.code, outcome.lines) == (0, ["two"]), outcome.err
    assert "2 processes" in outcome.err
    for line in ("run folder two", "sample it with: difftool sample two"):
        assert outcome.err.splitlines().count(line) == 1
    assert "arning" not in outcome.err
    one(tmp_path, "train", *arguments, "--out", "one")
    assert distance(tmp_path / "two", tmp_path / "one") <= 1e-6
    check_rows(tmp_path / "two", tmp_path / "one")
    assert RunFolder(tmp_path / "two").recorded()["processes"] == 2


LONG = (*POINTS, "--threads", 1, "--steps", 400, "--checkpoint-every", 50)


@pytest.mark.slow
@PROCESSES
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_and_one_goes_on(
    torchrun: Callable[..., Torchrun], tmp_path: Path, rank: int
) -> None:
    run = torchrun("train", *LONG, "--out", "two")
    run.wait_until(lambda: logged(tmp_path / "two") > 3)
    os.kill(run.pid(rank), signal.SIGTERM)
    outcome = run.end()
    stopped = state_step(tmp_path / "two")
    assert final_lines(outcome) == [
        f"difftool: stopped by SIGTERM after step {stopped} of 400; everything is saved; "
        "go on with: difftool train --resume two"
    ]
    assert 3 < stopped < 400
    assert codes(outcome) == {143}
    assert state.check(RunFolder(tmp_path / "two").saved_states()[0]) == ""
    resumed = one(tmp_path, "train", "--resume", "two")
    assert "the run was trained with processes 2, now 1" in resumed.err
    one(tmp_path, "train", *LONG, "--out", "one")
    assert distance(tmp_path / "two", tmp_path / "one") <= 1e-6


def state_step(folder: Path) -> int:
    return int(RunFolder(folder).saved_states()[0].stem.removeprefix("step-"))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [(), ("--shard",)], ids=["whole", "shard"])
def test_two_processes_cut_by_time_limits_end_like_two_that_ran_through(
    pair: Callable[..., Outcome], tmp_path: Path, shared: Sequence[str]
) -> None:
    """Each of them says so to its queue, and one of them says how to go on."""
    (tmp_path / "q").mkdir()  # as a queue's script may leave it
    run = ("train", *POINTS, *shared, "--threads", 1, "--steps", 30, "--checkpoint-every", 9)
    steps = []
    while (
        outcome := pair(*run, "--out", "q", "--resume", "auto", "--time-limit", "40s", start=as_rank_of_a_job)
    ).code == 75:
        (line,) = final_lines(outcome)
        found = re.search(r"after step (\d+) of 30; .* go on with: difftool train --resume q --time-limit 40s$", line)
        assert found, line
        steps.append(int(found[1]))
    assert outcome.code == 0, outcome.err
    assert steps == [18]
    assert pair(*run, "--out", "through").code == 0
    assert (tmp_path / "q/model.safetensors").read_bytes() == (tmp_path / "through/model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(pair: Callable[..., Outcome], tmp_path: Path) -> None:
    """Also where the newest state is damaged: they take up the same."""
    one(tmp_path, "train", *POINTS, "--threads", 1, "--steps", 40, "--checkpoint-every", 30, "--out", "two")
    newest = RunFolder(tmp_path / "two").saved_states()[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    outcome = pair("train", "--resume", "two", "--steps", 60)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("resuming two after step 30") == 1
    assert outcome.err.count("processes 1, now 2") == 1
    one(tmp_path, "train", *POINTS, "--threads", 1, "--steps", 60, "--checkpoint-every", 30, "--out", "one")
    assert distance(tmp_path / "two", tmp_path / "one") <= 1e-6


@pytest.mark.slow
def test_two_processes_start_from_other_weights(pair: Callable[..., Outcome], tmp_path: Path, points_run: Path) -> None:
    """They do so together, and go on together from the state before the first step, without the source."""
    source = shutil.copytree(points_run, tmp_path / "source")
    start = (*POINTS, "--threads", 1, "--steps", 40, "--train-only", "^last|^first", "--init-from", "source")
    one(tmp_path, "train", *start, "--out", "one")
    outcome = pair("train", *start, "--out", "two")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("took 8 of 8 tensors") == 1
    assert distance(tmp_path / "two", tmp_path / "one") <= 1e-6
    shutil.rmtree(source)
    RunFolder(tmp_path / "two").state(40).unlink()
    assert pair("train", "--resume", "two").code == 0
    assert distance(tmp_path / "two", tmp_path / "one") <= 1e-6


@pytest.mark.slow
def test_a_callback_stops_all_processes(pair: Callable[..., Outcome], tmp_path: Path) -> None:
    """Its numbers are those of the whole batch, and all processes go on together."""
    stops = ("--callback", "early-stop", "--callback.metric", "grad_norm", "--callback.patience", 3)
    long = (*POINTS, "--threads", 1, "--steps", 60, *stops)
    outcome = pair("train", *long, "--out", "two")
    assert (outcome.code, outcome.lines) == (0, ["two"]), outcome.err
    assert outcome.err.count("callback early-stop stopped the run: grad_norm has not fallen in 3 measurements") == 1
    last = state_step(tmp_path / "two")
    assert 3 < last < 60
    one(tmp_path, "train", *long, "--out", "one")
    assert state_step(tmp_path / "one") == last
    assert distance(tmp_path / "two", tmp_path / "one") <= 1e-6
    assert pair("train", "--resume", "two", "--callback", "none").code == 0
    assert state_step(tmp_path / "two") == 60


SCRIPT = r"""
import atexit, os, pathlib

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # whole, whatever the other process prints

def say_threads():
    names = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
    say(os.environ["RANK"], "threads", sum("gloo_runloop" in name for name in names))

atexit.register(say_threads)  # called after what is registered later
import difftool

mlp = difftool.component("backbone", "mlp", width=16, depth=1)
data = difftool.component("dataset", "swiss-roll", n=500)
for out in ("x", "y"):
    model = difftool.train(dataset=data, backbone=mlp, steps=5, batch_size=64, out=out)
say(os.environ["RANK"], "sum", float(sum(p.double().sum() for p in model.network.parameters())))
"""


@pytest.mark.slow
def test_a_script_trains_with_all_its_processes(torchrun: Callable[..., Torchrun], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    outcome = torchrun(script=tmp_path / "script.py").end()
    assert outcome.code == 0, outcome.err
    assert "FutureWarning" not in outcome.err
    said = {(rank, what): float(number) for rank, what, number in map(str.split, outcome.lines)}
    assert said["0", "sum"] == said["1", "sum"]
    # Python aborts if a thread that has just exchanged something still runs; those of the default group never did
    assert {said["0", "threads"], said["1", "threads"]} <= {0, 2}
    one(tmp_path, "train", *POINTS, "--steps", 5, "--out", "one")
    assert distance(tmp_path / "y", tmp_path / "one") <= 1e-6


LOSSES = ("learnt-uncertainty", "consistency", "two-levels")
SCRIPT_OF_LOSSES = rf"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import difftool, paper_losses
mlp = difftool.component("backbone", "mlp", width=16, depth=1)
data = difftool.component("dataset", "swiss-roll", n=500)
with paper_losses.installed():
    for loss in {LOSSES}:
        common = dict(steps=12, batch_size=63, accumulate=2, clip=0.5, checkpoint_every="8", threads=1)
        difftool.train(dataset=data, backbone=mlp, loss=loss, out="two-" + loss, held_out=50, **common)
"""


@pytest.mark.slow
def test_two_processes_train_what_a_loss_brings(torchrun: Callable[..., Torchrun], tmp_path: Path) -> None:
    """The gradients of an auxiliary network are averaged, and its target moves alike in all processes."""
    (tmp_path / "script.py").write_text(SCRIPT_OF_LOSSES)
    outcome = torchrun(script=tmp_path / "script.py").end()
    assert outcome.code == 0, outcome.err
    words = ("--steps", 12, "--batch-size", 63, "--accumulate", 2, "--clip", 0.5, "--checkpoint-every", 8)
    with paper_losses.installed():
        for loss in LOSSES:
            one(tmp_path, "train", *POINTS, *words, "--held-out", 50, "--threads", 1, "--loss", loss, "--out", loss)
            assert distance(tmp_path / f"two-{loss}", tmp_path / loss) <= 1e-6


LOST = "another process of this run failed or was killed"

# --- one end -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@PROCESSES
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_others(torchrun: Callable[..., Torchrun], tmp_path: Path, rank: int) -> None:
    run = torchrun("train", *LONG, "--steps", 100_000, "--out", "two")
    run.wait_until(lambda: len(RunFolder(tmp_path / "two").saved_states()) == 2)
    os.kill(run.pid(rank), signal.SIGKILL)
    outcome = run.end()  # the survivor's line shows that it noticed: torchrun would kill it after 30 seconds
    newest = RunFolder(tmp_path / "two").saved_states()[0]
    assert final_lines(outcome) == [
        f"[rank{1 - rank}]: difftool: error: {LOST}; the last state is {newest.relative_to(tmp_path)}; "
        "go on with: difftool train --resume two"
    ]
    assert state.check(newest) == ""
    assert codes(outcome) <= {1, -9}


@pytest.mark.slow
@PROCESSES
def test_a_machine_that_vanishes_ends_the_others_and_one_goes_on(
    torchrun: Callable[..., Torchrun], tmp_path: Path
) -> None:
    """Two agents of torchrun, each with an address of its own, stand for two machines."""
    longer = (*LONG, "--steps", 1200)
    common = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "job")
    meeting = (*common, "--rdzv-endpoint", f"127.0.0.2:{free_port()}")
    stays, goes = (
        torchrun("train", *longer, "--out", "two", agent=(*meeting, "--local-addr", address, "--rdzv-conf", host))
        for address, host in (("127.0.0.2", "is_host=1"), ("127.0.0.3", "is_host=0"))
    )
    stays.wait_until(lambda: len(RunFolder(tmp_path / "two").saved_states()) == 2)
    goes.vanish()
    outcome = stays.end()
    (line,) = final_lines(outcome)
    newest = RunFolder(tmp_path / "two").saved_states()[0].relative_to(tmp_path)
    ending = f"{LOST}; the last state is {newest}; go on with: difftool train --resume two"
    assert re.fullmatch(rf"\[rank[01]\]: difftool: error: {re.escape(ending)}", line)
    one(tmp_path, "train", "--resume", "two")
    one(tmp_path, "train", *longer, "--out", "one")
    assert distance(tmp_path / "two", tmp_path / "one") <= 1e-6


def lines_by_rank(outcome: Outcome) -> dict[int, str]:
    """The one line that each failing process prints."""
    found = re.findall(r"^\[rank(\d)\]: difftool: error: (.*)$", outcome.err, re.MULTILINE)
    assert len(dict(found)) == len(found) == len(final_lines(outcome)), outcome.err
    return {int(rank): line for rank, line in found}


@pytest.mark.slow
def test_wrong_usage_is_reported_once(torchrun: Callable[..., Torchrun], tmp_path: Path) -> None:
    wrong: dict[tuple[object, ...], str] = {
        ("train", "--backbone.widht", 3): "there is no option --backbone.widht; did you mean --backbone.width?",
        ("train", "--stepps", 3): "--stepps",
        ("train", *POINTS, "--batch-size", 1): "--batch-size: 2 processes share each batch, so it has at least",
    }
    started = [torchrun(*arguments) for arguments in wrong]
    for run, line in zip(started, wrong.values(), strict=True):
        outcome = run.end()
        assert [line in error for error in outcome.errors] == [True], outcome.err
        assert (outcome.out, len(final_lines(outcome))) == ("", 1)
        assert {2} <= codes(outcome) <= {2, 143, -signal.SIGTERM}  # torchrun ends the slower one
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_each_process_reports_a_failure_that_all_have(torchrun: Callable[..., Torchrun]) -> None:
    depth = ("--backbone.depth", 64, "--backbone.activation", "relu", "--warmup", 0, "--lr", 10)
    outcome = torchrun("train", *POINTS, *depth, "--steps", 50, "--out", "x").end()
    lines = lines_by_rank(outcome)
    assert lines.keys() == {0, 1}
    assert all("try a lower --lr or --clip 1; no state was saved before" in line for line in lines.values())
    assert codes(outcome) == {1}


@pytest.mark.slow
def test_a_failure_of_one_process_ends_all(torchrun: Callable[..., Torchrun], tmp_path: Path) -> None:
    """A picture that cannot be decoded lies in the share of one of them, and is not one that all measure first."""
    photos(tmp_path, 300)
    broken = tmp_path / "photos" / "cat" / "013.png"
    broken.write_bytes(broken.read_bytes()[:60])
    outcome = torchrun("train", *STREAMED, "--steps", 100, "--out", "x").end()
    lines = lines_by_rank(outcome)
    assert sorted("013.png" in line for line in lines.values()) == [False, True]
    assert sum(line.startswith(LOST) for line in lines.values()) == 1
    assert codes(outcome) == {1}


@pytest.mark.slow
def test_a_failure_of_the_main_process_ends_all(torchrun: Callable[..., Torchrun], tmp_path: Path) -> None:
    """The main process alone opens the run folder."""
    one(tmp_path, "train", *POINTS, "--steps", 2, "--out", "x")
    for path in RunFolder(tmp_path / "x").saved_states():
        path.unlink()
    outcome = torchrun("train", "--resume", "x", "--steps", 4).end()
    lines = lines_by_rank(outcome)
    assert "the training states of x are gone" in lines[0]
    assert lines[1] == LOST
    assert codes(outcome) == {1}


# --- samples, and other commands -----------------------------------------------------------------------------------


def check_arrays(path: Path, other: Path) -> None:
    """The files hold the same arrays to the bit. Their records say by how many processes they were made."""
    ours, theirs = (dict(np.load(file)) for file in (path, other))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


@pytest.mark.slow
def test_two_processes_draw_the_samples_of_one(pair: Callable[..., Outcome], tmp_path: Path, points_run: Path) -> None:
    words = ("sample", points_run, "-n", 50, "--batch-size", 8, "--steps", 5, "--sampler", "ddpm", "--trajectory")
    outcome = pair(*words, "--out", "two.npy", "--out", "two.npz")
    assert (outcome.code, outcome.lines) == (0, ["two.npy", "two.npz"]), outcome.err
    one(tmp_path, *words, "--out", "one.npy", "--out", "one.npz")
    assert (tmp_path / "two.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
    check_arrays(tmp_path / "two.npz", tmp_path / "one.npz")


@pytest.mark.slow
def test_two_processes_draw_under_several_guidances(
    pair: Callable[..., Outcome], tmp_path: Path, labels_run: Path
) -> None:
    words = ("sample", labels_run, "-n", 20, "--batch-size", 8, "--steps", 4, "--sampler", "ddpm", "--trajectory")
    words = (*words, "--label", "all", "--guidance", "1,2,4")
    outcome = pair(*words, "--out", "two.npz")
    assert (outcome.code, outcome.lines) == (0, ["two.npz"]), outcome.err
    one(tmp_path, *words, "--out", "one.npz")
    check_arrays(tmp_path / "two.npz", tmp_path / "one.npz")


@pytest.mark.slow
def test_other_commands_are_the_first_ones(torchrun: Callable[..., Torchrun], tmp_path: Path, points_run: Path) -> None:
    outcome = torchrun("info", points_run, "--json").end()
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)
