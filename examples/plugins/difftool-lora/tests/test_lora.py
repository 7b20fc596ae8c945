"""The adapters pass the laws of backbones, change nothing at first, leave frozen weights alone, and can be merged."""

from __future__ import annotations

from pathlib import Path

import difftool_lora
import pytest
import torch
from difftool_lora import LoRA, MergeLoRA
from difftool_lora.adapters import adapt, merge
from torch import Tensor, nn

import difftool
from difftool import Output
from difftool.testing import PluginManager, check_backbone, check_component, invoke

SMALL = ("--dataset.n", 200, "--batch-size", 32, "--preview-every", 0, "--ema", 0)
MLP = ("--backbone.width", 16, "--backbone.depth", 1)
OVER_MLP = ("--backbone", "lora", "--backbone.options", "width=16, depth=1", "--backbone.rank", 2)


def test_laws() -> None:
    check_backbone(LoRA(options="width=64, depth=2"), shape=(2,))
    check_component(MergeLoRA)


@pytest.fixture
def plugin(plugin_manager: PluginManager) -> None:
    assert not plugin_manager.register(difftool_lora).problems


def test_registration(plugin: None) -> None:
    assert difftool.component("backbone", "lora", rank=2) == LoRA(rank=2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 5))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def test_the_adapted_network_starts_as_the_network(x: Tensor) -> None:
    assert torch.equal(adapt(network(), ".*", 2, 1.0)(x), network()(x))


def test_an_adapter_adds_a_product_of_its_rank(x: Tensor) -> None:
    plain, low = network(), adapt(network(), "2", 2, 0.5)
    nn.init.normal_(low[2].lora.up)
    product = low[2].lora.up @ low[2].lora.down
    assert torch.linalg.matrix_rank(product) == 2
    before = plain[1](plain[0](x))
    torch.testing.assert_close(low(x), plain(x) + before @ (0.5 * product).T)


def test_merging_changes_names_back_and_no_output(x: Tensor) -> None:
    low = adapt(network(), ".*", 2, 1.0)
    for layer in (low[0], low[2]):
        nn.init.normal_(layer.lora.up)
    merged = merge(low)
    torch.testing.assert_close(merged(x), low(x))
    assert list(merged.state_dict()) == list(network().state_dict())
    assert [type(layer) for layer in merged] == [nn.Conv2d, nn.Flatten, nn.Linear]
    assert not torch.equal(merged[2].weight, network()[2].weight)


def test_tuning_a_run(plugin: None, tmp_path: Path) -> None:
    """Adapters alone train, the merged file is one of the base, and it draws the same samples."""
    run, tuned, file = tmp_path / "run", tmp_path / "tuned", tmp_path / "merged.safetensors"
    for words in (
        ("train", *SMALL, *MLP, "--steps", 20, "--out", run),
        ("train", *SMALL, *OVER_MLP, "--init-from", run, "--train-only", "lora", "--steps", 20, "--out", tuned),
    ):
        done = invoke(*words)
        assert done.code == 0, done.err
    done = invoke("merge-lora", tuned, "--out", file)
    assert (done.code, done.out) == (0, f"{file}\n"), done.err
    before, after, merged = (difftool.load(path) for path in (run, tuned, file))
    old, new = before.network.state_dict(), after.network.state_dict()
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    assert {name for name in new if name not in old} == {name for name in new if ".lora." in name}
    assert any(new[name].abs().max() > 0 for name in new if name.endswith("lora.up"))
    assert merged.recipe.parts["backbone"] == before.recipe.parts["backbone"]
    torch.testing.assert_close(merged.sample(4, steps=3), after.sample(4, steps=3), rtol=1e-3, atol=1e-3)
    with pytest.raises(difftool.UsageError, match="its backbone is mlp, which has no adapters to merge"):
        MergeLoRA(model=merged, out=Output(tmp_path / "again.safetensors")).run()
    with pytest.raises(difftool.DifftoolError, match="exists already"):
        MergeLoRA(model=after, out=Output(file)).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "lora"}, "base must be another backbone"),
        ({"base": "nope"}, "unknown backbone 'nope'"),
        ({"options": "breadth=3"}, "breadth: there is no such option"),
        ({"layers": "nowhere"}, "'nowhere' matches none of"),
    ],
)
def test_what_cannot_be_adapted(plugin: None, options: dict[str, str], message: str) -> None:
    done = invoke("train", "--backbone", "lora", *(w for k, v in options.items() for w in (f"--backbone.{k}", v)))
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize(("name", "value"), [("options", "width"), ("options", "a=1}\nb={"), ("layers", "(")])
def test_options_that_are_not_understood(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        LoRA(**{name: value})  # type: ignore[arg-type]
