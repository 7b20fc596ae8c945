"""Guidance: the built-in ones against formulas and closed forms, other runs, counted calls, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import Run
from torch import Tensor

import difftool
from difftool import Denoise, Estimate, Guidance, GuidanceSpec, Level, Predictions, component, option
from difftool.data.scaling import Scaling
from difftool.sampling.denoiser import Counted, clipped
from difftool.testing import examine
from difftool.testing import guidances as laws
from difftool.testing.examine import check_law
from difftool.testing.laws import Law, name_of
from difftool_plugins.samplers.spacings import Trailing
from difftool_plugins.schedules.variance_preserving import Linear

LINEAR = Linear().build(1000)


def of(x_0: Callable[[Tensor], Tensor]) -> Denoise:
    """The denoiser that finds this x_0."""

    def denoise(x: Tensor, level: Level) -> Estimate:
        found = x_0(x)
        return Estimate(found, (x - level.alpha * found) / level.sigma)

    return denoise


conditional, opposite = of(lambda x: 0.7 + 0.4 * x), of(lambda x: -0.3 * x + 0.1)
FLAT = of(lambda x: torch.full_like(x, 0.5))


def normal(shape: Sequence[int], seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def guided(name: str, c: Denoise, u: Denoise, *, is_image: bool = True, **options: Any) -> Denoise:
    """The denoiser that a built-in guidance makes of two: the model's, and the one without a condition, or worse."""
    guidance = component("guidance", name, **options)
    assert isinstance(guidance, Guidance)
    spec = GuidanceSpec(
        shape=(3, 4, 4),
        schedule=LINEAR,
        is_image=is_image,
        count=5,
        decode=lambda x: x,
        scaling=Scaling((0.0,), (1.0,)),
        device=torch.device("cpu"),
    )

    def predict(*, hidden: bool = False, run: Path | None = None, weights: str = "ema", **_: object) -> Denoise:
        return u if hidden or run is not None else c

    return guidance.denoiser(predict, spec)


# The formulas


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 7.5])
@pytest.mark.parametrize(("name", "options"), [("cfg", {}), ("autoguidance", {"run": Path("worse")})])
def test_guidance_extrapolates_from_the_weaker_estimate(name: str, options: dict[str, Any], scale: float) -> None:
    c_0, c_eps, u_0, u_eps = normal([4, 3, 30]).unbind()
    denoise = guided(
        name, lambda x, level: Estimate(c_0, c_eps), lambda x, level: Estimate(u_0, u_eps), scale=scale, **options
    )
    found = denoise(torch.zeros(3, 30, dtype=torch.float64), LINEAR[500])
    torch.testing.assert_close(found.x_0, u_0 + scale * (c_0 - u_0), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.eps, u_eps + scale * (c_eps - u_eps), rtol=0, atol=1e-13)
    if scale in (0.0, 1.0):
        assert torch.equal(found.x_0, (u_0, c_0)[int(scale)])


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaled_guidance_has_the_deviation_of_the_conditional(phi: float) -> None:
    """Lin et al. (2024), eq. 15-16, item by item."""
    x, level = normal([5, 3, 4, 4]), LINEAR[400]
    found = guided("cfg", conditional, opposite, scale=4.0, rescale=phi)(x, level).x_0
    c, u = conditional(x, level).x_0, opposite(x, level).x_0
    plain = u + 4 * (c - u)
    for i in range(5):
        rescaled = plain[i] * c[i].std(correction=0) / plain[i].std(correction=0)
        torch.testing.assert_close(found[i], phi * rescaled + (1 - phi) * plain[i], rtol=0, atol=1e-12)
        if phi == 1.0:
            assert float(found[i].std()) == pytest.approx(float(c[i].std()), rel=1e-12)


def test_a_flat_image_survives_rescaling() -> None:
    found = guided("cfg", FLAT, FLAT, scale=3.0, rescale=1.0)(normal([2, 3, 4, 4]), LINEAR[400])
    assert bool(torch.isfinite(found.x_0).all())


