"""What samples are steered by: bounds, a path between seeds, an image to start from or to complete."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMAGES, Run, tree
from PIL import Image
from torch import Tensor

import difftool
from difftool import CLEAN, Denoise, DifftoolError, Estimate, Level, Schedule, UsageError
from difftool.data.own_images import own_mask
from difftool.errors import InvalidOption
from difftool.sampling.denoiser import clipped, thresholded
from difftool.sampling.inpainting import Inpainting, inpainted
from difftool.sampling.loop import sample, slerp
from difftool.sampling.plan import Plan, last_levels
from difftool.settings import Sampling
from difftool_plugins.samplers.spacings import Trailing
from difftool_plugins.schedules.variance_preserving import Linear

AS_IT_IS: Any = SimpleNamespace(encode=lambda x: x, decode=lambda x: x)
"""A source without a codec."""
MEAN, STD = 0.7, 0.4
"""The data: one Gaussian."""


def ve(T: int) -> Schedule:
    sigma = torch.logspace(math.log10(0.002), math.log10(80), T, dtype=torch.float64)
    return Schedule(torch.ones_like(sigma), sigma)


def flow(T: int) -> Schedule:
    u = torch.arange(1, T + 1, dtype=torch.float64) / T
    return Schedule(1 - u, u)


LINEAR = Linear().build(1000)
TABLES = {"vp": LINEAR, "ve": ve(1000), "flow": flow(1000)}
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())


def of(x_0: Callable[[Tensor], Tensor]) -> Denoise:
    """The denoiser that finds this x_0."""

    def denoise(x: Tensor, level: Level) -> Estimate:
        found = x_0(x)
        return Estimate(found, (x - level.alpha * found) / level.sigma)

    return denoise


def gaussian(x: Tensor, level: Level) -> Estimate:
    """The optimal denoiser of N(m, s^2)."""
    gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
    return of(lambda x: MEAN + gain * (x - level.alpha * MEAN))(x, level)


def opposite(x: Tensor, level: Level) -> Estimate:
    return of(lambda x: -0.3 * x + 0.1)(x, level)


def normal(shape: Sequence[int], seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Bounds


@every_table
def test_clipping_derives_eps_again(table: Schedule) -> None:
    level = table[600]
    x = 5 * table.prior_std * normal([100, 1])
    raw, found = gaussian(x, level), clipped(gaussian, (0.5, 0.9))(x, level)
    assert torch.equal(found.x_0, raw.x_0.clamp(0.5, 0.9))
    assert not torch.equal(found.x_0, raw.x_0)
    torch.testing.assert_close(level.alpha * found.x_0 + level.sigma * found.eps, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0), (-2.0, 6.0)])
def test_dynamic_thresholding_is_the_published_rule(bounds: tuple[float, float]) -> None:
    """Saharia et al. (2022), figure A.10, measured from the middle of the bounds."""
    x_0 = torch.stack([0.2 * normal([3, 5, 5], 1), 9.0 * normal([3, 5, 5], 2)])
    found = thresholded(of(lambda x: x_0), bounds, 0.9)(normal([2, 3, 5, 5]), LINEAR[300]).x_0
    middle, half = sum(bounds) / 2, (bounds[1] - bounds[0]) / 2
    for before, after in zip(x_0.numpy() - middle, found.numpy() - middle, strict=True):
        s = max(half, np.quantile(np.abs(before), 0.9))
        np.testing.assert_allclose(after, np.clip(before, -s, s) / s * half, atol=1e-12)
    assert bounds[0] - 1e-12 <= float(found.min()) <= float(found.max()) <= bounds[1] + 1e-12


def test_thresholding_leaves_an_item_within_its_bounds_alone() -> None:
    x_0 = normal([3, 8]).clamp(-1, 1)
    found = thresholded(of(lambda x: x_0), (-1.0, 1.0), 0.5)(normal([3, 8]), LINEAR[300]).x_0
    torch.testing.assert_close(found, x_0, rtol=0, atol=1e-15)


@every_table
@pytest.mark.parametrize(
    "around",
    [
        lambda: clipped(gaussian, (0.5, 0.9)),
        lambda: thresholded(gaussian, (0.5, 0.9), 0.9),
        lambda: inpainted(gaussian, Inpainting(torch.zeros(30).double(), torch.arange(30) < 10), AS_IT_IS),
    ],
    ids=["clipped", "thresholded", "inpainted"],
)
def test_every_estimate_still_describes_x_t(table: Schedule, around: Callable[[], Denoise]) -> None:
    for t in (5, 500, 990):
        level, x = table[t], table[t].norm * normal([4, 30])
        found = around()(x, level)
        torch.testing.assert_close(level.alpha * found.x_0 + level.sigma * found.eps, x, rtol=1e-9, atol=1e-9)


def test_what_else_an_estimate_says_is_kept() -> None:
    part = normal([2, 3])

    def learned(x: Tensor, level: Level) -> Estimate:
        return Estimate(x, x, variance_fraction=part)

    x, level = normal([2, 3]), LINEAR[100]
    assert clipped(learned, (-1, 1))(x, level).variance_fraction is part


# The path between two seeds


def test_slerp_keeps_the_length_and_its_ends() -> None:
    a, b = normal([1, 3, 8, 8], 0), normal([1, 3, 8, 8], 1)
    b *= a.norm() / b.norm()
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    for part in (0.1, 0.5, 0.8):
        assert float(slerp(a, b, part).norm()) == pytest.approx(float(a.norm()), rel=1e-12)
    middle = slerp(a, b, 0.5)
    torch.testing.assert_close(middle, (a + b) * (a.norm() / (a + b).norm()), rtol=0, atol=1e-12)
    assert float((a * middle).sum()) == pytest.approx(float((b * middle).sum()), rel=1e-9)
    assert float(torch.lerp(a, b, 0.5).norm()) < 0.8 * float(a.norm())  # which is why the path is not a straight line


def test_slerp_of_single_numbers_is_a_line() -> None:
    for b in (2.0, -1.0):
        assert float(slerp(torch.tensor([[1.0]]), torch.tensor([[b]]), 0.25)) == pytest.approx(0.75 + 0.25 * b)


@pytest.mark.parametrize("kind", ["points_run", "images_run"])
def test_the_path_ends_in_the_samples_of_both_seeds(kind: str, request: pytest.FixtureRequest) -> None:
    model = difftool.load(request.getfixturevalue(kind), device="cpu")
    path = model.sample(5, interpolate=(3, 7), steps=6, batch_size=1)
    for end, seed in ((path[0], 3), (path[-1], 7)):
        assert torch.equal(end, model.sample(1, seed=seed, steps=6, batch_size=1)[0])
    assert float((path[2] - path[0]).abs().max()) > 1e-3
    whole = model.sample(5, interpolate=(3, 7), steps=6)
    torch.testing.assert_close(whole, path, rtol=1e-4, atol=0.1 if kind == "images_run" else 1e-5)


def test_a_path_on_the_command_line(run: Run, points_run: Path, images_run: Path, tmp_path: Path) -> None:
    outcome = run("sample", images_run, "--interpolate", "0,4", "--steps", 3, "--json", "--out", "x.png")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert (facts["num_samples"], facts["settings"]) == (9, {"steps": 3, "interpolate": [0, 4], "precision": "fp32"})
    assert "seeds 0 to 4" in outcome.err
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 6 * picture.height  # one row
    files = [part for name in ("p.png", "p.gif", "p.npy") for part in ("--out", name)]
    assert run("sample", points_run, "--interpolate", "0,1", "-n", 4, "--steps", 3, *files).code == 0
    assert np.load(tmp_path / "p.npy").shape == (4, 2)
    strip = run("sample", points_run, "--interpolate", "0,1", "--steps", 3, "--strip", 3, "--out", "s.png")
    assert strip.code == 0, strip.err


@pytest.mark.parametrize("options", [("--sampler", "ddpm"), ("--sampler", "ddim", "--sampler.eta", 0.5)])
def test_a_path_takes_a_sampler_without_noise(run: Run, points_run: Path, tmp_path: Path, options: Any) -> None:
    outcome = run("sample", points_run, "--interpolate", "0,1", *options, "--steps", 5, "--out", "x.png")
    assert outcome.code == 2
    assert f"--interpolate: the sampler {options[1]} draws noise" in outcome.error
    assert "sampling" not in outcome.err  # told before any work is announced
    assert "such as ddim" in outcome.error
    assert list(tmp_path.iterdir()) == []


# An image to start from


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture wider than high: two colours, whose border is the middle."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30], pixels[:, 30:] = (200, 40, 90), (10, 160, 250)
    Image.fromarray(pixels).save(tmp_path / "own picture.png")
    return tmp_path / "own picture.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """Of the same size: white in the upper half."""
    pixels = np.zeros((40, 60), dtype=np.uint8)
    pixels[:20] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def cropped() -> np.ndarray:
    """The picture as a model of 8x8 sees it."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, :4], pixels[:, 4:] = (200, 40, 90), (10, 160, 250)
    return pixels


