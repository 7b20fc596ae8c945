"""Weights that are shared out among processes: the model of one process, and states that any number reads back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import IMAGES, POINTS, Outcome, invoke, last_of
from forks import DISTRIBUTED, Job, Server, as_ranks
from test_kill import strike
from torch import Tensor, nn

from difftool.distributed import ProcessGroup
from difftool.errors import BadFile
from difftool.files import TEMPORARY
from difftool.runs import checkpoint, states
from difftool.runs.checkpoint import Contents
from difftool.runs.folder import INDEX, RunFolder
from difftool.training import state

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"), *DISTRIBUTED)
    yield made
    made.close()


@pytest.fixture
def ranks(server: Server, tmp_path: Path) -> Callable[..., Outcome]:
    """`ranks(2, "train", "--steps", 3)` runs a command in two processes, in an empty folder."""

    def run(size: int, *arguments: object, befores: Mapping[int, Job] | None = None) -> Outcome:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [str(word) for word in last_of(arguments)]
        return server.run(partial(inside, tmp_path, size, port, words, befores or {}), tmp_path)

    return run


def inside(folder: Path, *arguments: object) -> None:
    os.chdir(folder)
    as_ranks(*arguments)  # type: ignore[arg-type]


def alone(folder: Path, *arguments: object) -> Outcome:
    """The same in one process: this one."""
    with contextlib.chdir(folder):
        outcome = invoke(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def newest(run: Path) -> Path:
    return RunFolder(run).saved_states()[0]


def files_of(run: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a run's model, averages and newest state."""
    files = [run / "model.safetensors", *sorted((run / "averages").glob("*")), newest(run)]
    return {file.stem: states.load(file)[0] for file in files}


def distance(a: Path, b: Path) -> float:
    """The largest difference between two runs, in any tensor of their files."""
    ours, theirs = files_of(a), files_of(b)
    assert {name: tensors.keys() for name, tensors in ours.items()} == {n: t.keys() for n, t in theirs.items()}
    return max(
        float((tensor.double() - theirs[file][name].double()).abs().max())
        for file, tensors in ours.items()
        for name, tensor in tensors.items()
        if tensor.numel()
    )


TRAINED = (
    *(*POINTS, "--backbone.width", 17, "--backbone.depth", 3, "--threads", 1, "--held-out", 150, "--batch-size", 50),
    *("--optimizer", "adamw", "--clip", 0.5, "--accumulate", 2, "--ema", "0.99,0.9", "--ema-lengths", 0.1),
    *("--snapshot-every", 4, "--checkpoint-every", 4, "--keep", 3, "--evaluate", "mmd", "--evaluate-every", 8),
    *("--evaluate-samples", 20, "--keep-best", "held-out-loss"),
)
"""Rows of 17 are 9 and 8, and 5, 5, 5 and 2; the last layer has 2 rows, of which the fourth process has none."""


