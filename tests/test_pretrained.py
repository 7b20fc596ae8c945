"""Features of networks that others have trained, with random weights in the files that theirs come in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from difftool import PIXELS, DifftoolError, Features, FeaturesSpec, Samples, component, points
from difftool_plugins.features.networks import colours
from difftool_plugins.features.weights import tensors


def images(n: int, *shape: int) -> Samples:
    items = torch.randint(256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Samples(items=items, shape=shape, **PIXELS)


def built(name: str, data: Samples, **options: Any) -> Callable[[Tensor], Tensor]:
    features = component("features", name, **options)
    assert isinstance(features, Features)
    return features.build(FeaturesSpec(shape=data.shape, form=str(data.form), device=torch.device("cpu")), data)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Where weights come from


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and no way to download."""
    hub, constants = (pytest.importorskip(f"huggingface_hub{name}") for name in ("", ".constants"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("downloads without being asked")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_nothing_is_downloaded_without_being_asked(name: str) -> None:
    with pytest.raises(
        DifftoolError, match=r"not in your cache; put config\.json and model\.safetensors from https://hug"
    ):
        built(name, images(2, 3, 8, 8))


@pytest.mark.usefixtures("offline")
def test_what_cannot_be_downloaded_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object) -> None:
        raise OSError("no such host\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(DifftoolError, match=r"^facebook/dinov2-large cannot be downloaded: no such host$"):
        built("dinov2", images(2, 3, 8, 8), download=True)


def test_weights_that_are_named_are_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"leave it out, since --features\.weights names the weights"):
        component("features", "clip", weights=tmp_path, download=True)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"weights: .* is no folder with config\.json and model\.safetensors"):
        built("dinov2", images(2, 3, 8, 8), weights=tmp_path)
    with pytest.raises(ValueError, match=r"weights: .* is no file"):
        built("inception", images(2, 3, 8, 8), weights=tmp_path / "absent.safetensors")


@pytest.mark.parametrize("name", ["inception", "dinov2", "clip"])
@pytest.mark.parametrize("data", [points(torch.randn(5, 2)), images(2, 4, 8, 8)], ids=["points", "four channels"])
def test_other_data_than_pictures_are_refused(name: str, data: Samples) -> None:
    with pytest.raises(ValueError, match="takes grey or RGB images, not"):
        built(name, data)


# How they are read


def test_files_that_could_run_code_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"weights\.pth must be a \.safetensors file"):
        tensors(path)


def test_weights_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(3)}, path)
    assert torch.equal(tensors(path)["a"], torch.arange(3))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="cannot be read"):
        tensors(path)


def test_images_become_colours() -> None:
    grey = images(2, 1, 4, 4).items
    assert torch.equal(colours(grey)[:, 2], grey[:, 0])  # type: ignore[arg-type, index]
    assert colours(torch.tensor([[[[-3.0, 99.6, 300.0]]]])).flatten(1)[0, :3].tolist() == [0, 100, 255]


# Networks


@pytest.fixture(scope="module")
def inception(fidelity: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """torch-fidelity's network with random weights, and the file that they are in."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("inception", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return network, path


@pytest.mark.extras
def test_inception_is_that_of_torch_fidelity(inception: tuple[Any, Path]) -> None:
    network, path = inception
    data = images(3, 3, 20, 16)
    features = built("inception", data, weights=path)
    rows = features(data.items)  # type: ignore[arg-type]
    assert rows.shape == (3, 2048)
    assert torch.equal(rows, network(data.items)[0])
    assert features.facts == {"sha256": digest(path)}  # type: ignore[attr-defined]
    assert built("inception", images(1, 1, 8, 8), weights=path)(images(1, 1, 8, 8).items).shape == (1, 2048)  # type: ignore[arg-type]


@pytest.mark.extras
@pytest.mark.usefixtures("inception")
def test_other_weights_are_not_those_of_inception(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors are not those of Inception"):
        built("inception", images(1, 3, 8, 8), weights=tmp_path / "a.safetensors")


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Small networks of transformers with random weights, and the folders that they are in."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    configs = {
        "dinov2": transformers.Dinov2Config(**SMALL),
        "clip": transformers.CLIPVisionConfig(**SMALL, intermediate_size=64, projection_dim=24),
    }
    kinds = {"dinov2": transformers.Dinov2Model, "clip": transformers.CLIPVisionModelWithProjection}
    found = {}
    for name, config in configs.items():
        network = kinds[name](config).eval()
        folder = tmp_path_factory.mktemp(name)
        network.save_pretrained(folder)
        found[name] = network, folder
    return found


@pytest.mark.extras
@pytest.mark.parametrize(("name", "count"), [("dinov2", 32), ("clip", 24)])
def test_transformers_see_images_as_they_were_trained(
    name: str, count: int, folders: dict[str, tuple[Any, Path]]
) -> None:
    """Images of the side that a network takes are only shifted and scaled; others are resized before."""
    network, folder = folders[name]
    data = images(40, 3, 28, 28)
    features = built(name, data, weights=folder)
    mean, std = {
        "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    }[name]
    x = data.items.float() / 255  # type: ignore[union-attr]
    x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        found = network(pixel_values=x)
    rows = features(data.items)  # type: ignore[arg-type]
    expected = found.image_embeds if name == "clip" else found.pooler_output
    assert rows.shape == (40, count)
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)
    assert features.facts == {"sha256": digest(folder / "model.safetensors")}  # type: ignore[attr-defined]
    large = images(2, 1, 60, 50)
    assert built(name, large, weights=folder)(large.items).shape == (2, count)  # type: ignore[arg-type]


@pytest.mark.extras
def test_weights_in_the_cache_are_found(
    folders: dict[str, tuple[Any, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    _, folder = folders["dinov2"]
    repository = tmp_path / "hub" / "models--a--b"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(folder)
    data = images(2, 3, 28, 28)
    assert built("dinov2", data, model="a/b")(data.items).shape == (2, 32)  # type: ignore[arg-type]


@pytest.mark.extras
def test_weights_of_another_network_are_refused(folders: dict[str, tuple[Any, Path]]) -> None:
    with pytest.raises(ValueError, match=r"weights: .* (lacks|cannot be read)"):
        built("dinov2", images(1, 3, 28, 28), weights=folders["clip"][1])
