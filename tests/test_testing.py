"""The kit for plugin authors: every law is kept by the built-ins and broken by a component made to break it."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import difftool
from difftool import (
    CLEAN,
    Backbone,
    BackboneSpec,
    Component,
    Dataset,
    DatasetContext,
    Level,
    Logger,
    NoiseSchedule,
    Oracle,
    Prediction,
    Row,
    RunContext,
    Sampler,
    Samples,
    Schedule,
    Spacing,
    Step,
    TimestepSampling,
    Weighting,
    Writer,
    hookimpl,
    option,
    points,
)
from difftool.plugins.loading import Plugin
from difftool.plugins.registry import registry
from difftool.testing import (
    BrokenLaws,
    Finding,
    PluginManager,
    check_backbone,
    check_component,
    check_dataset,
    check_sampler,
    check_schedule,
    common,
    examine,
    invoke,
    laws_of,
)
from difftool.testing.laws import name_of, text_of
from difftool.testing.plugins import examine_plugin

Noise = Callable[[int], Tensor]


def broken(component: Component, **about: Any) -> dict[str, str]:
    """The laws of its kind that it breaks, and what was measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "LAWS", ())
        return breaks_any(component, **about)


def breaks_any(component: Component, **about: Any) -> dict[str, str]:
    """The laws, its kind's and everyone's, that it breaks, and what was measured."""
    return {finding.law: finding.measured for finding in examine(component, **about) if finding.broken}


# ── the built-ins ───────────────────────────────────────────────────────────────────────────────

NEED_MORE = {"image-folder", "jsonl"}
"""Built-ins with an option that must be given."""


def built_in(*kinds: str) -> list[Any]:
    found = [registry().get(kind, name) for kind in kinds for name in registry().names(kind)]
    return [pytest.param(c, id=f"{c.kind} {c.name}") for c in found if c.name not in NEED_MORE]


@pytest.mark.parametrize(
    "component",
    built_in(
        *(
            "dataset",
            "schedule",
            "sampler",
            "spacing",
            "prediction",
            "weighting",
            "timestep-sampling",
            "oracle",
            "logger",
        )
    ),
)
def test_built_ins_keep_the_laws(component: type[Component]) -> None:
    findings = check_component(component)
    assert len(findings) == len(laws_of(component.kind))
    assert all(finding.measured for finding in findings)


@pytest.mark.parametrize("component", built_in("writer", "backbone"))
def test_slower_built_ins_keep_the_laws(component: type[Component]) -> None:
    check_component(component)


@pytest.mark.parametrize("options", [{"eta": 0.3}, {"eta": 1.0}])
def test_options_of_samplers_keep_the_laws(options: dict[str, Any]) -> None:
    for name in ("ddim", "euler-ancestral", "dpmpp-2m-sde"):
        check_component(difftool.component("sampler", name, **options))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_claims_of_lms_hold(order: int) -> None:
    check_component(difftool.component("sampler", "lms", order=order))


def test_components_that_need_more(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (9, 8), (80 * i, 40, 200 - 60 * i)).save(tmp_path / name / f"{i}.png")
    for memory in (True, False):
        more = {} if memory else {"memory": 0.0}
        images = difftool.component("dataset", "image-folder", path=tmp_path, size=(8,), flip=True, **more)
        findings = {finding.law: finding for finding in check_component(images)}
        assert findings["labels name classes"].measured == "2 classes of 3 to 3 items"
        assert findings["augments by its generator alone"].verdict == "kept"
        assert findings["items are read alike anywhere"].verdict == ("not asked" if memory else "kept")
    check_component(difftool.component("logger", "jsonl", path=tmp_path / "all.jsonl"))


# ── every component ─────────────────────────────────────────────────────────────────────────────


class Plain(Dataset, name="plain"):
    """A cloud of points."""

    n: int = option(default=200, ge=1, le=10**6, help="number of points")

    def load(self, context: DatasetContext) -> Samples:
        return points(torch.randn(self.n, 2, generator=context.generator("points")))


def test_a_sound_component_of_a_test_module() -> None:
    """torch is imported by this module, which is therefore not light; nothing else is found."""
    with pytest.raises(BrokenLaws) as caught:
        check_dataset(Plain)
    assert [finding.law for finding in caught.value.findings if finding.broken] == ["imports nothing heavy"]
    assert str(caught.value).startswith(
        "dataset plain breaks 1 law of 16:\n  imports nothing heavy: importing test_test"
    )


