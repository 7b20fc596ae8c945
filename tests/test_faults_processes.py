"""Faults of many processes: gradients that are sent too often, processes that cannot meet, scripts without a guard."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import POINTS, Run
from test_processes import Torchrun, distance, one, photos, torchrun  # noqa: F401 - a fixture
from torch import nn

from difftool import distributed
from difftool.distributed import ProcessGroup
from difftool.errors import DifftoolError

COUNTED = """
import json, os, sys
import difftool, torch
from difftool.distributed import DistributedGroup
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

counts, finds = [0], []
averaged = DistributedGroup._averaged

def counted(self, network, *, find_unused_parameters):
    wrapped = averaged(self, network, find_unused_parameters=find_unused_parameters)
    def hook(group, bucket):
        counts[0] += 1
        return allreduce_hook(group, bucket)
    wrapped.register_comm_hook(self._gradients, hook)
    finds.append(find_unused_parameters)
    return wrapped

DistributedGroup._averaged = counted

class Unused(difftool.Backbone, name="unused"):
    "An MLP with weights that no step, or not every step, uses."
    some: bool = False
    def build(self, spec):
        mlp = difftool.component("backbone", "mlp", width=16, depth=1).build(spec)
        class Network(torch.nn.Module):
            skips_weights = self.some
            def __init__(self):
                super().__init__()
                self.mlp, self.extra, self.calls = mlp, torch.nn.Linear(2, 2), 0
            def forward(net, x, t, cond=None):
                net.calls += 1
                y = net.mlp(x, t, cond)
                return y + net.extra(x) if self.some and net.calls % 3 == 1 else y
        return Network()

kind = sys.argv[1]
if kind == "mlp":
    backbone = difftool.component("backbone", "mlp", width=16, depth=1)
else:
    backbone = Unused(some=kind == "sometimes")
data = difftool.component("dataset", "swiss-roll", n=500)
difftool.train(dataset=data, backbone=backbone, steps=6, batch_size=7, accumulate=4, threads=1, out="two")
if os.environ["RANK"] == "0":
    print(json.dumps([counts[0], finds]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "never", "sometimes"])
def test_gradients_are_sent_once_a_step(
    torchrun: Callable[..., Torchrun],  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    """Two processes with `--accumulate 4` send gradients once a step, and look for unused weights where some are."""
    (tmp_path / "script.py").write_text(COUNTED)
    outcome = torchrun(kind, script=tmp_path / "script.py").end()
    assert outcome.code == 0, outcome.err
    finds = {"mlp": "[true, false]", "never": "[true]", "sometimes": "[true]"}[kind]
    assert outcome.lines == [f"[6, {finds}]"]
    if kind == "mlp":
        words = ("train", *POINTS, "--batch-size", 7, "--steps", 6, "--accumulate", 4, "--threads", 1)
        one(tmp_path, *words, "--out", "one")
        assert distance(tmp_path / "two", tmp_path / "one") <= 1e-6


def test_only_the_last_part_of_a_batch_is_sent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--accumulate`, only the last part of a batch averages gradients over the processes."""
    sent: list[bool] = []

    def averaging(_group: ProcessGroup, _wrapped: nn.Module, now: bool) -> contextlib.nullcontext[None]:
        sent.append(now)
        return contextlib.nullcontext()

    monkeypatch.setattr(ProcessGroup, "averaging", averaging)
    assert run("train", *POINTS, "--batch-size", 7, "--accumulate", 3, "--steps", 2).code == 0
    assert sent == [False, False, True] * 2


@pytest.mark.parametrize(("rank", "reason"), [(0, "waiting for clients"), (1, "The client socket has timed out")])
def test_processes_that_do_not_meet_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], rank: int, reason: str
) -> None:
    """A MASTER_ADDR that cannot be reached ends a run in bounded time with one line, without a trace of C++."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    assert timedelta(seconds=30) <= distributed.MEETING <= timedelta(minutes=2)
    monkeypatch.setattr(distributed, "MEETING", timedelta(milliseconds=100))
    where = f"cannot find the other processes at 127.0.0.1:{port}: "
    with pytest.raises(DifftoolError, match=f"{where}.*{reason}") as caught, distributed.connect():
        pass
    assert len(str(caught.value)) < 200
    assert "frame" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mebibytes", [100, 300])
def test_a_limit_on_memory_is_no_bug(tmp_path: Path, mebibytes: int) -> None:
    """`ulimit -v` that is too small for torch is told as a lack of memory, with the limit, and not as a bug."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))

    command = [sys.executable, "-m", "difftool", "train", "--steps", "1", "--out", "x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 1
    assert f"error: out of memory (ulimit -v allows {mebibytes} MiB)" in done.stderr
    assert "bug" not in done.stderr


UNGUARDED = """
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)
import difftool
data = difftool.component("dataset", "image-folder", path="photos", size=8, memory=0)
unet = difftool.component("backbone", "unet", dim=8, dim_mults=(1, 2), groups=4)
difftool.train(dataset=data, backbone=unet, workers=1, steps=1, batch_size=4)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """A script without a main guard says so where workers are spawned, and makes one run folder."""
    photos(tmp_path)
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert 'a script must call difftool below `if __name__ == "__main__":`' in last
    assert len(list((tmp_path / "runs").iterdir())) == 1