def test_strength_takes_the_last_steps_of_the_grid(images_run: Path, picture: Path) -> None:
    model = difftool.load(images_run, device="cpu")
    for strength, steps in ((0.1, 1), (0.5, 5), (0.6, 6), (1.0, 10)):
        plan = Plan.of(model, Sampling(steps=10, init=picture, strength=strength))
        assert plan.levels == (*Trailing().levels(model.schedule, 10)[-steps:], CLEAN)
        assert plan.steps == steps
    assert Plan.of(model, Sampling(steps=10, init=picture)).steps == 6
    with pytest.raises(UsageError, match=r"--strength: 0.04 of 10 steps leaves none; choose at least 0.1"):
        last_levels(Trailing().levels(model.schedule, 10), 0.04)


def test_a_trajectory_starts_from_the_noised_image(images_run: Path, picture: Path) -> None:
    model = difftool.load(images_run, device="cpu")
    plan = Plan.of(model, Sampling(steps=10, init=picture, num_samples=3, seed=5))
    plain = Plan.of(model, Sampling(steps=10, num_samples=3, seed=5))
    first, noise = next(iter(sample(model, plan))), next(iter(sample(model, plain)))
    x_0 = torch.from_numpy(cropped().astype(np.float32) / 127.5 - 1).movedim(-1, 0)
    assert plan.init is not None
    assert float((plan.init - x_0).abs().mean()) < 0.1  # the border is blurred by the scaling
    level, eps = plan.levels[0], noise.x / noise.level.norm
    torch.testing.assert_close(first.x, level.alpha * plan.init + level.sigma * eps, rtol=1e-5, atol=1e-5)