def of_plain(**space: Any) -> type[Dataset]:
    return type("Made", (Plain,), {"__doc__": "Made.", "__module__": __name__, **space}, name="plain")


class Silent(Plain, name="silent"):
    size: int = option(default=1)


class Lost(Plain, name="lost"):
    """None does not come back where the default is another."""

    size: int | None = option(default=1, ge=1, le=9, help="some size")


class Changes(Plain, name="changes"):
    """Its text is not what it was given."""

    text: str = option(default="a", help="some text")

    def __post_init__(self) -> None:
        if self.text != "a":
            object.__setattr__(self, "text", self.text + "!")


def test_options_that_are_lost_or_silent() -> None:
    assert breaks_any(Silent())["says what it is"] == "it has no docstring"
    undocumented = of_plain(__annotations__={"size": int}, size=option(default=1))
    assert "no help for size" in breaks_any(undocumented())["says what it is"]
    changes, lost = breaks_any(Changes()), breaks_any(Lost())
    for law in ("the command line", "a config file", "a model file"):
        assert "came back as" in changes[f"options survive {law}"]
        assert "came back as" in lost[f"options survive {law}"]


class Many(Plain, name="many"):
    """Options of every type survive every way."""

    flag: bool = option(default=True, help="x")
    whole: int | None = option(default=None, help="x")
    real: float = option(default=0.5, gt=0, lt=1, help="x")
    text: str | None = option(default=None, help="x")
    path: Path = option(default=Path("/a"), help="x")
    word: Literal["a", "b"] = option(default="a", help="x")
    numbers: tuple[int, ...] = option(default=(1, 2), ge=0, help="x")
    pair: tuple[float, float] | None = option(default=None, help="x")
    words: tuple[Literal["x", "y"], ...] = option(default=("x",), help="x")


def test_options_of_every_type_survive() -> None:
    findings = [f for f in examine(Many()) if f.law.startswith("options")]
    assert [f.verdict for f in findings] == ["kept"] * 3
    assert all(int(f.measured.split()[0]) >= 15 for f in findings)


# ── samplers ────────────────────────────────────────────────────────────────────────────────────


class Good(Sampler, name="good"):
    """DDIM."""

    def claimed_order(self) -> int | None:
        return 1

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = s.alpha * estimate.x_0 + s.sigma * estimate.eps
            yield Step(x, s, estimate)


class Twice(Good, name="twice"):
    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(levels):
            denoise(x, t)
            yield from Good.sample(self, denoise, x, [t, s], noise)
            estimate = denoise(x, t)
            x = s.alpha * estimate.x_0 + s.sigma * estimate.eps


class Unkeyed(Good, name="unkeyed"):
    def claimed_order(self) -> int | None:
        return None

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for step in super().sample(denoise, x, levels, noise):
            yield replace(step, x=step.x + 1e-4 * torch.randn_like(step.x))


class Together(Good, name="together"):
    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        yield from super().sample(denoise, x + 1e-3 * x.mean(0), levels, noise)


class InPlace(Good, name="in-place"):
    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(levels):
            estimate = denoise(x.clone(), t)
            x.copy_(s.alpha * estimate.x_0 + s.sigma * estimate.eps)
            yield Step(x, s, estimate)


class Loud(Good, name="loud"):
    """The noise of a step has the posterior's variance instead of its deviation: a published bug."""

    def claimed_order(self) -> int | None:
        return None

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for i, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            q = t.alpha * s.sigma / (s.alpha * t.sigma)
            x = s.alpha * (1 - q * q) * estimate.x_0 + q * s.sigma / t.sigma * x
            x = x + s.sigma**2 * (1 - q * q) * noise(i)
            yield Step(x, s, estimate)


class Boaster(Good, name="boaster"):
    def claimed_order(self) -> int | None:
        return 2


class BoastsOfNoise(Loud, name="boasts-of-noise"):
    def claimed_order(self) -> int | None:
        return 1


class AsksTheClean(Good, name="asks-the-clean"):
    def claimed_calls(self, steps: int) -> int | None:
        return None

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for step in super().sample(denoise, x, levels, noise):
            denoise(step.x, step.level)
            yield step


class Short(Good, name="short"):
    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        yield from super().sample(denoise, x, [levels[0], *levels[2:]] if len(levels) > 2 else levels, noise)


class Doubles(Good, name="doubles"):
    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for step in super().sample(denoise, x, levels, noise):
            yield replace(step, x=step.x.double())


