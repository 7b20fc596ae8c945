"""The built-in backbones: shapes, what an output may and may not depend on, and the formulas of their docstrings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difftool import Backbone, BackboneSpec, Condition, ConditionSpec
from difftool.errors import InvalidOption
from difftool.options import make
from difftool.testing import backbones as laws
from difftool_plugins.backbones import MLP, UNet
from difftool_plugins.backbones.networks.attention import FullAttention, LinearAttention
from difftool_plugins.backbones.networks.convolutions import StandardizedConv2d
from difftool_plugins.backbones.networks.embeddings import sinusoidal
from difftool_plugins.backbones.networks.unet import UNetNetwork

SMALL: dict[str, Any] = {"dim": 8, "dim_mults": (1, 2), "attention": ("linear", "full"), "groups": 4, "head_dim": 8}
CLASSES = 5


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def spec(*shape: int, out: int | None = None, classes: int | None = None) -> BackboneSpec:
    return BackboneSpec(
        shape=shape, out_channels=shape[0] if out is None else out, condition=ConditionSpec(classes=classes)
    )


def randomized(network: nn.Module) -> nn.Module:
    """Give the network weights that keep the variance, and none that are zero, so every part has an effect."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.5 / math.sqrt(parameter[0].numel()))
        else:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
    return network.eval()