def test_little_strength_stays_near_the_image_and_full_strength_does_not(images_run: Path, picture: Path) -> None:
    model = difftool.load(images_run, device="cpu")
    expected = torch.from_numpy(cropped()).movedim(-1, 0).float()

    def distance(strength: float) -> float:
        drawn = model.sample(8, init=picture, strength=strength, steps=100)
        assert drawn.shape == (8, 3, 8, 8)
        return float((drawn - expected).abs().mean())

    near, far = distance(0.01), distance(1.0)
    assert near < 12  # of 255: noise of level 9
    assert far > 4 * near


def test_gray_models_get_gray_images(run: Run, picture: Path, tmp_path: Path) -> None:
    assert run("train", *IMAGES, "--dataset.channels", 1, "--steps", 1, "--out", "gray").code == 0
    model = difftool.load(tmp_path / "gray", device="cpu")
    assert model.sample(2, init=picture, steps=10, strength=0.1).shape == (2, 1, 8, 8)
    files = [part for name in ("x.png", "x.gif", "x.npy") for part in ("--out", name)]
    outcome = run("sample", "gray", "--init", picture, "--steps", 5, "-n", 3, *files)
    assert outcome.code == 0, outcome.err
    assert np.load(tmp_path / "x.npy").shape == (3, 8, 8, 1)