class Elsewhere(Good, name="elsewhere"):
    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for step in super().sample(denoise, x, levels, noise):
            yield replace(step, level=CLEAN)


class Divides(Good, name="divides"):
    """Its step divides by alpha, which is 0 where there is no signal."""

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            signal = torch.as_tensor(t.alpha, dtype=x.dtype)
            x = s.alpha / signal * x + (s.sigma - s.alpha * t.sigma / signal) * estimate.eps
            yield Step(x, s, estimate)


class WrongTime(Good, name="wrong-time"):
    """Asks at the right noise, but calls it another level's: a trained network would see that alone."""

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        def asked(x: Tensor, level: Level) -> Any:
            return denoise(x, replace(level, t=0.0))

        yield from super().sample(asked, x, levels, noise)


class OwnLevels(Good, name="own-levels"):
    """Asks at levels of its own, and says so."""

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        def asked(x: Tensor, level: Level) -> Any:
            return denoise(x, Level.of(level.alpha, level.sigma))

        yield from super().sample(asked, x, levels, noise)


class Meddles(Good, name="meddles"):
    """Changes what the denoiser said."""

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = (s.alpha * estimate.x_0).add_(estimate.eps.mul_(s.sigma))
            yield Step(x, s, estimate)


class Reuses(Good, name="reuses"):
    """Asks about a tensor that it then goes on with."""

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        x = x.clone()
        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x.copy_(s.alpha * estimate.x_0 + s.sigma * estimate.eps)
            yield Step(x.clone(), s, estimate)


class Fussy(Good, name="fussy"):
    """Takes tables that preserve the variance alone."""

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        if any(abs(level.norm - 1) > 1e-6 for level in levels):
            raise ValueError("takes schedules that preserve the variance alone")
        yield from super().sample(denoise, x, levels, noise)


class Pictures(Good, name="pictures"):
    """Takes images alone."""

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        if x.ndim != 4:
            raise ValueError("takes images alone")
        yield from super().sample(denoise, x, levels, noise)


class Refuses(Good, name="refuses"):
    """Takes nothing."""

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        raise ValueError("not today")


class Stumbles(Good, name="stumbles"):
    """Divides by nothing."""

    def sample(self, denoise: Any, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = s.alpha * estimate.x_0 + 0 / s.sigma * estimate.eps
            yield Step(x, s, estimate)


WALKS, FAR = "walks the levels it is given", "reaches the distribution"


@pytest.mark.parametrize(
    ("sampler", "laws", "words"),
    [
        (Good(), set(), ""),
        (Twice(), {"keeps to its calls"}, "3 calls in 1 steps of linear, but claimed_calls(1) is 1"),
        (Unkeyed(), {"repeats itself", "cares for no batch size"}, "draw all noise by noise(i)"),
        (Together(), {"cares for no batch size"}, "between batches of 1, 5 and 12"),
        (InPlace(), {"leaves states alone"}, "changed in place"),
        (Loud(), {FAR}, "it ends at a Wasserstein-1 distance of 0."),
        (Boaster(), {"has the order it claims"}, "claims order 2, but the error falls with order linear 0.9"),
        (BoastsOfNoise(), {FAR, "has the order it claims"}, "claims order 1, but draws noise"),
        (AsksTheClean(), {WALKS, FAR}, "the denoiser was asked at the clean end"),
        (Short(), {WALKS, "keeps to its calls"}, "2 steps of linear, items (1,), float32: it yielded 1 steps"),
        (Doubles(), {WALKS}, "gave (3, 1) float64, not (3, 1) float32"),
        (Elsewhere(), {WALKS}, "says it is at Level(t=-1.0"),
        (WrongTime(), {WALKS}, "but that t is another level's"),
        (OwnLevels(), set(), ""),
        (Meddles(), {"leaves states alone"}, "an estimate of the denoiser was changed in place"),
        (Reuses(), {"leaves states alone"}, "a state that the denoiser was asked about was changed in place"),
        (Fussy(), set(), ""),
        (Pictures(), set(), ""),
        (Refuses(), {"can be examined"}, "it refuses everything: points on linear: not today; points on flow"),
        (Stumbles(), {WALKS, FAR}, "ZeroDivisionError: float division by zero (test_testing.py, line "),
        (Divides(), {WALKS}, "1 steps of flow, items (1,), float32: the state of step 1 is not finite"),
    ],
    ids=lambda value: value.name if isinstance(value, Sampler) else "",
)
def test_samplers(sampler: Sampler, laws: set[str], words: str) -> None:
    found = broken(sampler)
    if sampler.name in ("asks-the-clean", "elsewhere", "stumbles"):
        assert WALKS in found  # what else it breaks follows from that
    else:
        assert set(found) == laws
    assert any(words in measured for measured in found.values()) or not words


# ── schedules ───────────────────────────────────────────────────────────────────────────────────


class Angle(NoiseSchedule, name="angle"):
    """The angle grows evenly."""

    def build(self, timesteps: int) -> Schedule:
        u = torch.arange(1, timesteps + 1, dtype=torch.float64) / (timesteps + 1)
        return Schedule((math.pi / 2 * u).cos(), (math.pi / 2 * u).sin())


class Unscaled(NoiseSchedule, name="unscaled"):
    """Betas that are meant for 1000 steps, whatever the number."""

    def build(self, timesteps: int) -> Schedule:
        return Schedule.from_betas(torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64))


