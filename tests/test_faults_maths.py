"""Faults of the mathematics: samplers in few steps, and the formulas of the tutorials' sources."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from test_orders import ORDERS, error, table

import difftool
from difftool import CLEAN, Backbone, BackboneSpec, Level, ObjectiveSpec, Sampler, component
from difftool_plugins.backbones import MLP, UNet
from difftool_plugins.backbones.networks.attention import NormedLinearAttention
from difftool_plugins.backbones.networks.convolutions import StandardizedConv2d
from difftool_plugins.backbones.networks.embeddings import sinusoidal
from difftool_plugins.backbones.networks.unet import Block
from difftool_plugins.objectives.timestep_sampling import Uniform
from difftool_plugins.samplers import difftool_samplers, difftool_spacings
from difftool_plugins.samplers.ddim import DDIM
from difftool_plugins.samplers.ddpm import DDPM
from difftool_plugins.samplers.multistep import usable_nodes
from difftool_plugins.samplers.spacings import Karras, Leading, Linspace, Trailing
from difftool_plugins.schedules.variance_preserving import Cosine, Linear

NAMES = [cls.name for cls in difftool_samplers()]
SPACINGS = [cls.name for cls in difftool_spacings()]
IN_LAMBDA = ["dpmpp-2m", "dpmpp-2m-sde-0", "dpmpp-3m", "unipc-1", "unipc", "unipc-3"]


# --- few steps -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spiral() -> difftool.Model:
    """A network that has learned a swiss roll, whose points end at 1.4."""
    return difftool.train(dataset=component("dataset", "swiss-roll", n=20000), steps=1500, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", SPACINGS)
def test_few_steps_end_near_the_data(spiral: difftool.Model, spacing: str) -> None:
    """No sampler in 5 to 8 steps ends far from the data, with any spacing."""
    for sampler in NAMES:
        for steps in (5, 6, 8):
            x = spiral.sample(1000, sampler=sampler, spacing=spacing, steps=steps, seed=0)
            assert float(x.abs().max()) < 2.2, (sampler, steps)


@pytest.mark.parametrize("name", IN_LAMBDA)
def test_long_steps_are_of_first_order(name: str) -> None:
    """Multistep samplers in five steps of karras stay between two points of data, as ddim does."""
    levels = [*Karras().levels(table("linear"), 5), CLEAN]

    def two_points(x: torch.Tensor, level: Level) -> difftool.Estimate:
        """The exact denoiser of two points at -1 and 1."""
        x_0 = (level.alpha * x / level.sigma**2).tanh()
        return difftool.Estimate(x_0, (x - level.alpha * x_0) / level.sigma)

    start = torch.linspace(-3, 3, 101, dtype=torch.float64)
    sampler: Sampler = ORDERS[name][0]
    for step in sampler.sample(two_points, start, levels, lambda i: torch.zeros_like(start)):
        t = step.level
        assert float((step.x.abs() - t.sigma / t.norm * 3).max()) < 1.1
    assert float(step.x.abs().max()) < 1.01


@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow"])
def test_rounded_rows_keep_the_second_order(schedule: str) -> None:
    """`dpmpp-2m` on trailing keeps its order where steps in rows of the table are rounded: 286, 500, 600, 667 steps."""
    errors = {n: error(ORDERS["dpmpp-2m"][0], [*Trailing().levels(table(schedule), n), CLEAN]) for n in (250, 286, 667)}
    plain = error(DDIM(), [*Trailing().levels(table(schedule), 667), CLEAN])
    assert errors[286] < errors[250]
    assert errors[667] < errors[286]
    for n in (500, 600, 667):  # a step of first order alone made 1e-3 of it
        found = error(ORDERS["dpmpp-2m"][0], [*Trailing().levels(table(schedule), n), CLEAN])
        assert found < 0.1 * plain, n


def test_sudden_growth_still_lowers_the_order() -> None:
    """A long last step after short ones, as leading has, is not extrapolated over."""
    for n in (160, 200, 250):
        grid = [*Leading().levels(table("linear"), n), CLEAN]
        assert error(ORDERS["dpmpp-2m"][0], grid) < 6e-4, n


def test_the_order_follows_the_step() -> None:
    """Steps in lambda above 1 use no estimate of the past; a correction at the end of the step stays."""
    nodes = [0.0, 1.0, -1.0, -2.0]
    assert usable_nodes(nodes, 0.9) == [0, 1, 2, 3]
    assert usable_nodes(nodes, 1.1) == [0, 1]
    assert usable_nodes([0.0, -0.3, -0.6], 0.5) == [0, 1]  # a line through near nodes in a short step, no parabola
    assert usable_nodes([0.0, -0.3], 0.9) == [0]
    assert usable_nodes([0.0, float("nan"), -float("inf")], 0.9) == [0]


# --- the formulas of the tutorials' sources --------------------------------------------------------------------------


def build(backbone: Backbone, *shape: int) -> Any:
    torch.manual_seed(0)
    return backbone.build(BackboneSpec(shape=shape, out_channels=shape[0]))


def test_cosine_betas_have_a_lower_clip() -> None:
    """`--schedule.beta-floor` clips the cosine's betas from below, as tutorial 4's source does."""
    T, s = 1000, 0.008
    f = [math.cos((i / T + s) / (1 + s) * math.pi / 2) ** 2 for i in range(T + 1)]
    betas = [min(max(1 - after / before, 1e-4), 0.9999) for before, after in pairwise(f)]
    found = Cosine(beta_floor=1e-4, beta_max=0.9999).build(T)
    expected = torch.tensor(betas, dtype=torch.float64)
    assert torch.allclose(found.alpha_bars, (1 - expected).cumprod(0), rtol=1e-9, atol=1e-15)
    assert int((Cosine(beta_max=0.9999).build(T).betas < 1e-4 * (1 - 1e-9)).sum()) == 13  # unclipped
    with pytest.raises(ValueError, match="beta_floor: must be below beta_max"):
        Cosine(beta_floor=0.9, beta_max=0.5)


def test_timesteps_can_begin_at_1() -> None:
    """`--timestep-sampling.first 1` draws t from 1 to T - 1, each as often, as tutorial 2's source does."""
    spec = ObjectiveSpec(schedule=Linear(rescale=False).build(5))
    assert Uniform(first=1).density(spec).tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert Uniform().density(spec).tolist() == [1.0] * 5
    with pytest.raises(ValueError, match="first: must be below the number of levels, 5, not 5"):
        Uniform(first=5).density(spec)