def test_two_processes_with_parts_make_the_model_of_one_and_go_on_exactly(
    ranks: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = ranks(2, "train", *TRAINED, "--steps", 8, "--shard", "--out", "two")
    assert (outcome.code, outcome.lines) == (0, ["two"]), outcome.err
    assert "arning" not in outcome.err
    alone(tmp_path, "train", *TRAINED, "--steps", 8, "--out", "one")
    assert distance(tmp_path / "two", tmp_path / "one") <= 1e-6
    best = [checkpoint.load(tmp_path / run / "best.safetensors") for run in ("two", "one")]
    assert best[0][1]["step"] == best[1][1]["step"]
    rows = [RunFolder(tmp_path / run).read_metrics() for run in ("two", "one")]
    for name in ("loss", "grad_norm", "held_out_loss"):
        ours, theirs = ([row[name] for row in some if name in row] for some in rows)
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert json.loads(alone(tmp_path, "info", "two", "--json").out)["states"][0]["valid"]

    # resumed by as many, it is the same to the last bit; its newest state is damaged first
    before = files_of(tmp_path / "two")
    damaged = newest(tmp_path / "two") / states.shard_name(1, 2)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    outcome = ranks(2, "train", "--resume", "two")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("shard-00001-of-00002.safetensors is not") == 1
    assert "going on from step-000000004" in outcome.err
    assert (tmp_path / "two" / "state" / "step-000000008.damaged" / INDEX).is_file()
    assert all(
        torch.equal(tensor, before[file][name])
        for file, tensors in files_of(tmp_path / "two").items()
        for name, tensor in tensors.items()
    )


SELF_CONDITIONED = (
    *(*IMAGES, "--optimizer", "adam"),
    "--batch-size",
    9,
    "--preview-every",
    6,
    "--self-condition",
    "--learn-variance",
    "--checkpoint-activations",
)
SOME_FROZEN = (*IMAGES, "--optimizer", "adam", "--batch-size", 9, "--freeze", "^downs", "--ema", 0)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [SELF_CONDITIONED, SOME_FROZEN], ids=["self-conditioned", "frozen"])
def test_any_number_of_processes_goes_on_with_the_parts_of_any_other(
    ranks: Callable[..., Outcome], tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    outcome = ranks(4, "train", *arguments, "--steps", 4, "--shard", "--out", "many")
    assert outcome.code == 0, outcome.err
    for steps, size, more in ((6, 2, ()), (8, 1, ()), (10, 2, ()), (12, 4, ()), (14, 2, ("--no-shard",))):
        outcome = ranks(size, "train", "--resume", "many", "--steps", steps, *more)
        assert outcome.code == 0, outcome.err
        assert newest(tmp_path / "many").is_dir() == (size > 1 and not more)
    alone(tmp_path, "train", *arguments, "--steps", 14, "--out", "one")
    assert distance(tmp_path / "many", tmp_path / "one") <= 1e-5
    for preview in (tmp_path / "one" / "previews").glob("*.png"):
        assert (tmp_path / "many" / "previews" / preview.name).is_file()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--optimizer", "muon"), "--shard: optimizer muon needs whole matrices"),
        (("--compile",), "--shard: a sharded network cannot be compiled"),
        (("--loss", "learnt-uncertainty"), "--shard: loss learnt-uncertainty works with a whole network beside"),
    ],
)
def test_what_cannot_be_trained_in_parts_is_refused_in_a_line(
    ranks: Callable[..., Outcome], tmp_path: Path, words: tuple[object, ...], line: str
) -> None:
    outcome = ranks(2, "train", *POINTS, *words, "--steps", 2, "--shard", "--out", "x")
    assert outcome.code == 2
    assert [line in error for error in outcome.errors] == [True], outcome.err
    assert not (tmp_path / "x").exists()


# --- states --------------------------------------------------------------------------------------------------------


def test_rows_are_those_of_torch_chunk() -> None:
    for rows in range(1, 20):
        for size in range(1, 9):
            chunks = [chunk.tolist() for chunk in torch.arange(rows).chunk(size)]
            parts = [torch.arange(rows)[states.rows_of(rows, rank, size)].tolist() for rank in range(size)]
            assert parts == chunks + [[]] * (size - len(chunks))


WHOLE = {"a": torch.arange(35.0).view(7, 5), "b": torch.arange(2), "c": torch.arange(3.0), "step": torch.tensor(4.0)}
SHAPES = {name: tuple(WHOLE[name].shape) for name in ("a", "b", "c")}


def write(folder: Path, size: int) -> Path:
    """Write the state of step 500 by so many processes."""
    path = folder / "step-000000500"
    digests = []
    for rank in range(size):
        own = {n: t[states.rows_of(len(t), rank, size)] if n in SHAPES else t for n, t in WHOLE.items()}
        digests.append(states.write_shard(path, rank, size, own, SHAPES, 500))
    states.write_index(path, {"kind": "state", "step": 500, "elapsed": 0.1 + 0.2}, SHAPES, digests)
    return path