def test_an_image_to_start_from_on_the_command_line(run: Run, images_run: Path, picture: Path, tmp_path: Path) -> None:
    files = [part for name in ("x.gif", "x.npz", "folder") for part in ("--out", name)]
    base = ("sample", images_run, "--init", picture, "--strength", 0.4, "--steps", 10, "-n", 3, "--trajectory")
    outcome = run(*base, "--strip", 3, "--json", *files, "--out", "x.png")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert (facts["steps"], facts["calls"], facts["settings"]["strength"]) == (4, 4, 0.4)
    assert np.load(tmp_path / "x.npz")["states"].shape == (5, 3, 8, 8, 3)
    assert len(list((tmp_path / "folder").glob("*.png"))) == 3  # the given image is no sample
    with Image.open(tmp_path / "x.gif") as film:
        assert film.n_frames == 5  # type: ignore[attr-defined]


# An image to complete

WALKS = [("ddim", 5), ("ddpm", 5), ("heun", 4), ("dpmpp-2m", 4), ("dpmpp-2m-sde", 4), ("euler-ancestral", 4)]


@pytest.mark.parametrize(("sampler", "steps"), WALKS)
def test_known_pixels_come_out_exactly(images_run: Path, picture: Path, mask: Path, sampler: str, steps: int) -> None:
    model = difftool.load(images_run, device="cpu")
    plan = Plan.of(model, Sampling(inpaint=picture, mask=mask))
    assert plan.inpainting is not None
    known = model.data.scaling.to_pixels(plan.inpainting.image[None])[0]
    drawn = model.sample(6, inpaint=picture, mask=mask, sampler=sampler, steps=steps).round().to(torch.uint8)
    assert torch.equal(drawn[..., 4:, :], known[:, 4:].expand(6, 3, 4, 8))
    painted = drawn[..., :4, :].float()
    assert float((painted - known[:, :4].float()).abs().mean()) > 5
    assert float((painted[0] - painted[1]).abs().mean()) > 5  # every sample paints its own


def test_inpainting_on_the_command_line(run: Run, images_run: Path, picture: Path, mask: Path, tmp_path: Path) -> None:
    base = ("sample", images_run, "--inpaint", picture, "--mask", mask, "--steps", 4, "-n", 3)
    outcome = run(*base, "--out", "x.png", "--out", "x.npy", "--out", "x.gif")
    assert outcome.code == 0, outcome.err
    assert "warning" not in outcome.err
    drawn = np.load(tmp_path / "x.npy")
    assert (drawn[:, 4:] == drawn[:1, 4:]).all()
    assert not (drawn[:, :4] == drawn[:1, :4]).all()
    started = run(*base, "--init", picture, "--strength", 0.5, "--out", "y.npy", "--out", "y.png")
    assert started.code == 0, started.err
    assert (np.load(tmp_path / "y.npy")[:, 4:] == drawn[:, 4:]).all()


