"""The law kit: every built-in passes its laws, and for every law there is a component that fails it."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
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
    Callback,
    Component,
    Condition,
    ConditionSpec,
    Dataset,
    DatasetContext,
    Level,
    Logger,
    NoiseSchedule,
    Oracle,
    Prediction,
    Progress,
    Row,
    RunContext,
    Sampler,
    Samples,
    Schedule,
    Spacing,
    Step,
    Stop,
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
    LawsFailed,
    PluginManager,
    backbone_case,
    backbones,
    callbacks,
    check_backbone,
    check_component,
    check_dataset,
    check_sampler,
    check_schedule,
    common,
    datasets,
    examine,
    invoke,
    laws_of,
    loggers,
    objectives,
    oracles,
    samplers,
    schedules,
    toy_task,
    writers,
)
from difftool.testing.examine import check_law, examine_plugin, laws_by_kind, undisturbed
from difftool.testing.laws import Law, Skipped, name_of, text_of


def failure(component: Component, law: Law) -> str:
    """Check one law, which must fail, and return what was measured."""
    with undisturbed():
        subject = laws_by_kind()[component.kind].prepare(component)
    finding = check_law(law, subject)
    assert finding.failed, finding
    return finding.measured


def rows(table: Mapping[Law, Mapping[str, Any]]) -> list[Any]:
    """Return a test case (component, law, words) for each entry: the law must fail, and its text holds the words."""
    return [
        pytest.param(x, law, words, id=f"{name_of(law)}: {words[:30]}")
        for law in table
        for words, x in table[law].items()
    ]


def failed_laws(component: Component, **arguments: Any) -> dict[str, str]:
    """Check the laws of a component's kind, without those of every component; return what failed, with its text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "LAWS", ())
        return {f.law: f.measured for f in examine(component, **arguments) if f.failed}


# ── the built-ins ───────────────────────────────────────────────────────────────────────────────

CHECKED_BELOW = {
    *("array", "autoencoder-kl", "autoguidance", "diffusers-dit", "diffusers-unet", "export", "hf", "image-folder"),
    *("import", "jsonl", "known", "new-plugin", "sound-folder", "unet", "webdataset"),
}
"""Built-ins that require options, and what is made small: networks, and the draws of `known`.

`array` is checked in test_array_dataset, `new-plugin` in test_commands, `autoencoder-kl` in
test_codecs, what is of diffusers in test_exchange, `sound-folder` in test_sound_folder,
and `hf` and `webdataset` in test_packed.
"""


def built_ins() -> list[Any]:
    classes = [registry().get(kind, name) for kind in difftool.components.KINDS for name in registry().names(kind)]
    return [pytest.param(c, id=f"{c.kind} {c.name}") for c in classes if c.name not in CHECKED_BELOW]


@pytest.fixture(scope="module")
def all_imported() -> subprocess.CompletedProcess[str]:
    """The import of the modules of all built-ins in one process, which takes a second; one for each takes a minute."""
    modules = sorted({case.values[0].__module__ for case in built_ins()})
    code = f"import importlib, sys; [importlib.import_module(name) for name in {modules}]; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True)


@pytest.fixture
def imported_together(all_imported: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert all_imported.returncode == 0, all_imported.stderr
    monkeypatch.setattr(common, "_import_in_new_process", lambda module, path: all_imported)


@pytest.mark.usefixtures("imported_together")
@pytest.mark.parametrize("component", built_ins())
def test_built_ins_pass(component: type[Component]) -> None:
    findings = check_component(component)
    laws = laws_of(component.kind)
    if findings[-1].law == "can be checked":  # features of a network whose weights are not on this machine
        assert component.kind == "features"
        laws = common.LAWS
        *findings, _ = findings
    assert [finding.law for finding in findings] == [name_of(law) for law in laws]
    assert all(finding.measured for finding in findings)


@pytest.mark.usefixtures("imported_together")
@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("sampler", "ddim", {"eta": 0.3}),
        ("sampler", "ddim", {"eta": 1.0}),
        ("sampler", "euler-ancestral", {"eta": 0.3}),
        ("sampler", "dpmpp-2m-sde", {"eta": 0.3}),
        *(("sampler", "lms", {"order": order}) for order in (1, 2, 4)),
        ("metric", "known", {"draws": 1000}),
    ],
)
def test_built_ins_pass_with_other_options(kind: str, name: str, options: dict[str, Any]) -> None:
    check_component(difftool.component(kind, name, **options))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"dim": 8, "dim_mults": (1, 2), "groups": 4, "heads": 2, "head_dim": 8}, (1, 4, 4)),
        ({"dim": 16}, None),
    ],
    ids=["small", "narrow"],
)
def test_the_unet_passes(options: dict[str, Any], shape: tuple[int, ...] | None) -> None:
    check_backbone(difftool.component("backbone", "unet", **options), shape=shape)


def test_built_ins_that_require_options_pass(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (9, 8), (80 * i, 40, 200 - 60 * i)).save(tmp_path / name / f"{i}.png")
    for in_memory in (True, False):
        more = {} if in_memory else {"memory": 0.0}
        images = difftool.component("dataset", "image-folder", path=tmp_path, size=(8,), augment=("flip",), **more)
        findings = {finding.law: finding for finding in check_component(images)}
        assert findings["labels items by class"].measured == "2 classes of 3 to 3 items"
        assert findings["augments reproducibly"].verdict == "passed"
        assert findings["reads the same item every time"].verdict == ("skipped" if in_memory else "passed")
    check_component(difftool.component("logger", "jsonl", path=tmp_path / "all.jsonl"))
    check_component(difftool.component("guidance", "autoguidance", run=tmp_path / "never-opened", interval=(0.1, 9.0)))


# ── every component ─────────────────────────────────────────────────────────────────────────────


class Plain(Dataset, name="plain"):
    """A cloud of points."""

    n: int = option(default=200, ge=1, le=10**6, help="number of points")

    def load(self, context: DatasetContext) -> Samples:
        return points(torch.randn(self.n, 2, generator=context.generator("points")))