@pytest.mark.parametrize("wrote", [1, 2, 3, 5])
def test_shards_are_read_by_any_number(tmp_path: Path, wrote: int) -> None:
    path = write(tmp_path, wrote)
    for size in (1, 2, 3, 4, 8):
        for rank in range(size):
            tensors, document = states.load(path, rank, size)
            assert document["elapsed"] == 0.1 + 0.2
            for name, whole in WHOLE.items():
                own = whole[states.rows_of(len(whole), rank, size)] if name in SHAPES else whole
                assert torch.equal(tensors[name], own)
                assert tensors[name].dtype == own.dtype
    assert all(file.suffix in (".json", ".safetensors") for file in path.iterdir())
    assert states.load_document(path)["step"] == 500
    assert states.load_digest(path) == states.load_with_digest(path)[2]


def spoil(path: Path, how: str) -> None:
    shard, index = path / states.shard_name(1, 2), path / INDEX
    if how == "missing":
        shard.unlink()
    elif how == "cut":
        shard.write_bytes(shard.read_bytes()[:-3])
    elif how == "of another state":
        other = {name: tensor + 1 for name, tensor in checkpoint.load(shard)[0].items()}
        checkpoint.save(shard, other, {"kind": "shard"})
    elif how == "a digit of the index":
        index.write_text(index.read_text().replace('"step": 500', '"step": 501'))
    elif how == "half an index":
        index.write_bytes(index.read_bytes()[:200])
    else:
        document = json.loads(index.read_text())
        content = {key: value for key, value in document.items() if key != "sha256"} | json.loads(how)
        states.write_text(index, json.dumps({"sha256": states._digest(json.dumps(content, sort_keys=True)), **content}))


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("missing", "shard-00001-of-00002.safetensors does not exist"),
        ("cut", "is not a safetensors file written by difftool"),
        ("of another state", "is not the shard that"),
        ("a digit of the index", "index.json is damaged: its content does not match its digest"),
        ("half an index", "index.json is not the index of a training state"),
        ('{"format": 99}', "was written by a newer difftool (format 99)"),
        ('{"shards": []}', "it has no document or no shards"),
        ('{"tensors": {"a": [7, -5]}}', "a shape is none"),
        ('{"tensors": {"a": [99, 5]}}', "a is not there, or has other rows"),
        ('{"tensors": 7}', "is not the index of a training state"),
    ],
)
def test_what_is_wrong_with_shards_is_told(tmp_path: Path, how: str, line: str) -> None:
    path = write(tmp_path, 2)
    spoil(path, how)
    with pytest.raises(BadFile, match=re.escape(line)):
        states.load(path)


def test_a_state_of_shards_is_found_set_aside_and_removed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    path = write(run.states, 2)
    checkpoint.save(run.state(400), {}, {})
    (run.states / "step-000000600").mkdir()  # without an index it is none
    assert run.saved_states() == [path, run.state(400)]
    assert states.size_of(path) == sum(file.stat().st_size for file in path.iterdir())
    run.set_aside([path])
    assert run.damaged_states() == [path.with_name("step-000000500.damaged")]
    assert run.saved_states() == [run.state(400)]
    states.remove(run.damaged_states()[0])
    states.remove(run.state(400))
    assert [*run.states.iterdir()] == [run.states / "step-000000600"]
    path = write(run.states, 2)
    (path / "notes").write_text("mine")
    states.remove(path)
    assert [*path.iterdir()] == [path / "notes"]
    assert run.saved_states() == []


class Alone(ProcessGroup):
    """A group of one process, whose part of the weights is all of them."""

    sharded = True


