"""`train --dry-run`: parameters, operations, memory, time and disk, before a run begins."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import POINTS, Outcome
from torch import Tensor, nn

from difftool.distributed import SINGLE
from difftool.runs.recipe import build_recipe
from difftool.training import estimate as estimates
from difftool.training.experiment import Experiment
from difftool.training.fake_step import fake_step
from difftool.training.live_memory import LiveMemory
from difftool.training.loop import train
from difftool.training.phases import PHASES
from difftool.training.prepare import prepare

Run = Callable[..., Outcome]
SMALL: dict[str, Any] = {
    "dataset": {"name": "gradients", "n": 64, "size": 8},
    "backbone": {"name": "unet", "dim": 8, "dim_mults": [1, 2], "groups": 4},
    "optimizer": {"name": "adam"},  # whose update needs no memory beside that of gradients
}


def experiment(**training: object) -> Experiment:
    return prepare(build_recipe({**SMALL, "training": {"batch_size": 8, **training}}), torch.device("cpu"))


def test_storages_count_once_and_until_they_are_freed() -> None:
    known = torch.zeros(1000)
    with LiveMemory([known]) as live:
        live.kind = "a"
        x = known + 1  # 4,000 bytes
        x[:10].add_(known[0])
        live.kind = "b"
        y = x.view(10, 100) * 2
        known.mul_(2)
        assert dict(live.now) == {"a": 4000, "b": 4000}
        live.classify(y, "c")
        del x
        z = torch.zeros(100)
    assert dict(live.peak) == {"a": 4000, "b": 4000}
    assert dict(live.now) == {"a": 0, "b": 400, "c": 4000}
    del y, z
    assert live.now.total() == 0


@pytest.mark.parametrize("training", [{}, {"accumulate": 2}, {"checkpoint_activations": True}])
def test_a_step_without_values_takes_the_memory_of_a_real_one(training: dict[str, object]) -> None:
    made = experiment(**training)
    expected = fake_step(made, SINGLE).peak
    state, settings = made.state, made.recipe.training
    averaged = [weight for average in state.averages for weight in average.network.parameters()]
    live = LiveMemory([*state.network.parameters(), *averaged])
    with live:
        for _ in train(state, made.batches(8, SINGLE), made.objective, settings, steps=2):
            pass
    assert sum(expected.values()) == pytest.approx(live.peak.total(), rel=0.1)


def test_operations_are_those_of_the_matrix_products() -> None:
    """Of each layer three products of 2 B n m operations, but two for those whose input has no gradient."""
    document = {"dataset": {"name": "swiss-roll", "n": 64}, "backbone": {"name": "mlp", "width": 16, "depth": 1}}
    recipe = build_recipe({**document, "training": {"batch_size": 8}})
    made = prepare(recipe, torch.device("cpu"))
    layers = [module.weight for module in made.state.network.modules() if isinstance(module, nn.Linear)]
    outer = [weight for weight in layers if weight.shape[1] in (2, 64)]  # which see the items, and sines of t
    products, without = (2 * 8 * sum(weight.numel() for weight in some) for some in (layers, outer))
    assert fake_step(made, SINGLE).flops == 3 * products - without


def test_self_conditioning_calls_the_network_once_more_in_every_other_step() -> None:
    plain, conditioned = (fake_step(experiment(self_condition=value), SINGLE).flops for value in (False, True))
    assert conditioned / plain == pytest.approx(3.5 / 3, rel=0.05)  # three passes, and half of another forward one


def test_less_is_kept_where_blocks_are_computed_again() -> None:
    plain, saving = (fake_step(experiment(checkpoint_activations=value), SINGLE) for value in (False, True))
    assert saving.peak["activations"] < 0.95 * plain.peak["activations"]
    assert saving.flops > 1.1 * plain.flops


class Curious(nn.Module):
    """Looks at the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
        return self.layer(x) if float(x.sum()) > 0 else -self.layer(x)


SCRIPT = """
from difftool import Backbone, hookimpl

class Curious(Backbone, name="curious"):
    "Looks at values."
    def build(self, spec):
        from test_estimate import Curious
        return Curious()

@hookimpl
def difftool_backbones():
    return [Curious]
"""
WORDS = ("train", "--dataset.n", 64, "--batch-size", 8, "--dry-run", "--json")


def test_a_network_that_looks_at_values_has_no_known_activations(run: Run, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SCRIPT)
    outcome = run(*WORDS, "--plugin", "own.py", "--backbone", "curious", "--steps", 3)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert (document["flops"], document["parameters"]) == (None, 6)
    assert "curious" in document["unknown"]
    assert "activations" not in document["memory"]
    assert document["seconds_per_step"] > 0


def test_what_does_not_fit_is_said_and_not_tried(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "obtainable", lambda device: 2**20)
    monkeypatch.setattr(estimates, "free_disk", lambda path: 100)
    monkeypatch.setattr(estimates, "time_steps", None)
    outcome = run(*WORDS, *POINTS, "--steps", 3, "--held-out", 20)
    assert outcome.code == 0, outcome.err
    memory, disk = json.loads(outcome.out)["warnings"]
    assert "no step was timed; a smaller --batch-size" in memory
    assert disk.endswith("its disk has 100 B left")
    assert [*tmp_path.iterdir()] == []


def test_a_dry_run_says_what_a_run_needs(run: Run, tmp_path: Path) -> None:
    outcome = run("train", *POINTS, "--steps", 3, "--held-out", 20, "--dry-run", "--train-only", "^last")
    assert outcome.code == 0, outcome.err
    for words in ("memory at the peak", "FLOP a step", " a step (2 timed", "on the disk at most", ", 34 trained)"):
        assert words in outcome.err
    assert [*tmp_path.iterdir()] == []


def test_a_profile_changes_no_weight(run: Run, tmp_path: Path) -> None:
    words = ("train", *POINTS, "--steps", 30, "--accumulate", 2)
    outcome = run(*words, "--profile", 5, "--out", "seen")
    assert outcome.code == 0, outcome.err
    assert run(*words, "--out", "plain").code == 0
    seen, plain = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("seen", "plain"))
    assert seen == plain
    for name in (*PHASES, "aten::addmm", "where a step goes (5 steps timed)", "(5 steps traced)"):
        assert name in outcome.err
    with gzip.open(tmp_path / "seen" / "trace.json.gz") as file:
        events = [event["name"] for event in json.load(file)["traceEvents"] if event.get("cat") == "user_annotation"]
    counts = {name: events.count(name) for name in PHASES[2:6]}
    assert counts == {"forward": 10, "backward": 10, "optimizer": 5, "average": 5}
    assert run(*words, "--profile", 20, "--out", "seen", "--overwrite").code == 0
    short = run(*words, "--profile", 100, "--out", "short")
    assert "the run ended before 100 steps were profiled" in short.err
    assert not (tmp_path / "short" / "trace.json.gz").exists()