def test_the_noise_term_of_tutorial_2() -> None:
    """`--sampler.variance beta-squared` adds beta z, as tutorial 2's source does; it is not the default."""
    schedule = Linear(rescale=False).build(100)
    betas = torch.linspace(1e-4, 0.02, 100, dtype=torch.float64)
    assert DDPM().variance == "fixed-small"
    for t in (1, 50, 99):
        std = DDPM(variance="beta-squared").std(schedule[t], schedule[t - 1])
        assert std == pytest.approx(float(betas[t]), rel=1e-9)


def test_the_truncated_grid() -> None:
    """`--spacing linspace --spacing.rounding down` gives 999, 899, ..., 499, 399, ..., 0 in eleven steps."""
    grid = Linspace(rounding="down").levels(Linear().build(1000), 11)
    assert [int(level.t) for level in grid] == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, 0]
    for T, n in product((1, 7, 50, 1000), (1, 2, 7, 31)):
        if n <= T:
            found = [int(level.t) for level in Linspace(rounding="down").levels(Linear(rescale=False).build(T), n)]
            assert found == [(T - 1) * (n - 1 - i) // max(n - 1, 1) if n > 1 else T - 1 for i in range(n)]


def test_fifty_one_betas() -> None:
    """The first tutorial's source has a beta at both ends of 50 equal parts, which are 51 timesteps here."""
    width = (0.02 - 1e-4) / 50
    betas = torch.tensor([1e-4 + width * i for i in range(51)], dtype=torch.float64)
    assert torch.allclose(Linear(rescale=False).build(51).betas, betas, rtol=1e-9)


@pytest.mark.parametrize("size", [2, 8, 64])
def test_frequencies_of_ddpm(size: int) -> None:
    """`--backbone.frequencies ddpm` divides by half - 1, so that the last frequency is 1e-4."""
    t, half = torch.tensor([3.0, 700.0], dtype=torch.float64), size // 2
    waves = [10000 ** -(i / max(half - 1, 1)) for i in range(half)]
    expected = [[f(time * wave) for f in (math.sin, math.cos) for wave in waves] for time in t.tolist()]
    assert torch.allclose(sinusoidal(t, size, "ddpm"), torch.tensor(expected, dtype=torch.float64), atol=1e-9)
    mlp = MLP(width=8, depth=1, frequencies="ddpm", time_dim=size)
    assert build(mlp, 2).embedding.frequencies == "ddpm"
    assert size == 2 or not torch.allclose(sinusoidal(t, size), sinusoidal(t, size, "ddpm"), atol=1e-3)


def test_blocks_of_pre_activation() -> None:
    """`--backbone.block pre` normalises before each convolution and adds time after both."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "embedding": 6,
        "groups": 2,
        "dropout": 0.0,
        "checkpointing": False,
        "standardize": False,
    }
    block = Block(4, 8, time="shift", pre=True, **options)
    x, embedding = torch.randn(3, 4, 5, 5), torch.randn(3, 6)
    h = x
    for norm, conv in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
        h = conv(torch.nn.functional.silu(norm(h)))
    expected = h + block.time(embedding)[:, :, None, None] + block.shortcut(x)
    assert torch.allclose(block(x, embedding), expected, atol=1e-5)
    network = build(UNet(dim=8, dim_mults=(1, 2), groups=4, block="pre"), 1, 8, 8)
    assert network(torch.randn(2, 1, 8, 8), torch.zeros(2)).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="groups: must divide"):
        UNet(dim=8, init_dim=6, dim_mults=(1, 2), groups=4, block="pre")


def test_linear_attention_of_tutorial_4() -> None:
    """`linear-norm` scales q by 1/sqrt(head-dim) and normalises its output."""
    torch.manual_seed(0)
    module = NormedLinearAttention(channels=12, heads=2, head_dim=4, groups=1, zero=False)
    x = torch.randn(2, 12, 3, 5)
    q, k, v = module.qkv(module.norm(x)).view(2, 3, 2, 4, 15).unbind(1)  # items, heads, features, pixels
    q, k = q.softmax(dim=2) / 2.0, k.softmax(dim=3)
    context = torch.einsum("bhdn,bhen->bhde", k, v)
    mixed = torch.einsum("bhde,bhdn->bhen", context, q).reshape(2, 8, 3, 5)
    out = module.out(mixed)
    out = (out - out.mean((1, 2, 3), keepdim=True)) / (out.var((1, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    assert torch.allclose(module(x), x + out, atol=1e-4)


TUTORIAL_4 = UNet(
    dim=28,
    dim_mults=(1, 2, 4),
    blocks=2,
    groups=4,
    attention=("linear-norm",),
    attention_groups=1,
    standardize=True,
    standardize_eps=1e-5,
    downsample="unshuffle",
    grow="after",
    first_kernel=1,
    zero_init=False,
    time_dim=28,
    frequencies="ddpm",
    time_activation="gelu",
)


def test_the_network_of_tutorial_4_has_its_parameters() -> None:
    """Tutorial 4's network can be built as its source has it, with 2,020,257 parameters."""
    network = build(TUTORIAL_4, 1, 28, 28)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_020_257
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([0.0, 500.0])
    assert network(x, t).shape == x.shape
    assert float(network(x, t).detach().abs().max()) > 0
    widths = [
        (down.blocks[0].conv1.in_channels, up.blocks[0].conv1.in_channels)
        for down, up in zip(network.downs, network.ups, strict=True)
    ]
    assert widths == [(28, 28 + 28), (28, 56 + 28), (56, 112 + 56)]


def test_standardised_weights_with_eps() -> None:
    """`--backbone.standardize-eps` is added to the variance of the weights."""
    torch.manual_seed(0)
    conv = StandardizedConv2d(3, 5, 3, padding=1)
    conv.eps = 1e-2
    x, weight = torch.randn(2, 3, 4, 4), conv.weight
    flat = weight.flatten(1)
    scaled = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True, correction=0) + 1e-2).sqrt()
    expected = torch.nn.functional.conv2d(x, scaled.view_as(weight), conv.bias, padding=1)
    assert torch.allclose(conv(x), expected, atol=1e-5)
    assert build(TUTORIAL_4, 1, 8, 8).middle1.conv2.eps == 1e-5


@pytest.mark.parametrize(
    ("backbone", "shape", "count", "size", "total"),
    [
        (UNet(), (3, 16, 16), 103, 52020.8546143929, 1840.9611089322002),
        (MLP(), (2,), 18, 3339.12558742797, 8.785596893011189),
    ],
    ids=["unet", "mlp"],
)
def test_the_default_networks_stay(
    backbone: Backbone, shape: tuple[int, ...], count: int, size: float, total: float
) -> None:
    """The default networks begin with the weights that they always had; figures depend on them."""
    state = build(backbone, *shape).state_dict()
    assert len(state) == count
    assert float(sum(value.double().abs().sum() for value in state.values())) == pytest.approx(size, rel=1e-9)
    assert float(sum(value.double().sum() for value in state.values())) == pytest.approx(total, rel=1e-6)