def test_a_failure_names_the_laws_and_the_measurements() -> None:
    """This module imports torch, so the component is expensive to import; it passes all other laws."""
    with pytest.raises(LawsFailed) as caught:
        check_dataset(Plain)
    assert [finding.law for finding in caught.value.findings if finding.failed] == ["imports nothing heavy"]
    assert str(caught.value).startswith(
        "dataset plain fails 1 of 18 laws:\n  imports nothing heavy: importing test_testing imports torch"
    )


class Silent(Plain, name="silent"):
    size: int = option(default=1)


class Terse(Plain, name="terse"):
    """An option without a help text."""

    size: int = option(default=1)


class Lost(Plain, name="lost"):
    """None does not come back where the default is another."""

    size: int | None = option(default=1, ge=1, le=9, help="some size")


class Changes(Plain, name="changes"):
    """Changes its own option."""

    text: str = option(default="a", help="some text")

    def __post_init__(self) -> None:
        if self.text != "a":
            object.__setattr__(self, "text", self.text + "!")


class Capital(Plain, name="Capital"):
    """A name in upper case."""


ROUND_TRIPS = (
    common.options_survive_the_command_line,
    common.options_survive_a_config_file,
    common.options_survive_a_model_file,
)


@pytest.mark.parametrize(
    ("component", "law", "words"),
    [
        (Capital(), common.can_be_registered, "name must be lower-case words joined by '-', not 'Capital'"),
        (Silent(), common.is_documented, "it has no docstring"),
        (Terse(), common.is_documented, "no help for size"),
        *((Changes(), law, "came back as") for law in ROUND_TRIPS),
        *((Lost(), law, "came back as") for law in ROUND_TRIPS),
    ],
)
def test_laws_of_every_component(component: Component, law: Law, words: str) -> None:
    finding = check_law(law, component)
    assert finding.failed
    assert words in finding.measured


class Many(Plain, name="many"):
    """Options of every type."""

    flag: bool = option(default=True, help="x")
    whole: int | None = option(default=None, help="x")
    real: float = option(default=0.5, gt=0, lt=1, help="x")
    text: str | None = option(default=None, help="x")
    path: Path = option(default=Path("/a"), help="x")
    word: Literal["a", "b"] = option(default="a", help="x")
    numbers: tuple[int, ...] = option(default=(1, 2), ge=0, help="x")
    pair: tuple[float, float] | None = option(default=None, help="x")
    words: tuple[Literal["x", "y"], ...] = option(default=("x",), help="x")


@pytest.mark.parametrize("law", ROUND_TRIPS)
def test_options_of_every_type_survive(law: Law) -> None:
    finding = check_law(law, Many())
    assert finding.verdict == "passed"
    assert int(finding.measured.split()[0]) >= 15


class Gadget(Component):
    """A component of a kind that has no laws of its own."""

    kind, name = "gadget", "gadget"


def test_a_kind_without_laws_of_its_own_has_the_common_ones() -> None:
    assert laws_of("gadget") == common.LAWS
    assert [finding.law for finding in examine(Gadget())] == [name_of(law) for law in common.LAWS]


def test_every_kind_has_laws_of_its_own() -> None:
    assert set(laws_by_kind()) == set(difftool.components.KINDS)


# ── samplers ────────────────────────────────────────────────────────────────────────────────────