@pytest.mark.parametrize(("name", "options"), [("cfg", {}), ("autoguidance", {"run": Path("worse")})])
def test_guidance_within_an_interval_calls_the_other_model_only_there(name: str, options: dict[str, Any]) -> None:
    c, u = Counted(conditional), Counted(opposite)
    low, high = 0.5, 3.0
    denoise = guided(name, c, u, scale=3.0, interval=(low, high), **options)
    everywhere = guided(name, conditional, opposite, scale=3.0, **options)
    x, levels = normal([4, 2]), Trailing().levels(LINEAR, 20)
    inside = [low <= level.sigma / level.alpha <= high for level in levels]
    assert 3 < sum(inside) < 17
    for level, here in zip(levels, inside, strict=True):
        assert torch.equal(denoise(x, level).x_0, (everywhere if here else conditional)(x, level).x_0)
    assert (c.calls, u.calls) == (20, sum(inside))


def test_no_signal_lies_beyond_every_interval() -> None:
    u = Counted(opposite)
    guided("cfg", conditional, u, interval=(0.1, 1e6))(normal([2, 2]), Level(999.0, 0.0, 1.0))
    assert u.calls == 0


EVERY: dict[str, tuple[str, dict[str, Any]]] = {
    "cfg": ("cfg", {"scale": 3.0}),
    "rescaled": ("cfg", {"scale": 3.0, "rescale": 0.7}),
    "interval": ("cfg", {"scale": 3.0, "interval": (0.1, 2.0)}),
    "autoguidance": ("autoguidance", {"run": Path("worse"), "scale": 3.0}),
    "apg": ("apg", {"scale": 3.0, "norm": 0.5, "parallel": 0.3}),
}
every_guidance = pytest.mark.parametrize(("name", "options"), EVERY.values(), ids=EVERY.keys())


@every_guidance
@pytest.mark.parametrize("schedule", ["linear", "ve", "flow"])
def test_every_estimate_still_describes_x_t(name: str, options: dict[str, Any], schedule: str) -> None:
    table = component("schedule", schedule).build(1000)  # type: ignore[attr-defined]
    denoise = guided(name, conditional, opposite, **options)
    for t in (990, 500, 5):
        level, x = table[t], table[t].norm * normal([4, 30])
        found = denoise(x, level)
        torch.testing.assert_close(level.alpha * found.x_0 + level.sigma * found.eps, x, rtol=1e-9, atol=1e-9)


@every_guidance
def test_what_else_an_estimate_says_is_kept(name: str, options: dict[str, Any]) -> None:
    part, x, level = normal([2, 3]), normal([2, 3]), LINEAR[300]
    u = opposite(x, level)
    found = guided(name, lambda x, level: Estimate(x, x, variance_fraction=part), opposite, **options)(x, level)
    assert found.variance_fraction is part
    clip = clipped(guided(name, conditional, opposite, **options), (-0.1, 0.1))(x, level)
    if name == "autoguidance":  # its worse model is no unconditional one
        assert found.unconditional is clip.unconditional is None
    else:
        assert found.unconditional is not None
        assert clip.unconditional is not None
        assert torch.equal(found.unconditional.x_0, u.x_0)
        assert torch.equal(clip.unconditional.eps, u.eps)


# From the command line


def test_the_calls_of_a_guided_trajectory_are_counted(run: Run, labels_run: Path) -> None:
    base = ("sample", labels_run, "-n", 4, "--steps", 20, "--label", 0, "--out", "x.npy", "--json", "--overwrite")

    def calls(*options: object) -> int:
        outcome = run(*base, *options)
        assert outcome.code == 0, outcome.err
        found = json.loads(outcome.out)["calls"]
        assert f"{found} network calls each" in outcome.err
        return int(found)

    inside = sum(0.5 <= level.sigma / level.alpha <= 3 for level in Trailing().levels(LINEAR, 20))
    assert 0 < inside < 20
    assert calls() == calls("--guidance", 1) == 20
    assert calls("--guidance", 2) == 40
    assert calls("--guidance", 2, "--guidance.interval", "0.5,3") == 20 + inside
    assert calls("--guidance", "autoguidance", "--guidance.run", labels_run) == 40


