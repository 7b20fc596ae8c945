"""uvit.py: skip connections mix as written, time and class are tokens, and the network keeps the laws of backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from difftool import BackboneSpec, Condition, ConditionSpec
from difftool.scripts import Script
from difftool.testing import check_backbone

uvit = Script.read(Path(__file__).resolve().parents[2] / "examples" / "papers" / "uvit.py").load()


def network(depth: int = 3, patch: int = 2, classes: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    spec = BackboneSpec(shape=(3, 8, 6), out_channels=3, condition=ConditionSpec(classes=classes))
    built: nn.Module = uvit.UViT(dim=32, depth=depth, heads=2, patch=patch).build(spec)
    return built.eval()


def x(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 6, generator=torch.Generator().manual_seed(1))


T = torch.tensor([100.0, 700.0])


@pytest.mark.slow
def test_laws() -> None:
    check_backbone(uvit.UViT(dim=32, depth=3), shape=(1, 4, 4))


def test_without_skips_it_is_a_plain_transformer() -> None:
    """With mixing layers [1, 0], blocks follow each other; with [0, 1], the middle block has no effect."""
    net, dim = network(), 32
    chain = [*net.first, net.middle, *net.last]
    tokens = torch.cat([uvit.waves(T, dim)[:, None], net.patches(x()).flatten(2).mT], dim=1) + net.positions

    def output(h: Tensor) -> Tensor:
        """Undo the patches by loops, and smooth the seams."""
        numbers = net.pixels(net.norm(h[:, 1:])).view(2, 4, 3, 3, 2, 2)  # rows, columns, channels, and in a patch
        image = torch.zeros(2, 3, 8, 6)
        for i in range(4):
            for j in range(3):
                image[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = numbers[:, i, j]
        smoothed: Tensor = net.smooth(image)
        return smoothed

    with torch.no_grad():
        net.mix[0].bias.zero_()
        net.mix[0].weight.copy_(torch.eye(dim, 2 * dim))
        torch.testing.assert_close(net(x(), T), output(chain[2](chain[1](chain[0](tokens)))), rtol=1e-4, atol=1e-5)
        net.mix[0].weight.copy_(torch.eye(dim, 2 * dim).roll(dim, 1))
        torch.testing.assert_close(net(x(), T), output(chain[2](chain[0](tokens))), rtol=1e-4, atol=1e-5)


def test_the_first_block_is_linked_with_the_last() -> None:
    """Tokens that the inner blocks lose reach the last block by the outer skip connection alone."""
    net = network(depth=5)
    with torch.no_grad():
        for mix in net.mix:
            mix.weight.copy_(torch.eye(32, 64).roll(32, 1))  # the skip alone
        before = net(x(), T)
        for inner in (net.first[1], net.middle, net.last[0]):
            for weight in inner.parameters():
                weight.add_(1.0)
        assert torch.equal(net(x(), T), before)
        net.first[0].linear1.weight.add_(0.1)
        assert not torch.allclose(net(x(), T), before)


def test_time_and_class_are_tokens() -> None:
    net, three = network(classes=3), Condition.of_labels(torch.tensor([0, 3]), 3)
    assert len(net.positions) == 2 + 4 * 3
    assert torch.equal(net(x(), T)[1], net(x(), T, three)[1])  # class 3 is hidden, as all are without conditions
    assert not torch.equal(net(x(), T)[0], net(x(), T, three)[0])
    assert not torch.allclose(net(x(), T), net(x(), T + 100))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"depth": 4}, "depth: must be odd"), ({"heads": 3}, "dim: must be even and a multiple of heads")],
)
def test_options_that_do_not_fit(options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        uvit.UViT(**options)
