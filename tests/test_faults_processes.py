"""Faults of many processes: gradients that are sent too often, processes that cannot meet, scripts without a guard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import POINTS, Run
from test_processes import Torchrun, distance, one, torchrun  # noqa: F401 - a fixture
from torch import nn

from difftool.distributed import ProcessGroup

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