class Backwards(NoiseSchedule, name="backwards"):
    """From noise to data."""

    def build(self, timesteps: int) -> Schedule:
        table = Angle().build(timesteps)
        return Schedule(table.alpha.flip(0), table.sigma.flip(0))


class Dirty(NoiseSchedule, name="dirty"):
    """Begins half way."""

    def build(self, timesteps: int) -> Schedule:
        table = Angle().build(2 * timesteps)
        return Schedule(table.alpha[timesteps:], table.sigma[timesteps:])


class Wobbly(NoiseSchedule, name="wobbly"):
    """Another table each time."""

    def build(self, timesteps: int) -> Schedule:
        table = Angle().build(timesteps)
        return Schedule(table.alpha, table.sigma * (1 + 1e-6 * float(torch.rand(1))))


class Wrong(Angle, name="wrong"):
    """Suits a prediction that there is not."""

    default_prediction = "score"


class Blind(NoiseSchedule, name="blind"):
    """Ends without signal, where eps tells nothing."""

    def build(self, timesteps: int) -> Schedule:
        u = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
        return Schedule(1 - u, u)


class Single(NoiseSchedule, name="single"):
    """float32."""

    def build(self, timesteps: int) -> Schedule:
        table = Angle().build(timesteps)
        return Schedule(table.alpha.float(), table.sigma.float())


TABLE = "gives a table of each length"


@pytest.mark.parametrize(
    ("schedule", "laws", "words"),
    [
        (Angle(), set(), ""),
        (
            Unscaled(),
            {"ends in noise", "means the same at every length"},
            "0.0797 of the variance is signal at the last of 250 levels; at most 0.01 is due",
        ),
        (Backwards(), {TABLE}, "but does not from 0 to 1; is the table reversed?"),
        (Dirty(), {"begins with data", "carries noise to data"}, "0.5 of the variance is noise at the first"),
        (Wobbly(), {"repeats itself"}, "two tables of 1000 levels differ"),
        (Wrong(), {"suits its prediction"}, "unknown prediction 'score'"),
        (Blind(), {"suits its prediction"}, "the prediction eps leaves x_0 unknown"),
        (Single(), {TABLE}, "alpha must be a one-dimensional float64 table"),
    ],
    ids=lambda value: value.name if isinstance(value, NoiseSchedule) else "",
)
def test_schedules(schedule: NoiseSchedule, laws: set[str], words: str) -> None:
    found = broken(schedule)
    assert set(found) == laws
    assert any(words in measured for measured in found.values()) or not words


# ── backbones ───────────────────────────────────────────────────────────────────────────────────


class Net(nn.Module):
    """A sound network for points."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.first = nn.Linear(spec.in_channels, 64)
        self.time = nn.Linear(2, 64)
        self.label = nn.Embedding((spec.classes or 0) + 1, 64)
        self.middle = nn.Linear(64, 64)
        self.last = nn.Linear(64, spec.out_channels)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        told = self.time(torch.stack([t / 1000, (t / 1000) ** 2], 1))
        told = told + self.label(torch.zeros_like(t).long() if cond is None else cond)
        h = torch.relu(self.first(x) + told)
        out: Tensor = self.last(torch.relu(self.middle(h)))
        return out


class Points(Backbone, name="points"):
    """A sound backbone for points."""

    net: ClassVar[Any] = Net

    def build(self, spec: BackboneSpec) -> nn.Module:
        if len(spec.shape) != 1:
            raise ValueError("takes points")
        return type(self).net(spec)


class Deaf(Net):
    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(x, t, None)


class Timeless(Net):
    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(x, torch.zeros_like(t), cond)


class Idle(Net):
    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.spare = nn.Linear(3, 3)


class Mixing(Net):
    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(x - 0.1 * x.mean(0), t, cond)


class Forgets(Net):
    """What it needs is no buffer, and is not saved."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.scale = 1 + torch.rand(1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(x * self.scale, t, cond)