def test_at_no_instant_of_a_save_is_half_a_state_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each change of a file, and each wait for the disk, all states that a resume would find are whole."""
    run, seen = RunFolder(tmp_path), []

    def look(name: str) -> None:
        act = getattr(os, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            found = run.saved_states()
            assert all(torch.equal(states.load(path)[0]["a"], WHOLE["a"]) for path in found)
            seen.append((name, len(found)))
            return act(*arguments, **options)

        monkeypatch.setattr(os, name, watched)

    held: Any = SimpleNamespace(step=400, part=(0, 1), whole_shapes=lambda: SHAPES)
    for name in ("rename", "replace", "mkdir", "fsync", "unlink", "rmdir"):
        look(name)
    for held.step in (400, 500):
        state.save_sharded(lambda: run, lambda: Contents(WHOLE, {"step": held.step}), held, Alone())
    states.remove(run.shards(400))
    assert run.saved_states() == [run.shards(500)]
    assert {count for _, count in seen} == {0, 1, 2}
    assert [name for name, _ in seen].count("rename") == 3
    assert sorted(path.name for path in run.states.iterdir()) == ["step-000000500"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "point"),
    [
        (1, "while shard-00001-of-00002.safetensors is written"),
        (0, "after shard-00000-of-00002.safetensors is written"),
        (0, "before model.safetensors is written"),
    ],
)
def test_a_run_of_two_that_is_killed_while_it_saves_ends_like_an_unbroken_one(
    ranks: Callable[..., Outcome], tmp_path: Path, rank: int, point: str
) -> None:
    words = (*POINTS, "--threads", 1, "--checkpoint-every", 2, "--shard")
    assert ranks(2, "train", *words, "--steps", 4, "--out", "whole").code == 0
    run = tmp_path / "run"
    assert ranks(2, "train", *words, "--steps", 2, "--out", run).code == 0
    kill = {rank: partial(strike, signal.SIGKILL, point, run)}
    outcome = ranks(2, "train", "--resume", run, "--steps", 4, befores=kill)
    assert outcome.code in (256 - signal.SIGKILL, 1)
    assert state.check(newest(run)) == ""
    assert ranks(2, "train", "--resume", run, "--steps", 4).code == 0
    assert distance(run, tmp_path / "whole") == 0
    assert not [*run.rglob(f"{TEMPORARY}*")]


# --- whole weights in each process ---------------------------------------------------------------------------------


def counting(log: Path) -> None:
    """Let torch's DistributedDataParallel write down each of its buckets that is averaged, and how it was made."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.nn.parallel import DistributedDataParallel

    init: Any = DistributedDataParallel.__init__

    def noted(self: Any, network: nn.Module, **options: Any) -> None:
        init(self, network, **options)
        kind = "".join(str(int(options[name])) for name in ("find_unused_parameters", "gradient_as_bucket_view"))

        def hook(group, bucket):  # torch checks annotations, and knows no text
            with log.open("a") as file:
                file.write(f"{kind}\n")
            return allreduce_hook(group, bucket)

        self.register_comm_hook(options["process_group"], hook)

    DistributedDataParallel.__init__ = noted  # type: ignore[method-assign]


JOINED, SEPARATE = ("--optimizer", "adam"), ("--optimizer", "muon")


@pytest.mark.parametrize(("optimizer", "view"), [(JOINED, "0"), (SEPARATE, "1")], ids=["joined", "separate"])
def test_gradients_are_averaged_once_a_step(
    ranks: Callable[..., Outcome], tmp_path: Path, optimizer: tuple[object, ...], view: str
) -> None:
    """Whatever the parts of a batch. A trial step alone looks for unused weights; vectors keep their gradients."""
    words = (*POINTS, *optimizer, "--accumulate", 4, "--threads", 1, "--checkpoint-every", 100)
    log = tmp_path / "averaged"
    outcome = ranks(2, "train", *words, "--steps", 10, "--out", "two", befores={0: partial(counting, log)})
    assert outcome.code == 0, outcome.err
    assert log.read_text().split() == [f"1{view}", *[f"0{view}"] * 9]
    alone(tmp_path, "train", *words, "--steps", 10, "--out", "one")
    assert distance(tmp_path / "two", tmp_path / "one") <= (1e-6 if optimizer is JOINED else 1e-2)