def test_an_interval_is_between_no_guidance_and_all_of_it(labels_run: Path) -> None:
    model = difftool.load(labels_run, device="cpu")
    base: dict[str, Any] = {"label": 0, "steps": 10}

    def within(*interval: float) -> Tensor:
        return model.sample(50, guidance=component("guidance", "cfg", scale=3.0, interval=interval), **base)

    plain, full = model.sample(50, **base), model.sample(50, guidance=3.0, **base)
    part = within(0.3, 2.0)
    assert torch.equal(within(1e5, 1e6), plain)
    assert torch.equal(within(0, 1e6), full)
    assert min(float((part - other).abs().max()) for other in (plain, full)) > 1e-3


def test_guidance_needs_a_network_that_knows_no_class(run: Run, tmp_path: Path) -> None:
    base = ("--dataset", "gaussian-mixture", "--dataset.labels", "--dataset.n", 100, "--backbone.width", 8)
    assert run("train", *base, "--condition-dropout", 0, "--steps", 1, "--preview-every", 0, "--out", "x").code == 0
    outcome = run("sample", "x", "--label", 0, "--guidance", 2)
    assert outcome.code == 2
    assert "--guidance: the model was trained with --condition-dropout 0 and has nothing" in outcome.error
    assert run("reconstruct", "x", "--out", "r.png").code == 0  # with the items' own labels


REFUSED: dict[str, tuple[list[object], str]] = {
    "rescale of points": (["--guidance", 2, "--guidance.rescale", 0.7], "guidance cfg: rescale brings back the contra"),
    "rescale without guidance": (["--guidance.rescale", 0.7], "is an option of the guidance cfg; choose it with --gui"),
    "interval reversed": (["--guidance", 2, "--guidance.interval", "5,0.3"], "--guidance.interval: must be LOW,HIGH"),
    "interval of one": (["--guidance", 2, "--guidance.interval", "3"], "--guidance.interval: must be LOW,HIGH"),
    "interval below 0": (["--guidance", 2, "--guidance.interval", "-1,3"], "--guidance.interval: must be greater than"),
    "interval of words": (["--guidance", 2, "--guidance.interval", "a,b"], "--guidance.interval"),
    "two scales": (["--guidance", 2, "--guidance.scale", 3], "--guidance.scale: --guidance 2 is a scale already"),
    "no such guidance": (["--guidance", "cgf"], "unknown guidance 'cgf'; did you mean 'cfg'?"),
    "an empty word": (["--guidance", "1,,2"], "--guidance: must be scales or names joined by commas, such as 1,2,4"),
    "scale out of range": (["--guidance", "2000"], "--guidance: must be less than or equal to 1000"),
    "not finite": (["--guidance", "nan"], "--guidance: must be a finite number"),
    "no run": (["--guidance", "autoguidance"], "--guidance.run"),
    "run is nowhere": (["--guidance", "autoguidance", "--guidance.run", "nowhere"], "nowhere does not exist"),
}