class Dropping(Net):
    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(x, t, cond) + 0.01 * torch.rand(1)


class Numb(Net):
    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return 1e-9 * super().forward(x, t, cond)


class Here(Net):
    """Has a buffer on a device of its own."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.register_buffer("extra", torch.zeros(3 if self.first.weight.is_meta else 4))


class Flat(Net):
    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(x, t, cond)[:, :2]


class OneTime(Net):
    """Takes the first item's time for all."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(x, torch.full_like(t, float(t[0])), cond)


class NoNull(Net):
    """Takes "no class" for class 0."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(x, t, None if cond is None else torch.where(cond == 3, 0, cond))


class Spoils(Net):
    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return super().forward(x.mul_(2), t, cond)


class OneShort(Net):
    """Has no row for "no class"."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.label = nn.Embedding(spec.classes or 1, 64)


def backbone_of(net: type[nn.Module], **space: Any) -> Backbone:
    made: Any = type("Made", (Points,), {"net": net, "__doc__": "Made.", "__module__": __name__, **space}, name="made")
    return made()  # type: ignore[no-any-return]


ALONE = "answers each item for itself"


@pytest.mark.parametrize(
    ("net", "laws", "words"),
    [
        (Net, set(), ""),
        (Deaf, {"takes a label"}, "with the label of class"),
        (Timeless, {"sees the time"}, "its answers at t = 20 and 900 are 0 apart"),
        (Idle, {"uses every weight"}, "no gradient reaches spare.weight, spare.bias"),
        (Mixing, {ALONE}, "alone and among others its answers are"),
        (Forgets, {"comes back from a file"}, "what it needs must be parameters or buffers"),
        (Dropping, {ALONE}, "asked twice in evaluation, it gives two answers"),
        (Numb, {"learns", "takes a label"}, "at most 0.6 was due"),
        (Here, {"begins alike from the same seed"}, "on the meta device it has other weights"),
        (OneTime, {ALONE}, "alone and among others its answers are"),
        (NoNull, {"takes a label"}, "class 0 and no class are answered alike"),
        (Spoils, {"answers in the right shape", ALONE}, "it changes x in place"),
        (OneShort, None, "no class (cond 3): raised IndexError: index out of range"),
        (Flat, {"answers in the right shape"}, "learned variance: it answered (1, 2) torch.float32, not (1, 4)"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_backbones(net: type[nn.Module], laws: set[str] | None, words: str) -> None:
    found = broken(backbone_of(net))
    if net is Numb or laws is None:
        assert set(found) >= (laws or {"answers in the right shape"})
    else:
        assert set(found) == laws
    assert any(words in measured for measured in found.values()) or not words


class Plainly(Points, name="plainly"):
    """Takes no labels, and learns no variance."""

    def build(self, spec: BackboneSpec) -> nn.Module:
        if spec.classes is not None:
            raise ValueError("takes no labels")
        if spec.out_channels != spec.shape[0]:
            raise ValueError("learns no variance")
        return super().build(spec)


class Grey(Points, name="grey"):
    """Takes images of one channel alone."""

    def build(self, spec: BackboneSpec) -> nn.Module:
        if len(spec.shape) != 3 or spec.shape[0] != 1:
            raise ValueError("takes grey images")
        return Convolution(spec)


class Convolution(Net):
    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.look = nn.Conv2d(spec.in_channels, 64, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        h = self.look(x).movedim(1, -1)
        told = self.time(torch.stack([t / 1000, (t / 1000) ** 2], 1))
        told = told + self.label(torch.zeros_like(t).long() if cond is None else cond)
        h = torch.relu(h + self.first(x.movedim(1, -1)) + told[:, None, None])
        return self.last(torch.relu(self.middle(h))).movedim(-1, 1)


class Pretends(Points, name="pretends"):
    """Declares self-conditioning, and looks at nothing but x_t."""

    self_conditioning = True

    def build(self, spec: BackboneSpec) -> nn.Module:
        network = super().build(replace(spec, self_condition=False))
        forward = network.forward
        network.forward = lambda x, t, cond=None: forward(x[:, : spec.shape[0]], t, cond)  # type: ignore[method-assign]
        return network


class Crashes(Points, name="crashes"):
    """Refuses with another error than ValueError."""

    def build(self, spec: BackboneSpec) -> nn.Module:
        if len(spec.shape) != 1:
            raise RuntimeError("shapes!")
        return Net(spec)


class Late(Points, name="late"):
    """Builds what it cannot answer."""

    def build(self, spec: BackboneSpec) -> nn.Module:
        return Net(spec)


class Nothing(Points, name="nothing"):
    """Takes nothing."""

    def build(self, spec: BackboneSpec) -> nn.Module:
        raise ValueError("no")


def test_backbones_and_shapes() -> None:
    law = "refuses what it cannot take"
    assert "raised RuntimeError: shapes! (test_testing.py, line" in broken(Crashes())[law]
    assert "build() took items of 3x7x5, which it cannot answer" in broken(Late())[law]
    assert "it takes none of the items tried" in broken(Nothing())["can be examined"]
    found = {f.law: f for f in examine(Plainly())}
    assert (
        found["answers in the right shape"].measured
        == "2: plain; refuses classes, learned variance (learns no variance)"
    )
    assert found["takes a label"].verdict == "not asked"
    assert not broken(Plainly())
    assert not broken(Grey())
    assert set(broken(Pretends())) == {"sees its last estimate"}
    with pytest.raises(BrokenLaws, match="3x5x5: takes points"):
        check_backbone(Points(), shape=(3, 5, 5))


# ── datasets ────────────────────────────────────────────────────────────────────────────────────


def cloud(context: DatasetContext, n: int = 100) -> Tensor:
    return torch.randn(n, 2, generator=context.generator("points"))


def loading(load: Callable[[DatasetContext], Any], **space: Any) -> Dataset:
    made: Any = of_plain(load=lambda self, context: load(context), **space)
    return made()  # type: ignore[no-any-return]


def pixels(context: DatasetContext) -> Samples:
    items = torch.randint(0, 256, (100, 3, 8, 8), generator=context.generator("pixels"), dtype=torch.uint8)
    return Samples(items=items, shape=(3, 8, 8), **difftool.PIXELS)


class Items:
    """A source of items, each read with chance or without."""

    def __init__(self, chance: float = 0.0, lock: Any = None) -> None:
        self.chance, self.lock = chance, lock

    def __len__(self) -> int:
        return 50

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor([float(i % 5) - 2, 1 - i % 3]) + self.chance * random.random()


def spoil(batch: Tensor, generator: torch.Generator) -> Tensor:
    return batch.mul_(-1)


def source(**about: Any) -> Samples:
    return Samples(items=Items(**about), shape=(2,))


@pytest.mark.parametrize(
    ("dataset", "laws", "words"),
    [
        (loading(lambda c: points(cloud(c))), set(), ""),
        (loading(lambda c: source()), set(), ""),
        (
            loading(lambda c: None),
            {"loads what it says"},
            "load() gave a NoneType, not Samples",
        ),
        (
            loading(lambda c: points(cloud(c)), item_shape=lambda self: (3,)),
            {"loads what it says"},
            "item_shape() is (3,), but the samples say (2,)",
        ),
        (
            loading(lambda c: points(torch.randn(100, 2))),
            {"repeats itself", "leaves shared generators alone"},
            "draw from context.generator(...) alone",
        ),
        (loading(lambda c: (torch.manual_seed(0), points(cloud(c)))[1]), {"leaves shared generators alone"}, "seeded"),
        (
            loading(lambda c: Samples(items=cloud(c) * 300, shape=(2,))),
            {"is scaled for a network"},
            "their standard deviation is 2",
        ),
        (
            loading(lambda c: Samples(items=cloud(c), shape=(2,), bounds=(-1.0, 1.0))),
            {"is scaled for a network"},
            "beyond the bounds (-1.0, 1.0)",
        ),
        (
            loading(lambda c: Samples(items=cloud(c).where(cloud(c) < 1, torch.nan), shape=(2,))),
            {"is scaled for a network", "can be remembered"},
            "items hold NaN or infinite numbers",
        ),
        (loading(lambda c: pixels(c), default_backbone="unet"), set(), ""),
        (
            loading(lambda c: Samples(items=pixels(c).items / 255, shape=(3, 8, 8)), default_backbone="unet"),  # type: ignore[operator]
            {"images are pixels"},
            "give pixels from 0 to 255, and Samples(..., **PIXELS)",
        ),
        (
            loading(lambda c: (np.random.seed(c.seed), points(torch.from_numpy(np.random.randn(100, 2))))[1]),
            {"leaves shared generators alone"},
            "global generator of numpy",
        ),
        (loading(lambda c: points(cloud(c), labels=torch.zeros(100))), {"loads what it says"}, "int64, not float32"),
        (
            loading(lambda c: source(chance=1.0)),
            {"items are read alike anywhere", "repeats itself"},
            "__getitem__ must be pure",
        ),
        (
            loading(lambda c: source(lock=lambda: None)),
            {"items are read alike anywhere"},
            "their source cannot be sent to a worker",
        ),
        (
            loading(
                lambda c: points(cloud(c), labels=torch.zeros(100, dtype=torch.int64), class_names=("a", "b")),
            ),
            {"labels name classes"},
            "no item is of class b",
        ),
        (
            loading(lambda c: replace(points(cloud(c)), augment=spoil)),
            {"augments by its generator alone"},
            "changed the batch in place",
        ),
        (
            loading(lambda c: replace(points(cloud(c)), augment=lambda x, g: x + torch.rand(1))),
            {"augments by its generator alone"},
            "two different batches with the same generator",
        ),
        (
            loading(lambda c: replace(points(cloud(c)), item_ids=["a"] * 100)),
            {"can be remembered"},
            "two items have one name",
        ),
        (
            loading(lambda c: points(cloud(c)), default_backbone="unet"),
            {"suits its backbone"},
            "unet: unet needs images",
        ),
        (
            loading(lambda c: points(cloud(c)), default_backbone="x"),
            {"suits its backbone"},
            "unknown backbone 'x'",
        ),
    ],
)
def test_datasets(dataset: Dataset, laws: set[str], words: str) -> None:
    found = broken(dataset)
    assert set(found) == laws
    assert any(words in measured for measured in found.values()) or not words


# ── the other kinds ─────────────────────────────────────────────────────────────────────────────


class Rising(Spacing, name="rising"):
    """From clean to noisy."""

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        return [schedule[t] for t in range(steps)]


class Nowhere(Prediction, name="nowhere"):
    """Always x_t itself."""

    def coefficients(self, level: Level, spec: Any) -> tuple[float, float]:
        return level.alpha, level.sigma


class Negative(Weighting, name="negative"):
    """Less than nothing."""

    def weight(self, native: Tensor, spec: Any) -> Tensor:
        return -native


class Never(TimestepSampling, name="never"):
    """No level at all."""

    def density(self, spec: Any) -> Tensor:
        return torch.zeros(len(spec.schedule), dtype=torch.float64)


class Liar(Oracle, name="liar"):
    """x_0 and eps of something else."""

    def denoiser(self, samples: Samples, label: int | None, device: torch.device) -> Any:
        return lambda x, level: difftool.Estimate(torch.zeros_like(x), torch.ones_like(x))


class Scatters(Logger, name="scatters"):
    """Writes beside the run's own files."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        yield lambda row: (run.folder / "mine.txt").write_text("x") and None


class Erases(Logger, name="erases"):
    """Begins anew whenever it is opened."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        run.logs.mkdir(exist_ok=True)
        with (run.logs / "x.txt").open("w") as file:
            yield lambda row: file.write(f"{row.metrics}\n") and None


class Repeats(Logger, name="repeats"):
    """Appends whatever comes."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        run.logs.mkdir(exist_ok=True)
        with (run.logs / "x.txt").open("a") as file:
            yield lambda row: file.write(f"{row.metrics}\n") and None


class Bare(Logger, name="bare"):
    """Forgot the decorator."""

    def open(self, run: RunContext) -> Any:
        yield lambda row: None


class Upper(Writer, name="upper"):
    """A suffix that no path is asked for."""

    suffixes = (".PNG",)

    def write(self, drawing: Any, path: Path) -> None:
        drawing.save_figure(path)


class Dated(Writer, name="dated"):
    """Other bytes each time."""

    suffixes = (".x",)

    def write(self, drawing: Any, path: Path) -> None:
        path.write_text(str(next(DATES)))


DATES = itertools.count()


@pytest.mark.parametrize(
    ("component", "law", "words"),
    [
        (Rising(), "gives as many levels as asked", "did not give 2 strictly falling levels"),
        (Nowhere(), "tells data and noise", "leaves x_0 or eps unknown somewhere on each of linear, flow, ve"),
        (Negative(), "weighs every level", "linear, eps: weights reach from -"),
        (Never(), "is a distribution", "gives no distribution"),
        (Liar(), "tells one story", "from the x it was asked about"),
        (Liar(), "knows the data", "from the item"),
        (Scatters(), "logs a run and goes on", "it wrote mine.txt into the run folder; its own files go to run.logs"),
        (Erases(), "logs a run and goes on", "x.txt lost the row of step 1 when the run was resumed after it"),
        (Repeats(), "logs a run and goes on", "x.txt has the row of step 2 twice"),
        (Bare(), "logs a run and goes on", "open() gave a generator, no context; put @contextlib.contextmanager above"),
        (Upper(), "names its suffixes", "'.PNG' is no suffix"),
        (Dated(), "writes what it takes", ".x: the same points were written as other bytes"),
    ],
)
def test_other_kinds(component: Component, law: str, words: str) -> None:
    assert words in broken(component)[law]


# ── plugins, and the register of one's own ──────────────────────────────────────────────────────


def test_a_plugin_as_a_whole() -> None:
    heavy = Plugin("heavy", "x", "1", components=[Good], seconds=1.5, imports_torch=True)
    assert [f.verdict for f in examine_plugin(heavy)] == ["kept", "broken"]
    assert "takes 1.50 s" in [f.measured for f in examine_plugin(heavy)][1]
    with PluginManager().active() as manager:
        bad = manager.register(SimpleNamespace(__name__="bad"))
    assert next(examine_plugin(bad)).measured.startswith("it provides no component")


def module(**hooks: Any) -> Any:
    return SimpleNamespace(__name__="mine", **{name: hookimpl(function) for name, function in hooks.items()})


def test_the_fixture_knows_the_built_ins_and_nothing_else(plugin_manager: PluginManager) -> None:
    assert all(plugin.built_in for plugin in plugin_manager.registry.plugins)
    assert difftool.component("sampler", "ddim")
    with pytest.raises(difftool.UsageError, match="unknown sampler 'good'"):
        difftool.component("sampler", "good")
    plugin = plugin_manager.register(module(difftool_samplers=lambda: [Good]))
    assert (plugin.problems, plugin.components) == ([], [Good])
    assert difftool.component("sampler", "good") == Good()
    assert "good" in invoke("list", "samplers").out
    assert difftool.component("sampler", "tested:good") == Good()


def test_what_was_registered_is_gone_after_the_test(plugin_manager: PluginManager) -> None:
    assert "good" not in difftool.names("sampler")


def test_a_registered_plugin_that_is_wrong_says_so(plugin_manager: PluginManager) -> None:
    taken = type("Taken", (Good,), {"__doc__": "Taken."}, name="ddim")
    plugin = plugin_manager.register(module(difftool_samplers=lambda: [taken]), distribution="theirs")
    assert [str(p) for p in plugin.problems] == [
        "sampler 'ddim': the name is taken by difftool; reach it as theirs:ddim"
    ]
    misspelt = plugin_manager.register(module(difftool_sampler=lambda: [Good]), distribution="others")
    assert str(misspelt.problems[0]).startswith("there is no hook 'difftool_sampler'; did you mean difftool_samplers?")
    assert difftool.component("sampler", "ddim")


def test_checks_take_a_class_or_a_component() -> None:
    assert check_schedule(difftool.component("schedule", "cosine"))
    assert check_sampler(type(difftool.component("sampler", "euler")))
    with pytest.raises(difftool.UsageError, match="path: must be given"):
        check_dataset(registry().of_kind(Dataset, "image-folder"))


def test_checking_leaves_torch_as_it_was() -> None:
    torch.set_num_threads(torch.get_num_threads())
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    check_schedule(difftool.component("schedule", "linear"))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_every_law_says_what_it_is() -> None:
    for kind in difftool.components.KINDS:
        for law in laws_of(kind):
            assert len(text_of(law)) > 30, law
            assert name_of(law) == name_of(law).lower()
    assert Finding("x", "broken", "y").broken


def test_the_kit_is_light() -> None:
    import subprocess

    code = "import sys, difftool.testing; print([m for m in ('torch', 'numpy', 'pytest') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