def test_a_mask_is_cropped_as_its_image_and_never_blended(images_run: Path, tmp_path: Path) -> None:
    model = difftool.load(images_run, device="cpu")
    pixels = np.zeros((40, 60), dtype=np.uint8)
    pixels[:, 30:], pixels[0, 0] = 128, 255
    Image.fromarray(pixels).save(tmp_path / "m.png")
    found = own_mask(tmp_path / "m.png", model.data, "--mask")
    assert (found.dtype, found.shape) == (torch.bool, (1, 8, 8))
    assert torch.equal(found, (torch.arange(8) >= 4).expand(1, 8, 8))
    Image.fromarray(np.uint8([[127, 128], [0, 255]]).repeat(4, 0).repeat(4, 1)).save(tmp_path / "exact.png")
    expected = torch.tensor([[False, True], [False, True]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(own_mask(tmp_path / "exact.png", model.data, "--mask")[0], expected)


@pytest.mark.parametrize(("value", "piece"), [(255, "all white: all of the image is painted anew"), (0, "all black")])
def test_a_mask_of_one_colour_is_noted(
    run: Run, images_run: Path, picture: Path, tmp_path: Path, value: int, piece: str
) -> None:
    Image.new("L", (30, 20), value).save(tmp_path / "flat.png")
    base = ("sample", images_run, "--inpaint", picture, "--mask", "flat.png", "--steps", 2, "-n", 2)
    outcome = run(*base, "--out", "x.npy")
    assert outcome.code == 0
    assert f"--mask: flat.png is {piece}" in outcome.err
    drawn = np.load(tmp_path / "x.npy")
    assert bool((drawn[0] == drawn[1]).all()) == (value == 0)


# Bounds from the command line


def test_clipping_can_be_switched_off(images_run: Path) -> None:
    model = difftool.load(images_run, device="cpu")
    free = model.sample(4, steps=3, clip=False)
    clipped = model.sample(4, steps=3)
    shrunk = model.sample(4, steps=3, threshold=0.9)
    assert float(free.max()) > 256  # a network that knows little
    for drawn in (clipped, shrunk):
        assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 255.001
    assert not torch.allclose(clipped, shrunk, atol=1)


REFUSED: list[tuple[str, list[object], int, str]] = [
    ("POINTS", ["--threshold", 0.99], 2, "--threshold: the data of swiss-roll-mlp have no bounds"),
    ("IMAGES", ["--threshold", 0.99, "--no-clip"], 2, "--threshold: takes the place of clipping"),
    ("IMAGES", ["--threshold", 0], 2, "--threshold: must be greater than 0"),
    ("IMAGES", ["--threshold", 1.5], 2, "--threshold: must be less than or equal to 1"),
    ("POINTS", ["--interpolate", "1"], 2, "--interpolate: must be two different seeds, A,B, such as 0,1"),
    ("POINTS", ["--interpolate", "1,1"], 2, "--interpolate: must be two different seeds"),
    ("POINTS", ["--interpolate", "1,2,3"], 2, "--interpolate: must be two different seeds"),
    ("POINTS", ["--interpolate", "1,-2"], 2, "--interpolate: must be greater than or equal to 0"),
    ("POINTS", ["--interpolate", "1,2", "--seed", 3], 2, "--seed: --interpolate names its own two seeds"),
    ("POINTS", ["--interpolate", "1,2", "-n", 1], 2, "--num-samples: a path needs at least 2 samples"),
    ("POINTS", ["--init", "own picture.png"], 2, "--init: swiss-roll-mlp is not an image model"),
    ("POINTS", ["--inpaint", "own picture.png", "--mask", "mask.png"], 2, "--inpaint: swiss-roll-mlp is not an image"),
    ("IMAGES", ["--strength", 0.5], 2, "--strength: belongs to --init; add --init"),
    ("IMAGES", ["--init", "own picture.png", "--strength", 0], 2, "--strength: must be greater than 0"),
    ("IMAGES", ["--init", "own picture.png", "--strength", 1.1], 2, "--strength: must be less than or equal to 1"),
    ("IMAGES", ["--init", "own picture.png", "--strength", 0.001], 2, "--strength: 0.001 of 50 steps leaves none"),
    ("IMAGES", ["--init", "missing.png"], 1, "--init: missing.png: No such file"),
    ("IMAGES", ["--init", "text.png"], 1, "--init: text.png: is not an image"),
    ("IMAGES", ["--inpaint", "own picture.png"], 2, "--inpaint: needs a mask for the part to paint; add --mask"),
    ("IMAGES", ["--mask", "mask.png"], 2, "--mask: belongs to an image; add --inpaint"),
    ("IMAGES", ["--inpaint", "own picture.png", "--mask", "text.png"], 1, "--mask: text.png: is not an image"),
    ("IMAGES", ["--inpaint", "text.png", "--mask", "mask.png"], 1, "--inpaint: text.png: is not an image"),
]


@pytest.mark.parametrize(
    ("model", "options", "code", "piece"), REFUSED, ids=[f"{row[0]} {' '.join(map(str, row[1]))}" for row in REFUSED]
)
def test_what_does_not_go_together_is_one_line(
    run: Run,
    points_run: Path,
    images_run: Path,
    labels_run: Path,
    picture: Path,
    mask: Path,
    tmp_path: Path,
    model: str,
    options: list[object],
    code: int,
    piece: str,
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    before = tree(tmp_path)
    path = {"POINTS": points_run, "IMAGES": images_run, "LABELS": labels_run}[model]
    label = ("--label", 0) if model == "LABELS" else ()
    outcome = run("sample", path, *label, *options, "--out", "x.png")
    assert outcome.code == code, outcome.err
    assert piece in outcome.error
    assert (outcome.out, tree(tmp_path)) == ("", before)


def test_python_refuses_the_same(points_run: Path) -> None:
    model = difftool.load(points_run, device="cpu")
    with pytest.raises(InvalidOption, match="interpolate: must be two different seeds"):
        model.sample(4, interpolate=(1, 1))
    with pytest.raises(UsageError, match="--interpolate: the sampler ddpm draws noise"):
        model.sample(4, interpolate=(0, 1), sampler="ddpm", steps=3)
    with pytest.raises(InvalidOption, match="strength: belongs to --init"):
        model.sample(4, strength=0.5)
    with pytest.raises(DifftoolError, match="is not an image model"):
        model.sample(4, init="x.png")


# reconstruct


def test_reconstruction_of_a_run(run: Run, points_run: Path, images_run: Path, tmp_path: Path) -> None:
    outcome = run("reconstruct", points_run, "--at", "100,900", "-n", 300, "--json", "--out", "x.png")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["files"] == ["x.png"]
    assert [row["t"] for row in facts["levels"]] == [100, 900]
    for row in facts["levels"]:  # an error of eps is one of x_0, sigma/alpha as large
        assert row["mse"] == pytest.approx(row["noise_mse"] * (row["sigma"] / row["alpha"]) ** 2, rel=1e-3)
        assert f"t = {row['t']}: mean squared error {row['mse']:.4g} of x_0" in outcome.err
    assert run("reconstruct", images_run).out == "reconstruction-gradients-unet-001.png\n"


def test_reconstruction_of_own_images(run: Run, images_run: Path, picture: Path, mask: Path, tmp_path: Path) -> None:
    one = run("reconstruct", images_run, picture, "--at", 200, "--out", "one.png", "--out", "one.pdf")
    assert one.lines == ["one.png", "one.pdf"]
    both = run("reconstruct", images_run / "model.safetensors", picture, mask, "--at", 200, "--out", "b.png")
    assert both.code == 0, both.err
    heights = [Image.open(tmp_path / name).height for name in ("one.png", "b.png")]
    assert heights[1] > 1.5 * heights[0]


@pytest.mark.parametrize(
    ("options", "code", "piece"),
    [
        (["--schedule", "cosine"], 2, "there is no option --schedule"),  # a run brings these with it
        (["--schedule.beta-max", 0.03], 2, "--schedule.beta-max"),
        (["--dataset", "swiss-roll"], 2, "there is no option --dataset"),
        (["--timesteps", 10], 2, "there is no option --timesteps"),
        (["--iterative"], 2, "there is no option --iterative"),
        (["--at", ","], 2, "--at: must name at least one level"),
        (["--at", 1000], 2, "--at: 1000 is beyond the last level, 999"),
        (["--out", "x.gif"], 2, "--out: x.gif: cannot write .gif files"),
        (["mask.png"], 2, "IMAGE: swiss-roll-mlp is not an image model"),
        (["nowhere.png"], 1, "image nowhere.png does not exist"),
    ],
)
def test_refusals_of_reconstruction(
    run: Run, points_run: Path, mask: Path, tmp_path: Path, options: list[object], code: int, piece: str
) -> None:
    outcome = run("reconstruct", points_run, *options)
    assert outcome.code == code, outcome.err
    assert piece in outcome.error
    assert list(tree(tmp_path)) == ["mask.png"]
    assert run("reconstruct", "nowhere").code == 1