class DDIM(Sampler, name="sound"):
    """DDIM, written out."""

    order: ClassVar[int | None] = 1

    def claimed_order(self) -> int | None:
        return self.order

    def sample(self, denoise: Any, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
        return ddim(denoise, x, levels)


def ddim(denoise: Any, x: Tensor, levels: Any) -> Iterator[Step]:
    for t, s in pairwise(levels):
        estimate = denoise(x, t)
        x = s.alpha * estimate.x_0 + s.sigma * estimate.eps
        yield Step(x, s, estimate)


def sampler(sample: Callable[..., Iterator[Step]], order: int | None = 1) -> Sampler:
    """Make a sampler from the function `sample(denoise, x, levels, noise)`."""
    space = {"sample": lambda self, *arguments: sample(*arguments), "order": order, "__module__": __name__}
    made: Any = type("Made", (DDIM,), space, name="sound")
    return made()  # type: ignore[no-any-return]


def stepwise(change: Callable[[Step], Any]) -> Any:
    """Make a sampler that changes each step of DDIM."""
    return lambda denoise, x, levels, noise: map(change, ddim(denoise, x, levels))


def at_levels(change: Callable[[Level], Level]) -> Any:
    """Make a sampler that calls the denoiser of DDIM at changed levels."""
    return lambda denoise, x, levels, noise: ddim(lambda x, level: denoise(x, change(level)), x, levels)


def variance_preserving_only(denoise: Any, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
    if any(abs(level.norm - 1) > 1e-6 for level in levels):
        raise ValueError("accepts variance-preserving schedules only")
    yield from ddim(denoise, x, levels)


def images_only(denoise: Any, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
    if x.ndim != 4:
        raise ValueError("accepts images only")
    yield from ddim(denoise, x, levels)


@pytest.mark.parametrize(
    "sample",
    [
        at_levels(lambda level: Level.of(level.alpha, level.sigma)),  # levels of its own
        variance_preserving_only,
        images_only,
    ],
)
def test_sound_samplers_pass(sample: Callable[..., Iterator[Step]]) -> None:
    assert failed_laws(sampler(sample)) == {}


def clean_end(denoise: Any, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
    for step in ddim(denoise, x, levels):
        denoise(step.x, step.level)
        yield step


def divides_by_zero(denoise: Any, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
    for t, s in pairwise(levels):
        estimate = denoise(x, t)
        x = s.alpha * estimate.x_0 + 0 / s.sigma * estimate.eps
        yield Step(x, s, estimate)


def divides_by_the_signal(denoise: Any, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
    for t, s in pairwise(levels):
        estimate = denoise(x, t)
        signal = torch.as_tensor(t.alpha, dtype=x.dtype)
        x = s.alpha / signal * x + (s.sigma - s.alpha * t.sigma / signal) * estimate.eps
        yield Step(x, s, estimate)


def changes_yielded_states(denoise: Any, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
    state = x.clone()
    for step in ddim(denoise, x.clone(), levels):
        yield replace(step, x=state.copy_(step.x))


def changes_passed_states(denoise: Any, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
    x = x.clone()
    for t, s in pairwise(levels):
        estimate = denoise(x, t)
        x.copy_(s.alpha * estimate.x_0 + s.sigma * estimate.eps)
        yield Step(x.clone(), s, estimate)


def changes_estimates(denoise: Any, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
    for t, s in pairwise(levels):
        estimate = denoise(x, t)
        x = (s.alpha * estimate.x_0).add_(estimate.eps.mul_(s.sigma))
        yield Step(x, s, estimate)


def too_quiet(denoise: Any, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
    """Scale the noise of a step by the posterior's variance instead of its standard deviation: a published bug."""
    for i, (t, s) in enumerate(pairwise(levels)):
        estimate = denoise(x, t)
        q = t.alpha * s.sigma / (s.alpha * t.sigma)
        x = s.alpha * (1 - q * q) * estimate.x_0 + q * s.sigma / t.sigma * x
        x = x + s.sigma**2 * (1 - q * q) * noise(i)
        yield Step(x, s, estimate)


def refuses_everything(denoise: Any, x: Tensor, levels: Any, noise: Any) -> Iterator[Step]:
    raise ValueError("not today")


FAILING_SAMPLERS = {
    samplers.visits_the_given_levels: {
        "the denoiser was called at the clean end": clean_end,
        # the right noise with the t of another level, and t is all that a network sees
        "but that t belongs to another level": at_levels(lambda level: replace(level, t=0.0)),
        "2 steps of linear, items (1,), float32: it yielded 1 steps": lambda denoise, x, levels, noise: ddim(
            denoise, x, [levels[0], *levels[2:]] if len(levels) > 2 else levels
        ),
        "step 1 has (3, 1) float64, not (3, 1) float32": stepwise(lambda step: replace(step, x=step.x.double())),
        "the denoiser was called with (3, 1) float64, not (3, 1) float32": lambda denoise, x, levels, noise: ddim(
            lambda x, level: denoise(x.double(), level), x, levels
        ),
        "step 1 is a Tensor, not a Step": stepwise(lambda step: step.x),
        "step 1 claims to be at Level(t=-1.0": stepwise(lambda step: replace(step, level=CLEAN)),
        "ZeroDivisionError: float division by zero (test_testing.py, line ": divides_by_zero,
        "1 steps of flow, items (1,), float32: the state of step 1 is not finite": divides_by_the_signal,
    },
    samplers.is_reproducible: {
        "draw all noise by noise(i)": stepwise(lambda step: replace(step, x=step.x + 1e-4 * torch.randn_like(step.x)))
    },
    samplers.is_independent_of_the_batch_size: {
        "between batches of 1, 5 and 12": lambda denoise, x, levels, noise: ddim(denoise, x + 1e-3 * x.mean(0), levels)
    },
    samplers.modifies_no_tensor_in_place: {
        "the noise that it starts from was changed in place": lambda denoise, x, levels, noise: (
            replace(step, x=x.copy_(step.x)) for step in ddim(denoise, x.clone(), levels)
        ),
        "the state of step 1 was changed in place later": changes_yielded_states,
        "a state that was passed to the denoiser was changed in place later": changes_passed_states,
        "an estimate of the denoiser was changed in place": changes_estimates,
    },
    samplers.makes_the_calls_it_claims: {
        "2 calls in 1 steps of linear, but claimed_calls(1) is 1": lambda denoise, x, levels, noise: ddim(
            lambda x, level: (denoise(x, level), denoise(x, level))[1], x, levels
        )
    },
    samplers.reaches_the_data_distribution: {"it ends at a Wasserstein-1 distance of 0.": too_quiet},
    samplers.has_the_order_it_claims: {"claims order 1, but draws noise": too_quiet},
}


@pytest.mark.parametrize(("sample", "law", "words"), rows(FAILING_SAMPLERS))
def test_samplers_that_fail_a_law(sample: Callable[..., Iterator[Step]], law: Law, words: str) -> None:
    assert words in failure(sampler(sample), law)


def test_a_sampler_that_claims_too_high_an_order() -> None:
    claims_two = sampler(lambda denoise, x, levels, noise: ddim(denoise, x, levels), order=2)
    failed = failed_laws(claims_two)
    assert list(failed) == ["has the order it claims"]
    assert "claims order 2, but its error has order linear 0.9" in failed["has the order it claims"]


def test_a_sampler_that_accepts_nothing() -> None:
    failed = failed_laws(sampler(refuses_everything))
    assert list(failed) == ["can be checked"]
    assert "it refuses everything: points on linear: not today; points on flow" in failed["can be checked"]


# ── schedules ───────────────────────────────────────────────────────────────────────────────────


def schedule(build: Callable[[int], Any], **space: Any) -> NoiseSchedule:
    space |= {"build": lambda self, timesteps: build(timesteps), "__module__": __name__}
    made: Any = type("Made", (NoiseSchedule,), space, name="made")
    return made()  # type: ignore[no-any-return]


def even_angle(timesteps: int) -> Schedule:
    angle = math.pi / 2 * torch.arange(1, timesteps + 1, dtype=torch.float64) / (timesteps + 1)
    return Schedule(angle.cos(), angle.sin())


def straight(timesteps: int) -> Schedule:
    u = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
    return Schedule(1 - u, u)


def reversed_angle(timesteps: int) -> Schedule:
    table = even_angle(timesteps)
    return Schedule(table.alpha.flip(0), table.sigma.flip(0))


def second_half(timesteps: int) -> Schedule:
    table = even_angle(2 * timesteps)
    return Schedule(table.alpha[timesteps:], table.sigma[timesteps:])


def from_the_clean_end(timesteps: int) -> Schedule:
    u = torch.arange(timesteps, dtype=torch.float64) / timesteps
    return Schedule(1 - u, u)


def unscaled(timesteps: int) -> Schedule:
    return Schedule.from_betas(torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64))


def random_table(timesteps: int) -> Schedule:
    table = even_angle(timesteps)
    return Schedule(table.alpha, table.sigma * (1 + 1e-6 * float(torch.rand(1))))


def single_precision(timesteps: int) -> Schedule:
    table = even_angle(timesteps)
    return Schedule(table.alpha.float(), table.sigma.float())


def test_a_sound_schedule_passes() -> None:
    assert failed_laws(schedule(even_angle)) == {}


FAILING_SCHEDULES = {
    schedules.builds_a_table_of_any_length: {
        "but does not from 0 to 1; is the table reversed?": schedule(reversed_angle),
        "alpha must be a one-dimensional float64 table": schedule(single_precision),
        "build() returned a NoneType, not a Schedule": schedule(lambda timesteps: None),
        "build(50) returned 9 levels": schedule(lambda timesteps: even_angle(9)),
    },
    schedules.starts_near_the_data: {
        "0.5 of the variance is noise at the first of 1000 levels; at most 0.1 is allowed": schedule(second_half),
        "the first level has no noise": schedule(from_the_clean_end),
    },
    schedules.ends_in_noise: {
        "0.0797 of the variance is signal at the last of 250 levels; at most 0.01 is allowed": schedule(unscaled)
    },
    schedules.has_the_same_shape_at_every_length: {"levels at the same fraction differ by": schedule(unscaled)},
    schedules.is_reproducible: {"two tables of 1000 levels differ": schedule(random_table)},
    schedules.fits_its_default_prediction: {
        "unknown prediction 'score'": schedule(even_angle, default_prediction="score"),
        "prediction eps: at level 999 (alpha 0, sigma 1) it leaves x_0 unknown": schedule(straight),
    },
    schedules.leads_from_noise_to_data: {"the samples end at a Wasserstein-1 distance of": schedule(second_half)},
}


@pytest.mark.parametrize(("component", "law", "words"), rows(FAILING_SCHEDULES))
def test_schedules_that_fail_a_law(component: NoiseSchedule, law: Law, words: str) -> None:
    assert words in failure(component, law)


def test_a_missing_table_fails_one_law_and_skips_the_others() -> None:
    findings = [f for f in examine(schedule(reversed_angle)) if f.law in map(name_of, schedules.LAWS)]
    assert [finding.verdict for finding in findings] == ["failed", *["skipped"] * 6]


# ── backbones ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound networks pass within 200 steps, and broken ones would not pass after 800 either."""
    monkeypatch.setattr(toy_task, "MAX_STEPS", 200)


class Net(nn.Module):
    """A sound network for points."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.first = nn.Linear(spec.in_channels, 64)
        self.time = nn.Linear(2, 64)
        self.label = nn.Embedding((spec.classes or 0) + 1, 64)
        self.null = spec.classes or 0
        self.middle = nn.Linear(64, 64)
        self.last = nn.Linear(64, spec.out_channels)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        h = torch.relu(self.first(x) + self.embedding(t, cond))
        out: Tensor = self.last(torch.relu(self.middle(h)))
        return out

    def embedding(self, t: Tensor, cond: Condition | None) -> Tensor:
        vector: Tensor = self.time(torch.stack([t / 1000, (t / 1000) ** 2], 1))
        return vector + self.label(torch.zeros_like(t).long() if cond is None else cond.class_index(self.null))


class Points(Backbone, name="points"):
    """A sound backbone for points."""

    conditions = ("label",)
    net: ClassVar[Any] = Net

    def build(self, spec: BackboneSpec) -> nn.Module:
        if len(spec.shape) != 1:
            raise ValueError("accepts points only")
        return type(self).net(spec)


def backbone(net: Callable[[BackboneSpec], Any], **space: Any) -> Backbone:
    made: Any = type("Made", (Points,), {"net": staticmethod(net), "__module__": __name__, **space}, name="made")
    return made()  # type: ignore[no-any-return]


def altered(forward: Callable[..., Any]) -> type[nn.Module]:
    """Make a network from `forward(original, x, t, cond)`, where `original` is the forward of the sound network."""

    class Altered(Net):
        def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Any:
            return forward(super().forward, x, t, cond)

    return Altered


TIMELESS = altered(lambda net, x, t, cond: net(x, 0 * t, cond))
NOISY = altered(lambda net, x, t, cond: net(x, t, cond) + 0.01 * torch.rand(1))


class OneShort(Net):
    """Has no row for "no class"."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.label = nn.Embedding(spec.classes or 1, 64)


class Idle(Net):
    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.spare = nn.Linear(3, 3)


class Unsaved(Net):
    """Needs a tensor that is not a buffer."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.scale = 1 + torch.rand(1)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return super().forward(x * self.scale, t, cond)


class OtherOnMeta(Net):
    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.register_buffer("extra", torch.zeros(3 if self.first.weight.is_meta else 4))


class Unseeded(Net):
    count = itertools.count()

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.register_buffer("number", torch.tensor(float(next(Unseeded.count))))


class LooksAtXAlone(Net):
    """Ignores the estimate beside x_t."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(replace(spec, self_condition=False))
        self.channels = spec.shape[0]

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return super().forward(x[:, : self.channels], t, cond)


FAILING_NETWORKS = {
    backbones.returns_the_right_shape: {
        "no class: raised IndexError: index out of range": OneShort,
        "it returned a list, not a tensor": altered(lambda net, x, t, cond: [net(x, t, cond)]),
        "learned variance: it returned (1, 2) torch.float32, not (1, 4)": altered(
            lambda net, x, t, cond: net(x, t, cond)[:, :2]
        ),
        "it changes x in place": altered(lambda net, x, t, cond: net(x.mul_(2), t, cond)),
    },
    backbones.has_reproducible_initial_weights: {
        "on the meta device it has other weights": OtherOnMeta,
        "number differs between two networks of one seed": Unseeded,
    },
    backbones.trains_every_parameter: {"no gradient reaches spare.weight, spare.bias": Idle},
    backbones.learns_to_denoise: {"at most 0.6 is required": altered(lambda net, x, t, cond: 1e-9 * net(x, t, cond))},
    backbones.uses_the_label: {"with the label of class": altered(lambda net, x, t, cond: net(x, t, None))},
    backbones.uses_the_time: {"outputs at t = 20 and t = 900 differ by 0,": TIMELESS},
    backbones.uses_the_last_estimate: {"outputs with and without an estimate differ by 0,": LooksAtXAlone},
    backbones.treats_items_independently: {
        "outputs alone and in a batch differ by 0.": altered(lambda net, x, t, cond: net(x - 0.1 * x.mean(0), t, cond)),
        "outputs alone and in a batch differ by": altered(lambda net, x, t, cond: net(x, t[0].expand_as(t), cond)),
        "two calls in evaluation mode give two outputs": NOISY,
    },
    backbones.can_be_saved_and_loaded: {"must be a parameter or a buffer": Unsaved},
    backbones.works_in_bf16: {
        "at most a tenth is required": altered(lambda net, x, t, cond: (net(x, t, cond) + 1000) - 1000),
    },
}


@pytest.mark.parametrize(("net", "law", "words"), rows(FAILING_NETWORKS))
def test_networks_that_fail_a_law(short_training: None, net: type[nn.Module], law: Law, words: str) -> None:
    assert words in failure(backbone(net, self_conditioning=net is LooksAtXAlone), law)


class Knowing(Net):
    """A sound network that takes all conditions."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        sizes = {name: math.prod(shape) for name, shape in spec.condition.shapes.items() if name != "label"}
        self.inner = nn.ModuleDict({name: nn.Linear(size, 64) for name, size in sizes.items()})
        self.outer = nn.ModuleDict({name: nn.Linear(64, 64) for name in sizes})
        self.nothing = nn.ParameterDict({name: nn.Parameter(torch.randn(64)) for name in sizes})

    def embedding(self, t: Tensor, cond: Condition | None) -> Tensor:
        vector = super().embedding(t, cond if cond is not None and cond.label is not None else None)
        for name in self.inner:
            if cond is not None:
                vector = vector + self.of_field(name, getattr(cond, name).flatten(1), cond.hidden[:, None])
        return vector

    def of_field(self, name: str, values: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden, self.nothing[name], self.outer[name](torch.relu(self.inner[name](values))))


def deaf(field: str) -> type[nn.Module]:
    """Make a network that ignores a field, but sees which items are hidden."""

    class Deaf(Knowing):
        def of_field(self, name: str, values: Tensor, hidden: Tensor) -> Tensor:
            return super().of_field(name, 0 * values if name == field else values, hidden)

    return Deaf


class TakesZeroForNothing(Knowing):
    def of_field(self, name: str, values: Tensor, hidden: Tensor) -> Tensor:
        return super().of_field(name, values, torch.zeros_like(hidden)) + 0 * self.nothing[name]


class MixesVectors(Knowing):
    """Takes the mean vector of the batch off each vector."""

    def of_field(self, name: str, values: Tensor, hidden: Tensor) -> Tensor:
        return super().of_field(name, values - values.mean(0), hidden)


def wants_both(spec: BackboneSpec) -> nn.Module:
    if {"vector", "tokens"} - {*spec.condition.shapes}:
        raise ValueError("needs a vector and tokens")
    return Knowing(spec)


FIELDS = ("label", "vector", "tokens")


@pytest.mark.parametrize("net", [Knowing, wants_both])
def test_networks_that_know_or_need_their_conditions(short_training: None, net: Any) -> None:
    findings = {f.law: f for f in examine(backbone(net, conditions=FIELDS))}
    assert {name for name, finding in findings.items() if finding.failed} <= {"is documented", "imports nothing heavy"}
    for field in FIELDS:
        assert findings[f"uses the {field}"].verdict == "passed"
    assert findings["uses the image"].measured == "it declares no image"
    assert findings["does not use what is hidden"].verdict == "passed"
    assert ("; refuses plain" in findings["returns the right shape"].measured) is (net is wants_both)


@pytest.mark.parametrize(
    ("net", "law", "words"),
    [
        (deaf("vector"), backbones.uses_the_vector, "with the vector of class"),
        (deaf("tokens"), backbones.uses_the_tokens, "with the tokens of class"),
        (deaf("image"), backbones.uses_the_image, "with the image of class"),
        (TakesZeroForNothing, backbones.does_not_use_what_is_hidden, "hidden and zero vector differ by 0,"),
        (MixesVectors, backbones.treats_items_independently, "outputs alone and in a batch differ by"),
    ],
    ids=["vector", "tokens", "image", "zero", "mixed"],
)
def test_networks_that_misuse_a_condition(short_training: None, net: Any, law: Law, words: str) -> None:
    image = law is backbones.uses_the_image
    fields = ("image",) if image else ("vector", "tokens")
    build = pixels_of(net) if image else Points.build
    assert words in failure(backbone(net, conditions=fields, build=build), law)


def pixels_of(net: Any) -> Callable[..., nn.Module]:
    def build(self: Backbone, spec: BackboneSpec) -> nn.Module:
        if len(spec.shape) != 3:
            raise ValueError("accepts images only")
        return Pixels(net(spec))

    return build


class Pixels(nn.Module):
    """Gives each pixel to a network of points."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        h = self.net.first(x.movedim(1, -1)) + self.net.embedding(t, cond)[:, None, None]
        return self.net.last(torch.relu(self.net.middle(torch.relu(h)))).movedim(-1, 1)


def test_settings_that_difftool_train_does_not_have() -> None:
    assert "training_defaults: warmpu" in failure(
        backbone(Net, training_defaults={"warmpu": 5}), backbones.suggests_valid_settings
    )


def test_a_network_that_confuses_a_class_with_no_class() -> None:
    null_as_0 = altered(
        lambda net, x, t, cond: net(x, t, None if cond is None else replace(cond, hidden=torch.zeros_like(cond.hidden)))
    )
    assert "class 0 and no class have the same output" in failure(backbone(null_as_0), backbones.uses_the_label)


def test_a_network_that_fails_one_law_passes_the_others(short_training: None) -> None:
    assert list(failed_laws(backbone(TIMELESS))) == ["uses the time"]


def test_outputs_that_vary_cannot_be_compared() -> None:
    with pytest.raises(Skipped, match="its outputs differ from one call to the next"):
        backbones.can_be_saved_and_loaded(backbone_case.Case(backbone(NOISY), (2,), ConditionSpec(classes=3)))


class NoLabels(Points, name="no-labels"):
    """Refuses labels and a learned variance."""

    def build(self, spec: BackboneSpec) -> nn.Module:
        if spec.classes is not None:
            raise ValueError("accepts no labels")
        if spec.out_channels != spec.shape[0]:
            raise ValueError("learns no variance")
        return super().build(spec)


class Convolution(Net):
    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        self.look = nn.Conv2d(spec.in_channels, 64, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        h = self.look(x).movedim(1, -1) + self.first(x.movedim(1, -1)) + self.embedding(t, cond)[:, None, None]
        return self.last(torch.relu(self.middle(torch.relu(h)))).movedim(-1, 1)


class Grey(Points, name="grey"):
    """Accepts images of one channel only."""

    def build(self, spec: BackboneSpec) -> nn.Module:
        if len(spec.shape) != 3 or spec.shape[0] != 1:
            raise ValueError("accepts grey images only")
        return Convolution(spec)


def build_points(spec: BackboneSpec) -> nn.Module:
    if len(spec.shape) != 1:
        raise RuntimeError("shapes!")
    return Net(spec)


def test_shapes_and_labels_that_a_backbone_refuses(short_training: None) -> None:
    findings = {f.law: f for f in examine(NoLabels())}
    assert (
        findings["returns the right shape"].measured == "2: plain; refuses label, learned variance (learns no variance)"
    )
    assert findings["uses the label"].verdict == "skipped"
    assert not failed_laws(NoLabels())
    assert not failed_laws(Grey())
    for build, words in (
        (lambda self, spec: build_points(spec), "raised RuntimeError: shapes! (test_testing.py, line"),
        (lambda self, spec: Net(spec), "build() accepted items of 3x7x5, but the network raised RuntimeError"),
    ):
        assert words in failure(backbone(Net, build=build), backbones.refuses_unsupported_shapes)


def test_a_backbone_that_builds_nothing() -> None:
    failed = failed_laws(backbone(lambda spec: "net"))
    assert list(failed) == ["can be checked"]
    words = "it accepts none of the shapes tried (2: build() returned a str, not a module; 3x8x8: accepts points only"
    assert failed["can be checked"].startswith(words)
    with pytest.raises(LawsFailed, match="3x5x5: accepts points only"):
        check_backbone(Points(), shape=(3, 5, 5))


# ── datasets ────────────────────────────────────────────────────────────────────────────────────


def cloud(context: DatasetContext, n: int = 100) -> Tensor:
    return torch.randn(n, 2, generator=context.generator("points"))


def dataset(load: Callable[[DatasetContext], Any], **space: Any) -> Dataset:
    space |= {"load": lambda self, context: load(context), "__module__": __name__}
    made: Any = type("Made", (Plain,), space, name="plain")
    return made()  # type: ignore[no-any-return]


def pixels(context: DatasetContext) -> Samples:
    items = torch.randint(0, 256, (100, 3, 8, 8), generator=context.generator("pixels"), dtype=torch.uint8)
    return Samples(items=items, shape=(3, 8, 8), **difftool.PIXELS)


class Source:
    """Items that are read one at a time, with or without chance."""

    def __init__(self, chance: float = 0.0, lock: Any = None) -> None:
        self.chance, self.lock = chance, lock

    def __len__(self) -> int:
        return 50

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor([float(i % 5) - 2, 1 - i % 3]) + self.chance * random.random()


def from_source(**arguments: Any) -> Samples:
    return Samples(items=Source(**arguments), shape=(2,))


SIZES = itertools.count(100)


def augmented(context: DatasetContext, augment: Callable[[Tensor, torch.Generator], Tensor]) -> Samples:
    return replace(points(cloud(context)), augment=augment)


def pairs(context: DatasetContext, augment: Callable[[Tensor, torch.Generator, Tensor], Any]) -> Samples:
    """Images whose condition is their first channel."""
    samples = pixels(context)
    return replace(samples, images=samples.take_items(range(100))[:, :1], augment=augment)


def coin() -> Tensor:
    """Draw from the global generator."""
    return torch.rand(1)


def both_brighter(x: Tensor, generator: torch.Generator, images: Tensor) -> tuple[Tensor, Tensor]:
    """Turn items and images alike, and change the brightness of the items alone."""
    heads = (torch.rand(len(x), generator=generator) < 0.5).view(-1, 1, 1, 1)
    return (torch.where(heads, x.flip(-1), x).float() * 0.8).byte(), torch.where(heads, images.flip(-1), images)


@pytest.mark.parametrize(
    "component",
    [
        dataset(lambda c: points(cloud(c))),
        dataset(lambda c: from_source()),
        dataset(pixels, default_backbone="unet"),
        dataset(lambda c: pairs(c, both_brighter), default_backbone="unet"),
    ],
    ids=["points", "source", "images", "pairs"],
)
def test_sound_datasets_pass(component: Dataset) -> None:
    assert failed_laws(component) == {}


FAILING_DATASETS = {
    datasets.loads_items_of_the_declared_shape: {
        "load() returned a NoneType, not Samples": lambda c: None,
        "int64, not float32": lambda c: points(cloud(c), labels=torch.zeros(100)),
        "item_shape() is (3,), but the samples declare (2,)": {"item_shape": lambda self: (3,)},
    },
    datasets.is_reproducible: {
        "draw from context.generator(...) alone": lambda c: points(torch.randn(100, 2)),
        "100 items, then 101": lambda c: points(cloud(c, next(SIZES))),
        "the second load has other labels": lambda c: points(cloud(c), labels=torch.randint(2, (100,))),
        "the second load has other vectors": lambda c: points(cloud(c), vectors=torch.randn(100, 2)),
        "the second load has another fingerprint": lambda c: replace(from_source(), fingerprint=str(random.random())),
    },
    datasets.leaves_global_generators_alone: {
        "load() drew from or seeded the global generator of torch": lambda c: points(torch.randn(100, 2)),
        "or seeded the global generator of torch": lambda c: (torch.manual_seed(0), points(cloud(c)))[1],
        "global generator of numpy": lambda c: (np.random.seed(c.seed), points(cloud(c)))[1],
        "global generator of Python": lambda c: (random.random(), points(cloud(c)))[1],
    },
    datasets.reads_the_same_item_every_time: {
        "__getitem__ must be pure": lambda c: from_source(chance=1.0),
        "the source of items cannot be sent to a worker process": lambda c: from_source(lock=lambda: None),
        "two readings of vectors[0] differ": lambda c: replace(from_source(), vectors=Source(chance=1.0)),
    },
    datasets.is_scaled_for_a_network: {
        "their standard deviation is 2": lambda c: Samples(items=cloud(c) * 300, shape=(2,)),
        "beyond the bounds (-1.0, 1.0)": lambda c: Samples(items=cloud(c), shape=(2,), bounds=(-1.0, 1.0)),
        "items contain NaN": lambda c: Samples(items=cloud(c).where(cloud(c) < 1, torch.nan), shape=(2,)),
    },
    datasets.stores_images_as_pixels: {
        "give pixels from 0 to 255": lambda c: Samples(items=pixels(c).items / 255, shape=(3, 8, 8), form="image"),
    },
    datasets.labels_items_by_class: {
        "no item is of class b": lambda c: points(cloud(c), labels=torch.zeros(100).long(), class_names=("a", "b")),
    },
    datasets.brings_its_conditions: {
        "all vectors are the same": lambda c: points(cloud(c), vectors=torch.ones(100, 2)),
        "tokens contain NaN": lambda c: replace(points(cloud(c)), tokens=torch.full((100, 2, 3), torch.nan)),
        "vectors differ in shape": lambda c: points(cloud(c), vectors=[torch.ones(2)] * 50 + [torch.ones(3)] * 50),
        "images must be as high and wide": lambda c: replace(pixels(c), images=lambda items, _: items[..., :4]),
        "images() changed the batch in place": lambda c: replace(pixels(c), images=lambda items, _: items.mul_(2)),
        "images() made two different batches": lambda c: replace(pixels(c), images=lambda x, _: x.float() * coin()),
    },
    datasets.augments_items_and_images_alike: {
        "augment() must return (items, images)": lambda c: pairs(c, lambda x, _, images: x),
        "moved an item, but not its condition image": lambda c: pairs(c, lambda x, _, images: (x.flip(-1), images)),
        "their correlation fell from 1 to": lambda c: pairs(c, lambda x, _, images: (x, images.roll(1, -1))),
    },
    datasets.augments_reproducibly: {
        "augment() made (64, 1, 8, 8) torch.float32 of": lambda c: pairs(c, lambda x, _, images: (x, images / 2)),
        "changed the batch in place": lambda c: augmented(c, lambda batch, generator: batch.mul_(-1)),
        "augment() made (1, 2) torch.float32 of (64, 2)": lambda c: augmented(c, lambda batch, generator: batch[:1]),
        "two different batches": lambda c: augmented(c, lambda batch, generator: batch + torch.rand(1)),
    },
    datasets.can_be_stored_in_a_model_file: {
        "two items have the same name": lambda c: replace(points(cloud(c)), item_ids=["a"] * 100),
    },
    datasets.fits_its_default_backbone: {
        "unet: unet needs series": {"default_backbone": "unet"},
        "unknown backbone 'x'": {"default_backbone": "x"},
    },
}


@pytest.mark.parametrize(("load", "law", "words"), rows(FAILING_DATASETS))
def test_datasets_that_fail_a_law(load: Any, law: Law, words: str) -> None:
    component = dataset(lambda c: points(cloud(c)), **load) if isinstance(load, dict) else dataset(load)
    assert words in failure(component, law)


# ── the other kinds ─────────────────────────────────────────────────────────────────────────────


class Rising(Spacing, name="rising"):
    """From clean to noisy."""

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        return [schedule[t] for t in range(steps)]


class Drifting(Spacing, name="drifting"):
    """Other levels at every call."""

    def levels(self, schedule: Schedule, steps: int) -> list[Level]:
        return [schedule[t + next(NUMBERS)] for t in range(steps)]


class Uninformative(Prediction, name="uninformative"):
    """x_t itself."""

    def coefficients(self, level: Level, spec: Any) -> tuple[float, float]:
        return level.alpha, level.sigma


class Upscaled(Prediction, name="upscaled"):
    """An input that is infinite at some level."""

    def coefficients(self, level: Level, spec: Any) -> tuple[float, float]:
        return 0.0, 1.0

    def input_scale(self, level: Level, spec: Any) -> float:
        return math.inf if level.t > 500 else 1.0


class Negative(Weighting, name="negative"):
    """Negative weights."""

    def weight(self, native: Tensor, spec: Any) -> Tensor:
        return -native


class Single(Weighting, name="single"):
    """Weights in single precision."""

    def weight(self, native: Tensor, spec: Any) -> Tensor:
        return native.float()


class Never(TimestepSampling, name="never"):
    """No level at all."""

    def density(self, spec: Any) -> Tensor:
        return torch.zeros(len(spec.schedule), dtype=torch.float64)


class Liar(Oracle, name="liar"):
    """x_0 and eps of something else."""

    def denoiser(self, samples: Samples, spec: difftool.OracleSpec) -> Any:
        return lambda x, level: difftool.Estimate(torch.zeros_like(x), torch.ones_like(x))


class Scatters(Logger, name="scatters"):
    """Writes beside the run's own files."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        yield lambda row: (run.folder / "mine.txt").write_text("x") and None


class Erases(Logger, name="erases"):
    """Starts a new file whenever it is opened."""

    mode: ClassVar[str] = "w"

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Row], None]]:
        run.logs.mkdir(exist_ok=True)
        with (run.logs / "x.txt").open(self.mode) as file:
            yield lambda row: file.write(f"{row.metrics}\n") and None


class Repeats(Erases, name="repeats"):
    """Appends every row."""

    mode = "a"


class Bare(Logger, name="bare"):
    """Lacks the decorator."""

    def open(self, run: RunContext) -> Any:
        yield lambda row: None


class Times(Callback, name="times"):
    """Numbers that follow from no row."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Progress], dict[str, float]]]:
        yield lambda progress: {"count": float(next(NUMBERS))}


class Shadows(Callback, name="shadows"):
    """A number of another name."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Progress], dict[str, float]]]:
        yield lambda progress: {"loss": 1.0}


class Silent(Callback, name="silent"):
    """Stops without a reason."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Progress], Stop]]:
        yield lambda progress: Stop("")


class Breaks(Callback, name="breaks"):
    """Changes the model."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Progress], None]]:
        def see(progress: Any) -> None:
            with torch.no_grad():
                next(progress.model.network.parameters()).zero_()

        yield see


class Litters(Callback, name="litters"):
    """Writes beside the run's own files."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Progress], None]]:
        yield lambda progress: (run.folder / "mine.txt").write_text("x") and None


class Upper(Writer, name="upper"):
    """A suffix in upper case."""

    suffixes = (".PNG",)

    def write(self, drawing: Any, path: Path) -> None:
        drawing.save_figure(path)


class Dated(Writer, name="dated"):
    """Other bytes each time."""

    suffixes = (".x",)

    def write(self, drawing: Any, path: Path) -> None:
        path.write_text(str(next(NUMBERS)))


class Picky(Writer, name="picky"):
    """Refuses everything."""

    suffixes = (".x",)

    def check(self, spec: Any) -> None:
        raise ValueError("no")

    def write(self, drawing: Any, path: Path) -> None:
        raise AssertionError("never called")


NUMBERS = itertools.count()


FAILING_OTHERS = {
    samplers.gives_the_requested_number_of_levels: {"did not give 2 strictly falling levels": Rising()},
    samplers.gives_the_same_levels_again: {"two calls for 61 levels differ": Drifting()},
    objectives.recovers_data_and_noise: {
        "leaves x_0 or eps unknown at some level of each of linear, flow, ve": Uninformative()
    },
    objectives.has_a_positive_input_scale: {"level 501 of linear: the scale is inf": Upscaled()},
    objectives.weights_every_level: {
        "linear, eps: weights reach from -": Negative(),
        "weights are (1000,) torch.float32, not (T,) float64": Single(),
    },
    objectives.is_a_distribution: {"gives no distribution": Never()},
    oracles.gives_consistent_estimates: {"from the noisy state": Liar()},
    oracles.recovers_an_item: {"from the item": Liar()},
    loggers.logs_and_resumes_a_run: {
        "it wrote mine.txt into the run folder; its own files belong in run.logs": Scatters(),
        "x.txt lost the row of step 1 when the run was resumed after it": Erases(),
        "x.txt has the row of step 2 twice": Repeats(),
        "open() returned a generator, not a context; put @contextlib.contextmanager above it": Bare(),
    },
    callbacks.watches_a_run: {
        "at step 50 it returned 'loss', which is the name of another number of the row": Shadows(),
        "it returned a Stop without a reason": Silent(),
        "it changed embedding.inner.weight of the model": Breaks(),
        "it wrote mine.txt into the run folder; its own files belong in run.logs": Litters(),
    },
    callbacks.goes_on_by_the_rows: {
        "after one at step 1000; what it remembers must follow from run.rows": Times(),
    },
    writers.declares_valid_suffixes: {"'.PNG' is not a valid suffix": Upper()},
    writers.writes_what_it_accepts: {
        ".x: writing the same points twice gave different bytes": Dated(),
        "it refuses samples of every form": Picky(),
    },
}


@pytest.mark.parametrize(("component", "law", "words"), rows(FAILING_OTHERS))
def test_other_kinds_that_fail_a_law(component: Component, law: Law, words: str) -> None:
    assert words in failure(component, law)


# ── plugins, and the register for tests ─────────────────────────────────────────────────────────


def test_a_plugin_as_a_whole() -> None:
    heavy = Plugin("heavy", "x", "1", components=[DDIM], seconds=1.5, imports_torch=True)
    whole, light = examine_plugin(heavy)
    assert (whole.verdict, light.verdict) == ("passed", "failed")
    assert "takes 1.50 s" in light.measured
    with PluginManager().active() as manager:
        bad = manager.register(SimpleNamespace(__name__="bad"))
    assert next(examine_plugin(bad)).measured.startswith("it provides no component; put @difftool.hookimpl")


def module(**hooks: Any) -> Any:
    return SimpleNamespace(__name__="mine", **{name: hookimpl(function) for name, function in hooks.items()})


def test_the_register_holds_the_built_ins_and_what_is_registered(plugin_manager: PluginManager) -> None:
    assert all(plugin.built_in and not plugin.problems for plugin in plugin_manager.registry.plugins)
    assert difftool.component("sampler", "ddim")
    with pytest.raises(difftool.UsageError, match="unknown sampler 'sound'"):
        difftool.component("sampler", "sound")
    plugin = plugin_manager.register(module(difftool_samplers=lambda: [DDIM]))
    assert (plugin.problems, plugin.components) == ([], [DDIM])
    assert difftool.component("sampler", "sound") == DDIM()
    assert "sound" in invoke("list", "samplers").out
    assert difftool.component("sampler", "tested:sound") == DDIM()


def test_what_was_registered_is_gone_after_the_test(plugin_manager: PluginManager) -> None:
    assert "sound" not in difftool.names("sampler")


def test_a_registered_plugin_that_is_wrong_says_so(plugin_manager: PluginManager) -> None:
    taken = type("Taken", (DDIM,), {"__doc__": "Taken."}, name="ddim")
    plugin = plugin_manager.register(module(difftool_samplers=lambda: [taken]), distribution="theirs")
    assert [str(p) for p in plugin.problems] == [
        "sampler 'ddim': the name is taken by difftool; reach it as theirs:ddim"
    ]
    misspelt = plugin_manager.register(module(difftool_sampler=lambda: [DDIM]), distribution="others")
    assert str(misspelt.problems[0]).startswith("there is no hook 'difftool_sampler'; did you mean difftool_samplers?")
    assert difftool.component("sampler", "ddim")


def test_checks_take_a_class_or_a_component() -> None:
    assert check_schedule(difftool.component("schedule", "cosine"))
    assert check_sampler(type(difftool.component("sampler", "euler")))
    with pytest.raises(difftool.UsageError, match="path: must be given"):
        check_dataset(registry().of_kind(Dataset, "image-folder"))


@pytest.mark.parametrize("component", [dataset(lambda c: points(cloud(c))), Points()], ids=["dataset", "backbone"])
def test_a_check_restores_threads_and_generators(component: Component) -> None:
    torch.set_num_threads(torch.get_num_threads())
    threads, states = torch.get_num_threads(), datasets.generator_states()
    failed_laws(component)
    assert torch.get_num_threads() == threads
    assert datasets.generator_states() == states


def test_every_law_says_how_it_is_checked() -> None:
    for kind in difftool.components.KINDS:
        for law in laws_of(kind):
            assert len(text_of(law)) > 30, law
            assert name_of(law) == name_of(law).lower()


def test_importing_the_kit_imports_nothing_heavy() -> None:
    code = "import sys, difftool.testing; print([m for m in ('torch', 'numpy', 'pytest') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