def inputs(item: BackboneSpec, count: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *item.shape), torch.linspace(0, 999, count)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Compare with a tolerance relative to the larger of 1 and the largest value of b."""
    return float((a - b).detach().abs().max()) <= tolerance * max(1.0, float(b.detach().abs().max()))


NETWORKS: list[Any] = [
    pytest.param(MLP(width=16), (2,), id="mlp"),
    pytest.param(MLP(width=16, time="plain", activation="tanh"), (2,), id="mlp-plain"),
    pytest.param(MLP(width=16, depth=2), (3, 4, 6), id="mlp-image"),
    pytest.param(UNet(**SMALL), (3, 8, 8), id="unet"),
    pytest.param(UNet(**SMALL, time="shift", downsample="unshuffle"), (1, 8, 12), id="unet-shift-unshuffle"),
    pytest.param(UNet(**SMALL | {"dim_mults": (0, 0, 1, 2)}), (3, 8, 16), id="unet-patches"),
    pytest.param(UNet(**SMALL | {"dim_mults": (0, 1, 2)}), (1, 3, 4, 8), id="unet-patches-film"),
    pytest.param(UNet(**SMALL, standardize=True, blocks=2), (4, 6, 4), id="unet-standardized"),
    pytest.param(UNet(**SMALL, standardize=True, downsample="unshuffle"), (2, 12), id="unet-series"),
    pytest.param(UNet(**SMALL, standardize=True, downsample="unshuffle"), (1, 3, 4, 4), id="unet-film"),
]
"""A network for each path that time, labels and pixels can take."""


@pytest.mark.parametrize(("backbone", "shape"), NETWORKS)
class TestEveryNetwork:
    def build(self, backbone: Backbone, shape: tuple[int, ...]) -> tuple[BackboneSpec, nn.Module]:
        item = spec(*shape, classes=CLASSES)
        return item, randomized(backbone.build(item))

    def test_returns_the_requested_channels(self, backbone: Backbone, shape: tuple[int, ...]) -> None:
        item = spec(*shape, out=2 * shape[0], classes=CLASSES)
        assert backbone.build(item)(*inputs(item)).shape == (3, 2 * shape[0], *shape[1:])

    def test_without_classes_it_refuses_labels(self, backbone: Backbone, shape: tuple[int, ...]) -> None:
        item = spec(*shape)
        network, (x, t) = backbone.build(item), inputs(item)
        assert network(x, t).shape == x.shape
        with pytest.raises(ValueError, match="without classes"):
            network(x, t, Condition.of_labels(torch.zeros(3, dtype=torch.int64), 1))

    def test_the_output_depends_on_time(self, backbone: Backbone, shape: tuple[int, ...]) -> None:
        item, network = self.build(backbone, shape)
        x, _ = inputs(item)
        early, late = network(x, torch.full((3,), 10.0)), network(x, torch.full((3,), 900.0))
        assert not close(early, late, 1e-3)

    def test_the_output_depends_on_the_label(self, backbone: Backbone, shape: tuple[int, ...]) -> None:
        item, network = self.build(backbone, shape)
        x, t = inputs(item)
        zeros = torch.zeros(3, dtype=torch.int64)
        outputs = [network(x, t, Condition.of_labels(zeros + label, CLASSES)) for label in range(CLASSES + 1)]
        assert all(not close(a, b, 1e-4) for i, a in enumerate(outputs) for b in outputs[:i])
        assert torch.equal(network(x, t), outputs[CLASSES]), "no labels at all must equal the label 'no class'"

    def test_items_are_independent(self, backbone: Backbone, shape: tuple[int, ...]) -> None:
        item, network = self.build(backbone, shape)
        x, t = inputs(item, 4)
        cond = Condition.of_labels(torch.tensor([0, 3, CLASSES, 1]), CLASSES)
        together = network(x, t, cond)
        for i in range(4):
            assert close(network(x[i : i + 1], t[i : i + 1], cond[i : i + 1]), together[i : i + 1])
        order = torch.tensor([2, 0, 3, 1])
        assert close(network(x[order], t[order], cond[order]), together[order])

    def test_every_parameter_receives_a_gradient(self, backbone: Backbone, shape: tuple[int, ...]) -> None:
        item, network = self.build(backbone, shape)
        cond = Condition.of_labels(torch.arange(8) % (CLASSES + 1), CLASSES)
        network(*inputs(item, 8), cond).square().mean().backward()
        assert [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())] == []

    def test_the_saved_weights_are_complete(self, backbone: Backbone, shape: tuple[int, ...]) -> None:
        """A copy on the meta device, as it is made when a model is read, needs nothing but the weights."""
        item, network = self.build(backbone, shape)
        with torch.device("meta"):
            copy = backbone.build(item)
        copy.load_state_dict(network.state_dict(), assign=True)
        assert torch.equal(copy.eval()(*(pair := inputs(item))), network(*pair))

    def test_double_precision(self, backbone: Backbone, shape: tuple[int, ...]) -> None:
        item, network = self.build(backbone, shape)
        x, t = inputs(item)
        single = network(x, t)
        assert close(network.double()(x.double(), t), single.double(), 1e-4)

    def test_autocast_to_bf16(self, backbone: Backbone, shape: tuple[int, ...]) -> None:
        item, network = self.build(backbone, shape)
        x, t = inputs(item)
        single = network(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x, t)
        assert close(half.float(), single, 0.1)


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 breaks graphs where it asks for autocast")
@pytest.mark.parametrize(("backbone", "shape"), NETWORKS)
def test_traces_as_one_graph(backbone: Backbone, shape: tuple[int, ...]) -> None:
    """Nothing makes a compiler break the graph, or waits for the device."""
    item = spec(*shape, classes=CLASSES)
    network = randomized(backbone.build(item))
    torch.compiler.reset()
    traced = torch.compile(network, backend="eager", fullgraph=True)
    x, t = inputs(item)
    cond = Condition.of_labels(torch.tensor([0, CLASSES, 2]), CLASSES)
    assert close(traced(x, t, cond), network(x, t, cond))


class TestOptions:
    @pytest.mark.parametrize(
        ("record", "values", "field", "reason"),
        [
            (UNet, {"attention": ["full", "none", "none"]}, "attention", "one for each of the 2 levels with channels"),
            (UNet, {"attention": []}, "attention", "one value"),
            (UNet, {"attention": ["quadratic"]}, "attention", "full"),
            (UNet, {"groups": 5}, "groups", "divide"),
            (UNet, {"dim": 10}, "groups", "divide"),
            (UNet, {"dim": 10**12}, "dim", "less than or equal"),
            (
                UNet,
                {"dim": 2048, "dim_mults": [1, 64], "attention": ["none"]},
                "dim_mults",
                "a level has 131072 channels",
            ),
            (UNet, {"dim_mults": []}, "dim_mults", "1 to 12 levels"),
            (UNet, {"dim_mults": [1] * 20, "attention": ["none"]}, "dim_mults", "levels"),
            (UNet, {"dim_mults": [-1]}, "dim_mults", "greater than or equal"),
            *(
                (UNet, {"dim_mults": mults}, "dim_mults", "only the first levels may be 0")
                for mults in ([0], [1, 0, 1])
            ),
            (UNet, {"init_dim": 10**9}, "init_dim", "less than or equal"),
            (UNet, {"heads": 0}, "heads", "greater than or equal"),
            (UNet, {"blocks": 10**6}, "blocks", "less than or equal"),
            (UNet, {"dropout": 1.0}, "dropout", "less than"),
            (UNet, {"weight_standardised": True}, "weight_standardised", "standardize"),
            (MLP, {"width": 10**12}, "width", "less than or equal"),
            (MLP, {"depth": 0}, "depth", "greater than or equal"),
            (MLP, {"depth": 10**6}, "depth", "less than or equal"),
            (MLP, {"time_dim": 7}, "time_dim", "even"),
            (MLP, {"activation": "sign"}, "activation", "silu"),
        ],
    )
    def test_refused(self, record: type[Backbone], values: dict[str, object], field: str, reason: str) -> None:
        with pytest.raises(InvalidOption, match=reason) as caught:
            make(record, values)
        assert caught.value.field == field

    def test_one_attention_stands_for_all_levels(self) -> None:
        assert UNet(dim_mults=(1, 2, 4, 8)).attention_by_level == ("none", "none", "none", "full")
        many = make(UNet, {"dim_mults": [1, 2, 2, 4], "attention": ["linear"]})
        assert many.attention_by_level == ("linear",) * 4
        network = UNet(**SMALL | {"attention": ("full",), "middle": "none"}).build(spec(1, 4, 4))
        assert sum(isinstance(m, FullAttention) for m in network.modules()) == 4  # two levels, both ways

    def test_attention_is_at_the_chosen_levels(self) -> None:
        sizes: dict[type[nn.Module], set[int]] = {FullAttention: set(), LinearAttention: set()}
        network = UNet(**SMALL, middle="none").build(spec(1, 16, 16))
        for module in network.modules():
            if type(module) in sizes:
                module.register_forward_hook(lambda m, i, o: sizes[type(m)].add(o.shape[-1]))
        network(torch.randn(1, 1, 16, 16), torch.zeros(1))
        assert sizes == {LinearAttention: {16}, FullAttention: {8}}

    @pytest.mark.parametrize(
        "options",
        [
            *({"middle": middle} for middle in ("none", "linear", "full")),
            *({"dim_mults": mults} for mults in ((1,), (2, 1), (1, 2, 2))),
            {"init_dim": 6},
        ],
    )
    def test_pyramids(self, options: dict[str, Any]) -> None:
        unet = UNet(**SMALL | {"attention": ("linear",)} | options)
        assert unet.build(spec(3, 4, 8))(torch.randn(2, 3, 4, 8), torch.zeros(2)).shape == (2, 3, 4, 8)


class TestSizes:
    @pytest.mark.parametrize(
        ("size", "message"),
        [
            ((30, 30), "halves the image 2 times, and 30x30 does not fit; the nearest size is 28x28 or 32x32"),
            ((32, 30), "halves the image 2 times, and 32x30 does not fit; the nearest size is 32x28 or 32x32"),
            ((3, 7), "halves the image 2 times, and 3x7 does not fit; the nearest size is 4x8"),
        ],
    )
    def test_the_nearest_sizes_are_named(self, size: tuple[int, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            UNet().build(spec(3, *size))

    def test_points_have_nothing_to_halve(self) -> None:
        with pytest.raises(ValueError, match=r"unet needs series \(channels, length\), images .* not .* shape \(2,\)"):
            UNet().build(spec(2))

    def test_the_frames_of_films_are_halved_when_asked(self) -> None:
        with pytest.raises(ValueError, match=r"halves the film 2 times, and 3x6x8 does not fit; .* 3x4x8 or 3x8x8"):
            UNet().build(spec(1, 3, 6, 8))
        with pytest.raises(ValueError, match=r"halves the film 2 times, and 3x8x8 does not fit; .* 4x8x8"):
            UNet(halve="all").build(spec(1, 3, 8, 8))
        with pytest.raises(ValueError, match=r"halves a series 2 times, and 30 does not fit; .* 28 or 32"):
            UNet().build(spec(1, 30))
        film = UNet(**SMALL, halve="all").build(spec(1, 4, 4, 8))
        assert film(torch.randn(2, 1, 4, 4, 8), torch.zeros(2)).shape == (2, 1, 4, 4, 8)

    def test_one_level_takes_any_size(self) -> None:
        unet = UNet(**SMALL | {"dim_mults": (1,), "attention": ("none",)})
        assert unet.build(spec(1, 5, 7))(torch.randn(1, 1, 5, 7), torch.zeros(1)).shape == (1, 1, 5, 7)


class TestMLP:
    @pytest.mark.parametrize("d", [2, 48])
    def test_is_the_tutorials_network(self, d: int) -> None:
        mlp = MLP(depth=1, width=128, time="plain", activation="relu").build(spec(d))
        tutorial = nn.Sequential(nn.Linear(1 + d, 128), nn.ReLU(), nn.Linear(128, d))
        assert sum(p.numel() for p in mlp.parameters()) == (1 + d) * 128 + 128 + 128 * d + d
        with torch.no_grad():
            for ours, theirs in zip(mlp.parameters(), tutorial.parameters(), strict=True):
                theirs.copy_(ours)
        x, t = torch.randn(5, d), torch.rand(5) * 1000
        assert close(mlp(x, t), tutorial(torch.cat([x, t[:, None] / 1000], dim=1)), 1e-6)

    @pytest.mark.parametrize("depth", [1, 3])
    def test_depth_counts_hidden_layers(self, depth: int) -> None:
        network = MLP(depth=depth, time="plain").build(spec(2))
        assert sum(isinstance(m, nn.Linear) for m in network.modules()) == depth + 1

    def test_a_residual_layer_adds_its_input(self) -> None:
        with_it, without = (MLP(width=8, depth=3, residual=residual).build(spec(2)) for residual in (True, False))
        with torch.no_grad():
            for parameter in with_it.hidden.parameters():
                parameter.zero_()
            without.load_state_dict(with_it.state_dict())
            x, t = torch.randn(5, 2), torch.rand(5) * 1000
            first = F.silu(with_it.first(x) + with_it.embedding(t, None))
            assert close(with_it(x, t), with_it.last(first), 1e-6)
            assert close(without(x, t), without.last.bias.expand(5, 2), 1e-6)

    def test_no_class_is_all_zeros(self) -> None:
        network = MLP(time="plain", depth=1, width=8).build(spec(2, classes=3))
        with torch.no_grad():
            network.first.weight[:, 3:] = 1e6  # the columns of the three labels
        x, t = torch.randn(1, 2), torch.zeros(1)
        without, labelled = (
            network(x, t).detach().abs().max(),
            network(x, t, Condition.of_labels(torch.tensor([2]), 3)).detach().abs().max(),
        )
        assert float(without) < 1e3 < float(labelled)


class TestEmbedding:
    def test_matches_its_definition(self) -> None:
        t, size = torch.tensor([0.0, 1.0, 500.5, 999.0], dtype=torch.float64), 8
        table = sinusoidal(t, size)
        for row, time in zip(table.tolist(), t.tolist(), strict=True):
            angles = [time * 10000 ** (-i / 4) for i in range(4)]
            assert row == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], abs=1e-12)

    def test_neighbouring_times_differ(self) -> None:
        table = sinusoidal(torch.arange(1000.0), 32)
        assert float((table[1:] - table[:-1]).norm(dim=1).min()) > 0.1


class TestAttention:
    def tokens(self, module: FullAttention | LinearAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, heads, pixels, head_dim), written out with einsum."""
        weight = module.qkv.weight[:, :, 0, 0].view(3, module.heads, module.head_dim, -1)
        q, k, v = torch.einsum("shdc,bcn->sbhnd", weight, module.norm(x).flatten(2))
        return q, k, v

    def output(self, module: FullAttention | LinearAttention, x: Tensor, mixed: Tensor) -> Tensor:
        weight = module.out.weight[:, :, 0, 0].view(-1, module.heads, module.head_dim)
        return x + (torch.einsum("chd,bhnd->bcn", weight, mixed) + module.out.bias[:, None]).view_as(x)

    @pytest.fixture(params=["contiguous", "channels_last"])
    def x(self, request: pytest.FixtureRequest) -> Tensor:
        x = torch.randn(2, 16, 3, 5)
        return x if request.param == "contiguous" else x.contiguous(memory_format=torch.channels_last)

    def test_full_is_softmax_of_scaled_products(self, x: Tensor) -> None:
        module = randomized(FullAttention(channels=16, heads=2, head_dim=4, groups=4))
        assert isinstance(module, FullAttention)
        q, k, v = self.tokens(module, x)
        scores = (torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(4)).exp()
        mixed = torch.einsum("bhnm,bhmd->bhnd", scores / scores.sum(-1, keepdim=True), v)
        assert close(module(x), self.output(module, x, mixed))

    def test_linear_is_its_formula(self, x: Tensor) -> None:
        module = randomized(LinearAttention(channels=16, heads=2, head_dim=4, groups=4))
        assert isinstance(module, LinearAttention)
        q, k, v = self.tokens(module, x)
        q, k = q.exp() / q.exp().sum(-1, keepdim=True), k.exp() / k.exp().sum(-2, keepdim=True)
        pairs = torch.einsum("bhnf,bhmf->bhnm", q, k)  # the quadratic way round
        assert close(pairs.sum(-1), torch.ones(2, 2, 15))
        assert close(module(x), self.output(module, x, torch.einsum("bhnm,bhmd->bhnd", pairs, v)))

    @pytest.mark.parametrize("kind", [FullAttention, LinearAttention])
    def test_permuted_pixels_give_permuted_outputs(self, kind: type[nn.Module], x: Tensor) -> None:
        module = randomized(kind(channels=16, heads=2, head_dim=4, groups=4))
        order = torch.randperm(15)
        permuted = x.flatten(2)[:, :, order].view_as(x)
        assert close(module(permuted), module(x).flatten(2)[:, :, order].view_as(x))

    @pytest.mark.parametrize("kind", [FullAttention, LinearAttention])
    def test_starts_as_the_identity(self, kind: type[nn.Module], x: Tensor) -> None:
        assert torch.equal(kind(channels=16, heads=2, head_dim=4, groups=4)(x), x)