@pytest.mark.parametrize(("arguments", "piece"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_guidance_is_refused(run: Run, labels_run: Path, arguments: list[object], piece: str) -> None:
    outcome = run("sample", labels_run, "--label", 0, *arguments)
    assert outcome.code in (1, 2)
    assert piece in outcome.error


# The laws


def shifted(estimate: Estimate, x: Tensor, level: Level, by: Tensor | float = 0.1) -> Estimate:
    return estimate.with_x_0(estimate.x_0 + by, x, level)


class Made(Guidance, name="made"):
    """A guidance made by a function."""

    scale: float = option(default=2.0, help="a scale")
    change: ClassVar[Callable[[Estimate, Tensor, Level], Estimate]] = shifted

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        model = predict()
        return lambda x, level: type(self).change(model(x, level), x, level)


def made(change: Callable[[Estimate, Tensor, Level], Estimate]) -> Guidance:
    return type("Changed", (Made,), {"change": staticmethod(change), "__doc__": "Changed."}, name="changed")()  # type: ignore


def in_place(estimate: Estimate, x: Tensor, level: Level) -> Estimate:
    x.add_(1.0)
    return estimate


class Remembers(Made, name="remembers"):
    """A guidance that returns the same tensor again and again."""

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        model, kept = predict(), torch.zeros(spec.count, *spec.shape)

        def denoise(x: Tensor, level: Level) -> Estimate:
            return model(x, level).with_x_0(kept.add_(0.1), x, level)

        return denoise


class Twice(Made, name="twice"):
    """A guidance that calls the model twice for nothing."""

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        model = predict()

        def denoise(x: Tensor, level: Level) -> Estimate:
            model(x, level)
            return model(x, level)

        return denoise


class Adaptive(Made, name="adaptive"):
    """A guidance whose calls depend on x."""

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        model, other = predict(), predict(run=Path("other"))

        def denoise(x: Tensor, level: Level) -> Estimate:
            found = model(x, level)
            return other(x, level) if float(found.x_0.abs().max()) > 0.0 else found

        return denoise


class Refuses(Made, name="refuses"):
    """A guidance that fits nothing."""

    def denoiser(self, predict: Predictions, spec: GuidanceSpec) -> Denoise:
        raise ValueError("no such data")


BROKEN: dict[Law, dict[str, Guidance]] = {
    laws.gives_consistent_estimates: {
        "points with classes on linear: alpha x_0 + sigma eps is 0.": made(
            lambda e, x, level: Estimate(e.x_0 + 0.1 / max(level.alpha, 0.01), e.eps)
        ),
        "alpha x_0 + sigma eps is inf from the noisy state": made(lambda e, x, level: Estimate(e.x_0 / 0.0, e.eps)),
        "guidance changed gave no estimate shaped (6, 2)": made(lambda e, x, level: Estimate(e.x_0[:1], e.eps)),
        "guidance changed failed: ZeroDivisionError": made(lambda e, x, level: Estimate(e.x_0, e.eps * (1 / 0))),
    },
    laws.is_off_at_scale_1: {
        "with scale 1 its x_0 is 0.1 from the model's": made(shifted),
        "with scale 1 it makes 14 calls for 7 estimates": Twice(),
    },
    laws.is_reproducible: {"two x_0 at log-SNR": made(lambda e, x, level: shifted(e, x, level, torch.rand(1)))},
    laws.is_independent_of_the_batch_size: {
        "between batches of 1 and 6": made(lambda e, x, level: shifted(e, x, level, x.mean())),
    },
    laws.modifies_no_tensor_in_place: {
        "a state that it was called with was changed in place": made(in_place),
        "a x_0 was changed in place later; make new tensors": Remembers(),
    },
    laws.makes_calls_that_depend_on_the_level_alone: {"2 calls at log-SNR -10.1, but 1 on zeros": Adaptive()},
}


@pytest.mark.parametrize(
    ("guidance", "law", "words"),
    [
        pytest.param(guidance, law, words, id=f"{name_of(law)}: {words[:30]}")
        for law, found in BROKEN.items()
        for words, guidance in found.items()
    ],
)
def test_guidances_that_fail_a_law(guidance: Guidance, law: Law, words: str) -> None:
    finding = check_law(law, laws.prepare(guidance))
    assert finding.failed, finding
    assert words in finding.measured


def test_every_law_of_guidances_can_fail() -> None:
    assert {*BROKEN} == {*laws.LAWS} - {laws.works_on_every_device}


def test_a_guidance_that_fits_nothing_cannot_be_checked() -> None:
    found = {finding.law: finding.measured for finding in examine(Refuses()) if finding.failed}
    words = "it refuses everything: points with classes: guidance refuses: no such data; images with classes: "
    assert found["can be checked"].startswith(words)
