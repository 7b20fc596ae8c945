"""DiT passes the laws of backbones, is registered with difftool, and is the network of the paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import difftool_dit
import pytest
import torch
from difftool_dit import DiT
from difftool_dit.network import DiTNetwork, grid_waves, patchify, unpatchify
from torch import Tensor

import difftool
from difftool import BackboneSpec, Condition, ConditionSpec
from difftool.testing import PluginManager, check_backbone

SMALL = DiT(dim=32, depth=2, heads=2)


def build(options: DiT = SMALL, shape: tuple[int, int, int] = (3, 8, 8), classes: int | None = None) -> DiTNetwork:
    """Build an untrained network, in evaluation mode."""
    network = options.build(BackboneSpec(shape=shape, out_channels=shape[0], condition=ConditionSpec(classes=classes)))
    assert isinstance(network, DiTNetwork)
    return network.eval()


@torch.no_grad()
def perturbed(network: DiTNetwork) -> DiTNetwork:
    """Change all weights, so that none of them is 0."""
    random = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return network


@torch.no_grad()
def labels(*numbers: int) -> Condition:
    """Return the condition of labels of three classes, where 3 is hidden."""
    return Condition.of_labels(torch.tensor(numbers), 3)


def predict(network: DiTNetwork, x: Tensor, t: float = 300.0, cond: Condition | None = None) -> Tensor:
    output: Tensor = network(x, torch.full((len(x),), t), cond)
    return output


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "shape"),
    [
        (SMALL, (3, 8, 8)),
        (replace(SMALL, patch=4, dropout=0.1), (1, 12, 8)),
        (DiT(dim=36, depth=1, heads=3, patch=1, mlp_ratio=2), (2, 3, 5)),
    ],
)
def test_laws(backbone: DiT, shape: tuple[int, ...]) -> None:
    check_backbone(backbone, shape=shape)


def test_registration(plugin_manager: PluginManager) -> None:
    plugin = plugin_manager.register(difftool_dit)
    assert not plugin.problems
    assert difftool.component("backbone", "dit", patch=4) == DiT(patch=4)


# -- patches and positions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "patch"), [((3, 8, 12), 4), ((1, 6, 4), 2), ((5, 3, 2), 1)])
def test_unpatchify_undoes_patchify(shape: tuple[int, int, int], patch: int) -> None:
    x, (channels, height, width) = noise(2, *shape), shape
    tokens = patchify(x, patch)
    assert tokens.shape == (2, height * width // patch**2, channels * patch**2)
    assert torch.equal(unpatchify(tokens, patch, (height // patch, width // patch)), x)


def test_a_token_is_a_patch() -> None:
    x = noise(1, 3, 4, 6)
    tokens = patchify(x, 2)
    for i in range(2):  # row by row
        for j in range(3):
            assert torch.equal(tokens[0, 3 * i + j], x[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten())


def test_each_place_has_its_own_embedding() -> None:
    table = grid_waves(5, 7, 32).view(5, 7, 32)
    assert torch.cdist(table.flatten(0, 1), table.flatten(0, 1)).fill_diagonal_(1).min() > 0.1
    assert torch.equal(table[2, :, :16], table[2, :1, :16].expand(7, -1))  # one half is for the row,
    assert torch.equal(table[:, 3, 16:], table[:1, 3, 16:].expand(5, -1))  # the other for the column
    angles = 3 * 1e4 ** (-torch.arange(8) / 8)
    torch.testing.assert_close(table[3, 0, :16], torch.cat([angles.sin(), angles.cos()]))


def test_only_the_positions_tell_a_transposed_image_apart() -> None:
    network, x = perturbed(build(replace(SMALL, patch=1))), noise(1, 3, 8, 8)

    def difference() -> float:
        output, of_transposed = predict(network, x), predict(network, x.mT)
        return float((output.mT - of_transposed).abs().max() / output.abs().max())

    assert difference() > 0.1
    network.positions.zero_()
    assert difference() < 1e-4


# -- the network -------------------------------------------------------------------------------------------------------


def test_before_training_the_output_is_0_and_blocks_are_identities() -> None:
    network = build(classes=3)
    assert not predict(network, noise(2, 3, 8, 8), cond=labels(0, 2)).any()
    tokens = noise(2, 16, 32)
    for block in network.blocks:
        assert torch.equal(block(tokens, noise(2, 32, seed=1)), tokens)


def test_every_patch_sees_the_whole_image() -> None:
    network, x = perturbed(build(replace(SMALL, depth=1), shape=(3, 8, 12))), noise(1, 3, 8, 12)
    changed = x.clone()
    changed[:, :, :2, :2] += 1.0  # the first patch only
    moved = patchify((predict(network, changed) - predict(network, x)).abs(), 2).amax(2)
    assert moved.min() > 1e-4


def test_time_and_label_change_the_output() -> None:
    network, x = perturbed(build(classes=3)), noise(1, 3, 8, 8)
    conditions = [(300.0, 0), (300.0, 1), (301.0, 0), (800.0, 0)]
    outputs = [predict(network, x, t, labels(label)) for t, label in conditions]
    for i, output in enumerate(outputs):
        assert all((output - other).abs().max() > 1e-4 for other in outputs[:i])


def test_without_labels_it_predicts_for_no_class() -> None:
    network, x = perturbed(build(classes=3)), noise(2, 3, 8, 8)
    assert torch.equal(predict(network, x), predict(network, x, cond=labels(3, 3)))
    with pytest.raises(ValueError, match="built with no conditions"):
        predict(build(), x, cond=labels(0, 0))


def test_dropout_acts_in_training_only() -> None:
    network, x = perturbed(build(replace(SMALL, dropout=0.5))), noise(1, 3, 8, 8)
    assert torch.equal(predict(network, x), predict(network, x))
    network.train()
    assert not torch.equal(predict(network, x), predict(network, x))


def test_options_set_its_size() -> None:
    def size(options: DiT) -> int:
        return sum(parameter.numel() for parameter in build(options).parameters())

    small, dim = size(SMALL), SMALL.dim
    attention, mlp, modulation = 4 * dim * (dim + 1), (2 * 4 * dim + 5) * dim, 6 * dim * (dim + 1)
    assert size(replace(SMALL, depth=3)) - small == attention + mlp + modulation
    assert small - size(replace(SMALL, mlp_ratio=3)) == 2 * (2 * dim + 1) * dim  # in each of two blocks
    more = 3 * (16 - 4)  # numbers of a patch
    assert size(replace(SMALL, patch=4)) - small == more * dim + more * (dim + 1)
    assert size(replace(SMALL, heads=4)) == small


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "patch", "nearest"),
    [
        ((3, 30, 33), 4, "the nearest size is 28x32 or 32x36"),
        ((1, 8, 9), 2, "the nearest size is 8x8 or 8x10"),
        ((3, 3, 40), 4, "the nearest size is 4x40"),
    ],
)
def test_sizes_without_whole_patches_are_refused(shape: tuple[int, ...], patch: int, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"{shape[1]}x{shape[2]} does not fit; {nearest}$"):
        DiT(patch=patch).build(BackboneSpec(shape=shape, out_channels=shape[0]))


@pytest.mark.parametrize("shape", [(2,), (3, 8), (3, 8, 8, 8)])
def test_items_that_are_not_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs images"):
        DiT().build(BackboneSpec(shape=shape, out_channels=shape[0]))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dim": 126}, r"dim: must be a multiple of 4 .*, not 126"),
        ({"heads": 3}, "heads: must divide dim, but 3 does not divide 128"),
    ],
)
def test_conflicting_options_are_refused(options: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        DiT(**options)


# -- in use ------------------------------------------------------------------------------------------------------------


def test_a_saved_model_gives_the_same_samples(plugin_manager: PluginManager, tmp_path: Path) -> None:
    plugin_manager.register(difftool_dit)
    trained = difftool.train(
        dataset=difftool.component("dataset", "gradients", n=64, size=(8, 12)),
        backbone=SMALL,
        steps=4,
        batch_size=8,
        self_condition=True,
        learn_variance=True,
        out=tmp_path / "run",
    )
    assert "positions" not in trained.network.state_dict()  # they follow from the options and the size
    samples = trained.sample(2, sampler="ddpm", steps=5)
    assert samples.shape == (2, 3, 8, 12)
    assert torch.equal(difftool.load(tmp_path / "run").sample(2, sampler="ddpm", steps=5), samples)