class TestUNet:
    def test_starts_from_zero(self) -> None:
        network = UNet(**SMALL).build(spec(3, 8, 8))
        assert not bool(network(*inputs(spec(3, 8, 8))).any())

    def test_scale_and_shift_of_standardised_weights_have_no_effect(self) -> None:
        item = spec(3, 8, 8)
        network = randomized(UNet(**SMALL, standardize=True).build(item))
        x, t = inputs(item)
        before = network(x, t)
        changed = 0
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, StandardizedConv2d):
                    module.weight.mul_(3.0).add_(0.25)
                    changed += 1
        assert changed == 2 * sum(1 for name, _ in network.named_modules() if name.endswith("conv1"))
        assert close(network(x, t), before, 1e-4)

    def test_without_standardisation_scale_matters(self) -> None:
        conv, standard = nn.Conv2d(4, 4, 3), StandardizedConv2d(4, 4, 3)
        standard.load_state_dict(conv.state_dict())
        x = torch.randn(1, 4, 5, 5)
        weight = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True, correction=0)
        assert close(standard(x), nn.functional.conv2d(x, weight, conv.bias), 1e-4)
        assert not close(standard(x), conv(x), 0.1)

    @pytest.mark.parametrize("time", ["shift", "scale-shift"])
    def test_time_keeps_full_precision_under_autocast(self, time: str) -> None:
        item = spec(3, 8, 8)
        network = randomized(UNet(**SMALL, time=time).build(item))
        seen: list[Tensor] = []
        for name, layer in network.named_modules():
            if name.endswith(".time"):
                layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
        network(*inputs(item))
        plain, count = [*seen], len(seen)
        with torch.autocast("cpu", torch.bfloat16):
            assert network(*inputs(item)).dtype == torch.bfloat16
        assert count > 4
        for before, under in zip(plain, seen[count:], strict=True):
            assert under.dtype == torch.float32
            assert torch.equal(before, under)

    def test_dropout_only_while_training(self) -> None:
        item = spec(3, 8, 8)
        network = randomized(UNet(**SMALL, dropout=0.5).build(item))
        x, t = inputs(item)
        assert torch.equal(network(x, t), network(x, t))
        network.train()
        assert not close(network(x, t), network(x, t), 1e-3)

    @pytest.mark.parametrize("options", [{}, {"downsample": "unshuffle", "standardize": True, "time": "shift"}])
    def test_channels_last_changes_nothing(self, options: dict[str, Any]) -> None:
        item = spec(3, 8, 12)
        network = randomized(UNet(**SMALL, **options).build(item))
        x, t = inputs(item)
        contiguous = network(x, t)
        network.to(memory_format=torch.channels_last)
        moved = network(x.contiguous(memory_format=torch.channels_last), t)
        assert close(moved, contiguous)

    @pytest.mark.parametrize(
        "options", [{}, {"downsample": "unshuffle", "time": "shift", "blocks": 2, "dim_mults": (0, 1, 2)}]
    )
    def test_channels_last_is_kept_throughout(self, options: dict[str, Any]) -> None:
        """A module that falls back to the other layout would make every convolution after it copy."""
        network = UNet(**SMALL | options).build(spec(3, 8, 12)).to(memory_format=torch.channels_last)
        lost: list[str] = []
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda m, i, o, name=name: (
                        None if i[0].is_contiguous(memory_format=torch.channels_last) else lost.append(name)
                    )
                )
        network(torch.randn(2, 3, 8, 12).contiguous(memory_format=torch.channels_last), torch.zeros(2))
        assert lost == []

    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    def test_checkpointing_keeps_less_and_changes_nothing(self, dropout: float) -> None:
        kept: list[int] = []

        def gradients(checkpointing: bool) -> tuple[Tensor, ...]:
            torch.manual_seed(0)
            wanted = replace(item, checkpoint_activations=checkpointing)
            network = randomized(UNet(dim=32, dropout=dropout).build(wanted)).train()
            weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
            x, held = torch.randn(4, 3, 16, 16), {}

            def keep(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = network(x, torch.full((4,), 300.0)).square().mean()
            kept.append(sum(size for address, size in held.items() if address not in weights))
            return torch.autograd.grad(loss, [*network.parameters()])

        item = BackboneSpec(shape=(3, 16, 16), out_channels=3)
        for a, b in zip(gradients(False), gradients(True), strict=True):
            assert torch.equal(a, b)
        assert kept[1] < 0.5 * kept[0]

    def test_the_far_corner_is_seen(self) -> None:
        item = spec(1, 16, 16)
        network = randomized(UNet(**SMALL).build(item))
        x, t = torch.randn(1, 1, 16, 16), torch.zeros(1)
        moved = x.clone()
        moved[..., -1, -1] += 1.0
        assert not torch.equal(network(x, t)[..., 0, 0], network(moved, t)[..., 0, 0])


@pytest.mark.parametrize(("few", "many"), [((8,), (1, 8)), ((8, 4), (1, 8, 4))])
@pytest.mark.parametrize("downsample", ["stride", "unshuffle"])
def test_a_network_of_one_more_axis_has_the_other_as_its_slice(
    few: tuple[int, ...], many: tuple[int, ...], downsample: str
) -> None:
    """Where the further axis has length 1 and is not halved, only the middle of each kernel meets data."""
    options: dict[str, Any] = {
        "dim": 8,
        "time_dim": 8,
        "init_dim": 8,
        "widths": (8, 16),
        "attention": ("full", "linear"),
    }
    condition = ConditionSpec(tokens=(3, 2))

    def network(factors: tuple[int, ...]) -> nn.Module:
        return UNetNetwork(
            in_channels=2, out_channels=2, factors=factors, condition=condition, downsample=downsample, **options
        )

    small = randomized(network((2,) * len(few)))
    large = network((1,) + (2,) * len(few)).eval()
    weights = small.state_dict()
    for name, weight in large.state_dict().items():
        if weight.ndim > weights[name].ndim:
            weight.zero_().select(2, weight.shape[2] // 2).copy_(weights[name])
        else:
            weight.copy_(weights[name])
    x, t = torch.randn(2, 2, *few), torch.tensor([3.0, 800.0])
    cond = Condition(hidden=torch.tensor([False, True]), tokens=torch.randn(2, 3, 2))
    assert close(large(x.reshape(2, 2, *many), t, cond), small(x, t, cond).reshape(2, 2, *many))


def test_the_unet_learns_with_its_other_options() -> None:
    """The laws are checked with the default options in test_testing."""
    other = UNet(**SMALL, standardize=True, time="shift", downsample="unshuffle")
    assert laws.learns_to_denoise(laws.Case(other, (1, 4, 4), ConditionSpec()))


@pytest.mark.parametrize("shape", [(1, 16), (1, 3, 4, 4)], ids=["series", "film"])
def test_the_unet_learns_series_and_films(shape: tuple[int, ...]) -> None:
    assert laws.learns_to_denoise(laws.Case(UNet(**SMALL), shape, ConditionSpec()))
