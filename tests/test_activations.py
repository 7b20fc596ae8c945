"""Activation checkpointing as a setting of training: the same run, a clear refusal, and other ways to compute."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import IMAGES, POINTS, Run

from difftool import Backbone, hookimpl
from difftool.runs import checkpoint
from difftool.testing import PluginManager


class Plain(Backbone, name="plain"):
    """A network that stores everything."""

    def build(self, spec: Any) -> Any:
        raise AssertionError("never built")


@pytest.mark.parametrize(
    "arguments",
    [
        (*POINTS, "--backbone.depth", 3),
        (*POINTS, "--backbone.depth", 3, "--self-condition", "--precision", "bf16", "--accumulate", 2),
        (*IMAGES, "--backbone.dropout", 0.3),
    ],
    ids=["points", "other ways", "dropout"],
)
def test_the_run_is_the_same(run: Run, arguments: tuple[object, ...]) -> None:
    for name, more in (("plain", ()), ("again", ("--checkpoint-activations",))):
        outcome = run("train", *arguments, "--steps", 3, *more, "--out", name)
        assert outcome.code == 0, outcome.err
    plain, again = (checkpoint.load(Path(name, "model.safetensors"))[0] for name in ("plain", "again"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.items())
    outcome = run("train", "--resume", "plain", "--steps", 4, "--checkpoint-activations")
    assert outcome.code == 0, outcome.err
    assert run("sample", "again", "-n", 2, "--steps", 2, "--out", "x.npy").code == 0


@pytest.mark.slow
def test_a_compiled_network_recomputes_too(run: Run) -> None:
    for name, more in (("plain", ()), ("again", ("--checkpoint-activations", "--compile"))):
        outcome = run("train", *POINTS, "--backbone.depth", 3, "--steps", 3, *more, "--out", name)
        assert outcome.code == 0, outcome.err
        assert "cannot be compiled" not in outcome.err
    plain, again = (checkpoint.load(Path(name, "model.safetensors"))[0] for name in ("plain", "again"))
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, again[name])


def test_a_network_that_cannot_is_refused(run: Run, plugin_manager: PluginManager) -> None:
    hook = hookimpl(specname="difftool_backbones")(lambda: [Plain])
    assert not plugin_manager.register(SimpleNamespace(__name__="mine", difftool_backbones=hook)).problems
    outcome = run("train", "--backbone", "plain", "--checkpoint-activations")
    assert outcome.code == 2
    assert "--checkpoint-activations: the backbone plain does not support it; --accumulate saves memory too" in (
        outcome.error
    )
