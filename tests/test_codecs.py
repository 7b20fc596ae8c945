"""Codecs: the built-in ones against other people's code, those that break a law, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMAGES, Outcome, Run
from safetensors.torch import load_file
from test_testing import failed_laws, failure, rows
from torch import Tensor, nn

import difftool
from difftool import Codec, CodecSpec, UsageError, option
from difftool.data.facts import LARGEST_ITEM
from difftool.plugins.build import build_codec
from difftool.testing import check_component, examine
from difftool.testing import codecs as laws
from difftool.testing.laws import Law

Batches = Callable[[], Iterator[Tensor]]


def module_of(name: str, shape: tuple[int, ...], **options: Any) -> Any:
    module = build_codec(codec(name, **options), shape)
    assert module is not None
    return module


def codec(name: str, **options: Any) -> Codec:
    made = difftool.component("codec", name, **options)
    assert isinstance(made, Codec)
    return made


def fitted(items: Tensor, *, batch: int = 50, **options: Any) -> Any:
    """A PCA of items in model units."""
    module = module_of("pca", tuple(items.shape[1:]), **options)
    codec("pca", **options).fit(module, lambda: iter(torch.split(items, batch)))
    return module


def photographs(count: int = 60, size: int = 16) -> Tensor:
    """Pieces of two photographs, in model units: (count, 3, size, size)."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    pieces = []
    for i in range(count):
        image = load_sample_images().images[i % 2]
        top, left = random.integers(0, 400 - size), random.integers(0, 600 - size)
        pieces.append(torch.from_numpy(image[top : top + size, left : left + size].copy()).permute(2, 0, 1))
    return torch.stack(pieces).float() / 127.5 - 1


# --- patch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4, 12])
def test_patches_are_those_of_torch(size: int) -> None:
    x = torch.randn(2, 3, 12, 24)
    module = module_of("patch", (3, 12, 24), size=size)
    z = module.encode(x)
    assert torch.equal(z, torch.pixel_unshuffle(x, size))
    assert torch.equal(module.decode(z), x)


@pytest.mark.parametrize("shape", [(2, 12), (1, 6, 4), (2, 4, 6, 8), (1, 2, 4, 2, 4)])
def test_patches_of_any_number_of_axes(shape: tuple[int, ...]) -> None:
    """Channel c and place i within a patch become channel c f^k + i, with the last axis fastest."""
    x = torch.randn(3, *shape)
    module = module_of("patch", shape, size=2)
    z = module.encode(x)
    axes = len(shape) - 1
    assert z.shape == (3, shape[0] * 2**axes, *(side // 2 for side in shape[1:]))
    for number, place in enumerate(np.ndindex(*(2,) * axes)):
        for c in range(shape[0]):
            part = x[(slice(None), c, *(slice(int(start), None, 2) for start in place))]
            assert torch.equal(z[:, c * 2**axes + number], part)
    assert torch.equal(module.decode(z), x)


# --- pca -------------------------------------------------------------------------------------------------------------


def test_components_are_those_of_sklearn() -> None:
    """Up to their signs: the largest entry of each is positive here."""
    from sklearn.decomposition import PCA

    x = photographs()
    module = fitted(x, size=4, components=10)
    flat = torch.pixel_unshuffle(x, 4).movedim(1, -1).reshape(-1, 48).double().numpy()
    theirs = PCA(10, svd_solver="full").fit(flat)
    signs = np.sign(np.take_along_axis(theirs.components_, np.abs(theirs.components_).argmax(1)[:, None], 1))
    np.testing.assert_allclose(module.components, theirs.components_ * signs, atol=2e-5)
    np.testing.assert_allclose(module.mean, theirs.mean_, atol=1e-6)
    z = module.encode(x).movedim(1, -1).reshape(-1, 10)
    np.testing.assert_allclose(z, theirs.transform(flat) * signs.T, atol=5e-5)
    # sklearn's noise variance is the mean of the discarded variances, with n - 1 in place of n
    discarded = theirs.noise_variance_ * (48 - 10) / 48 * (len(flat) - 1) / len(flat)
    assert module.error == pytest.approx(math.sqrt(discarded), rel=1e-5)


def test_components_of_points_are_singular_vectors() -> None:
    x = torch.randn(500, 5) @ torch.randn(5, 5) + torch.tensor([3.0, 0.0, -2.0, 1.0, 0.5])
    module = fitted(x, components=3)
    _, values, vectors = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)
    overlap = (module.components.double() * vectors[:3]).sum(1).abs()
    torch.testing.assert_close(overlap, torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)
    measured = (module.decode(module.encode(x)) - x).square().mean().sqrt()
    assert module.error == pytest.approx(float(measured), rel=1e-4)
    assert module.error == pytest.approx(float(values[3:].square().sum().div(500 * 5).sqrt()), rel=1e-4)
    torch.testing.assert_close(module.encode(x).mean(0), torch.zeros(3), atol=1e-4, rtol=0)


def test_all_components_lose_nothing() -> None:
    for x in (photographs(20), torch.randn(40, 3, 8), torch.randn(30, 4)):
        module = fitted(x, components=math.prod((x.shape[1], *(4,) * (x.ndim - 2))))
        assert module.error == pytest.approx(0.0, abs=1e-7)
        torch.testing.assert_close(module.decode(module.encode(x)), x, atol=2e-6, rtol=0)


def test_batches_change_nothing_but_the_last_digits() -> None:
    x = photographs()
    a, b = fitted(x, batch=60), fitted(x, batch=7)
    torch.testing.assert_close(a.components, b.components, atol=1e-6, rtol=0)
    assert a.error == pytest.approx(b.error, rel=1e-6)
    again = fitted(x, batch=7)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in b.state_dict().items())


def test_moments_of_items_far_from_0_keep_their_digits() -> None:
    """Sums of squares alone would lose the variance of items around 1000 in a long run."""
    x = torch.randn(200_000, 2) * torch.tensor([0.02, 0.01]) + 1000
    module = fitted(x, batch=20_000, components=1)
    exact = x.double() - x.double().mean(0)
    variances = torch.linalg.eigvalsh(exact.T @ exact / len(x))
    assert module.error == pytest.approx(float((variances[0] / 2).sqrt()), rel=1e-4)


def test_the_module_says_nothing_of_its_error_before_it_is_fitted() -> None:
    assert module_of("pca", (3, 8, 8)).error is None


@pytest.mark.parametrize(
    ("shape", "kept"), [((3, 32, 32), 16), ((1, 28, 28), 6), ((2,), 2), ((7,), 7), ((1, 8), 2), ((2, 4, 4, 4), 43)]
)
def test_components_by_default(shape: tuple[int, ...], kept: int) -> None:
    assert len(module_of("pca", shape).components) == kept


# --- autoencoder-kl --------------------------------------------------------------------------------------------------


def autoencoder(**changes: Any) -> Any:
    """A small autoencoder of diffusers with random weights, which halves the sides of colour images."""
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    options = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    return AutoencoderKL(**{**options, **changes}).eval()


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small autoencoder, as diffusers writes it."""
    folder = tmp_path_factory.mktemp("vae")
    autoencoder().save_pretrained(folder)
    return folder


def test_latents_are_the_mode_of_diffusers(vae: Path) -> None:
    from diffusers import AutoencoderKL

    theirs = AutoencoderKL.from_pretrained(vae, low_cpu_mem_usage=False).eval()
    module = module_of("autoencoder-kl", (3, 16, 16), path=vae)
    x = photographs(4)
    with torch.no_grad():
        mode = theirs.encode(x).latent_dist.mode()
        assert torch.equal(module.encode(x), mode)
        assert torch.equal(module.decode(mode), theirs.decode(mode).sample)
    assert mode.shape == (4, 4, 8, 8)
    assert not any(p.requires_grad for p in module.parameters())


def test_it_passes_the_laws(vae: Path) -> None:
    check_component(codec("autoencoder-kl", path=vae))


def test_weights_in_half_precision_are_read_as_floats(tmp_path: Path, vae: Path) -> None:
    autoencoder().half().save_pretrained(tmp_path, variant="fp16")
    module = module_of("autoencoder-kl", (3, 16, 16), path=tmp_path)
    whole = module_of("autoencoder-kl", (3, 16, 16), path=vae)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    x = photographs(2)
    torch.testing.assert_close(module.encode(x), whole.encode(x), atol=1e-2, rtol=0)


def test_building_it_draws_no_random_numbers(vae: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    module = module_of("autoencoder-kl", (3, 16, 16), path=vae)
    assert module.facts == json.loads(json.dumps(module.facts))
    assert build_codec(codec("autoencoder-kl"), (3, 16, 16), module.facts) is not None
    assert torch.equal(torch.get_rng_state(), state)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def rename(name: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / new)


def configured(**changes: Any) -> Callable[[Path], object]:
    """Change entries of the configuration; None takes one away."""

    def change(folder: Path) -> None:
        config = {**json.loads((folder / "config.json").read_text()), **changes}
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return change


def cut(folder: Path) -> None:
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def forget(folder: Path) -> None:
    """Write the weights without one of them."""
    from safetensors.torch import save_file

    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


def vae_inside(folder: Path) -> None:
    (folder / "vae").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / name).rename(folder / "vae" / name)


BAD_FOLDERS: dict[str, Callable[[Path], object]] = {
    "has no config.json": without("config.json"),
    "has no config.json; name ": vae_inside,
    "has no diffusion_pytorch_model.safetensors": without("diffusion_pytorch_model.safetensors"),
    "its .bin may run code, so it is never opened": rename(
        "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
    ),
    "config.json cannot be read (the text is not JSON)": lambda f: (f / "config.json").write_text("{"),
    "holds 'UNet2DModel', not an AutoencoderKL": configured(_class_name="UNet2DModel"),
    "holds None, not an AutoencoderKL": configured(_class_name=None),
    "lacks one of in_channels, out_channels, latent_channels, block_out_channels": configured(latent_channels=None),
    "no usable block_out_channels": configured(block_out_channels=[10**12]),
    "no usable layers_per_block": configured(layers_per_block=[[1]]),
    "no usable block_out_channels ": configured(block_out_channels=16),
    "it takes 3 channels and gives 1": configured(out_channels=1),
    "it takes images of 1 channels, and the items are 3x16x16": configured(in_channels=1, out_channels=1),
    "diffusers cannot build it by its configuration": configured(down_block_types=["Nope", "Nope"]),
    "its weights cannot be loaded": cut,
    "its weights cannot be loaded ": configured(latent_channels=5),
    "its weights lack decoder.conv_in.bias": forget,
}


@pytest.mark.parametrize("words", BAD_FOLDERS)
def test_folders_that_do_not_fit_are_refused(vae: Path, tmp_path: Path, words: str) -> None:
    folder = shutil.copytree(vae, tmp_path / "vae")
    BAD_FOLDERS[words](folder)
    with pytest.raises(UsageError) as caught:
        build_codec(codec("autoencoder-kl", path=folder), (3, 16, 16))
    assert words.strip() in str(caught.value)
    assert str(caught.value).startswith("codec autoencoder-kl: ")
    assert "\n" not in str(caught.value)


def test_other_refusals_of_autoencoders(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(shape: tuple[int, ...] = (3, 16, 16), facts: Any = None, **options: Any) -> str:
        with pytest.raises(UsageError) as caught:
            build_codec(codec("autoencoder-kl", **options), shape, facts)
        return str(caught.value)

    assert "path: name the folder of an autoencoder (--codec.path FOLDER)" in refusal()
    assert "nowhere is not a folder" in refusal(path=tmp_path / "nowhere")
    assert "sides must be multiples of 2, and the items are 3x15x9; 16x8 fits" in refusal((3, 15, 9), path=vae)
    assert "the items are 2" in refusal((2,), path=vae)
    assert "lacks one of" in refusal(facts={"config": "x"})
    assert "no usable act_fn" in refusal(facts={"config": {**architecture(), "act_fn": "x" * 200}})
    monkeypatch.setattr("difftool_plugins.codecs.autoencoder_kl.find_spec", lambda name: None)
    assert "needs diffusers, which is not installed; pip install 'difftool[diffusers]'" in refusal(path=vae)


def architecture() -> dict[str, Any]:
    return {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [8, 16]}


def test_check_skips_it_where_no_folder_is_named() -> None:
    last = [*examine(codec("autoencoder-kl"))][-1]
    assert (last.law, last.verdict) == ("can be checked", "skipped")
    assert "--codec.path FOLDER" in last.measured


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "patches of 2 do not divide items of 3x9x15; patches of 3 do": ("patch", (3, 9, 15), {}),
    "patches of 4 do not divide items of 1x6x12; patches of 2, 3, 6 do": ("pca", (1, 6, 12), {}),
    "patches of 2 do not divide items of 1x7x8; no patches do": ("patch", (1, 7, 8), {}),
    "points of 2 have no sides that patches could divide": ("patch", (2,), {}),
    "a patch of 3x4x4 has only 48 components, not 49": ("pca", (3, 8, 8), {"components": 49}),
    "a point of 2 has only 2 components, not 3": ("pca", (2,), {"components": 3}),
    "a patch of 3x64x64 has 12,288 numbers, and at most 4,096 are possible": ("pca", (3, 64, 64), {"size": 64}),
    "a point of 5000 has 5,000 numbers": ("pca", (5000,), {}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_shapes_that_do_not_fit_are_refused(words: str) -> None:
    name, shape, options = REFUSED[words]
    with pytest.raises(UsageError) as caught:
        build_codec(codec(name, **options), shape)
    assert words in str(caught.value)


def test_the_largest_item_is_refused_without_any_allocation() -> None:
    with pytest.raises(UsageError, match="at most 4,096"):
        build_codec(codec("pca"), (LARGEST_ITEM,))


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("patch", {"size": 4}, (1, 8, 12)),
        ("patch", {"size": 3}, (2, 9)),
        ("pca", {"size": 2, "components": 5}, (3, 8, 8)),
        ("pca", {"size": 1}, (3, 8, 8)),
        ("pca", {"components": 3}, (6,)),
        ("pca", {"size": 2}, (2, 4, 4, 4)),
        ("pca", {"size": 4, "components": 48}, (3, 8, 8)),
    ],
)
def test_other_options_pass(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert failed_laws(codec(name, **options), shape=shape) == {}


def test_no_codec_has_nothing_to_check() -> None:
    findings = [*examine(codec("none"))][-len(laws.LAWS) :]
    assert {finding.verdict for finding in findings} == {"skipped"}


def test_check_takes_the_shape_of_codecs(run: Run) -> None:
    outcome = run("check", "pca", "--shape", "3,12,8", "--codec.size", 2)
    assert outcome.code == 0, outcome.err
    assert "3x12x8 to 4x6x4" in outcome.out
    refused = run("check", "patch", "--shape", "3,9,9")
    assert refused.code == 1
    assert "patches of 3, 9 do" in refused.out


class Twice(nn.Module):
    """Latents are twice the items."""

    error = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(2.0))

    def encode(self, x: Tensor) -> Tensor:
        return self.factor * x

    def decode(self, z: Tensor) -> Tensor:
        return z / self.factor


class Doubling(Codec, name="doubling"):
    """Twice the items."""

    path: Path | None = option(default=None, help="some file")

    def build(self, spec: CodecSpec) -> nn.Module | None:
        return Twice()


def of(*, keeps: bool = False, path: str | None = None, fit: Any = None, build: Any = None, **members: Any) -> Codec:
    """A codec that doubles, with other members of its module, or another `fit` or `build`."""
    kind = type("Other", (Twice,), members)
    parts: dict[str, Any] = {
        "__doc__": "Doubles in another way.",
        "keeps_range": keeps,
        "build": build or (lambda self, spec: kind()),
    }
    strange: Any = type("Strange", (Doubling,), {**parts, **({"fit": fit} if fit else {})}, name="strange")
    made: Codec = strange(path=None if path is None else Path(path))
    return made


CALLS = itertools.count(1)


def counting(self: Any, x: Tensor) -> Tensor:
    self.factor.add_(1.0)
    return 2.0 * x


def by_path(self: Doubling, spec: CodecSpec) -> nn.Module:
    if self.path is None:
        raise ValueError("path: must be given")
    return Twice()


def of_images(self: Any, spec: CodecSpec) -> nn.Module:
    if len(spec.shape) != 3:
        raise TypeError("an image, please")
    return Twice()


def by_chance(self: Any, module: Any, batches: Batches) -> None:
    module.factor.fill_(1.0 + float(torch.rand(1)))


def greedy(self: Any, module: Any, batches: Batches) -> None:
    next(batches()).zero_()


def unsaved(self: Any, module: Any, batches: Batches) -> None:
    module.gain = 3.0


FAILING: dict[Law, dict[str, Any]] = {
    laws.gives_latents_of_one_shape: {
        "encode() returned (1, 3, 16, 16) torch.float64": of(encode=lambda self, x: x.double()),
        "encode() changes its items in place": of(encode=lambda self, x: x.mul_(2.0)),
        "decode() changes its latents in place": of(decode=lambda self, z: z.div_(2.0)),
        "latents hold NaN or infinite numbers": of(encode=lambda self, x: x / 0),
        "decode() returned (1, 3, 16)": of(decode=lambda self, z: z.sum(3)),
        "decoded items hold NaN": of(decode=lambda self, z: z * torch.nan),
    },
    laws.decodes_what_it_encoded: {
        ", and the module claims 0": of(decode=lambda self, z: 0.4 * z),
        ", and the module claims 0.5": of(error=0.5),
        ", and the module claims nan": of(error=math.nan),
    },
    laws.latents_differ: {"the latents of all items are the same": of(encode=lambda self, x: torch.zeros_like(x))},
    laws.keeps_the_range_it_claims: {
        "items reach from -1 to 1, latents -2 to 2": of(keeps=True),
        "root mean square": of(keeps=True, encode=lambda self, x: x.abs().sqrt() * x.sign()),
    },
    laws.is_deterministic: {
        "it draws from torch's global random generator": of(encode=lambda self, x: 2 * x + 0 * torch.rand(1)),
        "two calls of encode() differ by": of(encode=lambda self, x: x * next(CALLS)),
        "two calls of decode() differ by": of(decode=lambda self, z: z * next(CALLS)),
    },
    laws.treats_items_independently: {
        "latents change by": of(encode=lambda self, x: x - x.mean(0)),
        "decoded items change by": of(decode=lambda self, z: z - z.mean(0)),
    },
    laws.fits_the_same_again: {
        "factor differs in a second module": of(fit=by_chance),
        "fit() changes the items in place": of(fit=greedy),
    },
    laws.is_not_trained: {"factor changed while it encoded and decoded": of(encode=counting)},
    laws.passes_gradients: {
        "what it decodes has no gradient": of(decode=torch.no_grad()(lambda self, z: z / 2)),
        "has the norm 0.0": of(decode=lambda self, z: 0 * z),
    },
    laws.can_be_saved_and_loaded: {
        "its facts are no plain values": of(facts={"x": torch.ones(1)}),
        "JSON gives back other facts": of(facts={"x": (1, 2)}),
        "its facts name the path of an option": of(facts={"x": "of /some/file"}, path="/some/file"),
        "it cannot be built from its facts alone": of(build=by_path, path="/some/file"),
        "the latents differ after it was loaded": of(gain=2.0, encode=lambda self, x: self.gain * x, fit=unsaved),
    },
    laws.refuses_unsupported_shapes: {
        "build() for items of 1: codec strange failed: TypeError: an image, please": of(build=of_images),
        "the codec raised RuntimeError": of(decode=lambda self, z: z.reshape(len(z), 3, 16, 16) / 2),
    },
}


@pytest.mark.parametrize(("component", "law", "words"), rows(FAILING))
def test_codecs_that_fail_a_law(component: Codec, law: Law, words: str) -> None:
    assert words in failure(component, law)


def test_every_law_of_codecs_can_fail() -> None:
    assert {*FAILING} == {*laws.LAWS} - {laws.works_on_every_device}


def test_a_codec_that_accepts_no_shape_cannot_be_checked() -> None:
    def nothing(self: Any, spec: CodecSpec) -> nn.Module:
        raise ValueError("no")

    words = failed_laws(of(build=nothing, path="x"))["can be checked"]
    assert words.startswith("it accepts none of the shapes tried (3x16x16: codec strange: no; 3x32x32: ")


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_and_its_file_need_the_folder_of_an_autoencoder_no_more(run: Run, vae: Path) -> None:
    """The model file samples, and the run resumes, as if the folder were still there."""
    folder = shutil.copytree(vae, "vae")
    train = ("train", *IMAGES, "--codec", "autoencoder-kl", "--codec.path", folder)
    ok(run(*train, "--steps", 4, "--out", "whole"))
    ok(run(*train, "--steps", 2, "--out", "run"))
    sample = ("-n", 2, "--steps", 2, "--batch-size", 2)
    ok(run("sample", "whole", *sample, "--out", "before.npy"))
    shutil.rmtree(folder)
    ok(run("train", "--resume", "run", "--steps", 4))
    whole, resumed = (load_file(f"{name}/model.safetensors") for name in ("whole", "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    shutil.move("whole/model.safetensors", "x.safetensors")
    shutil.rmtree("whole")
    ok(run("sample", "x.safetensors", *sample, "--out", "after.npy"))
    assert np.array_equal(np.load("before.npy"), np.load("after.npy"))
    assert str(folder).encode() not in Path("x.safetensors").read_bytes()
    refused = run(*train, "--steps", 2, "--out", "new")
    assert (refused.code, "codec autoencoder-kl: path: vae is not a folder" in refused.error) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--codec", "patch"), "codec patch: points of 2 have no sides that patches could divide"),
        (
            (*IMAGES, "--codec", "patch", "--codec.size", 3),
            "patches of 3 do not divide items of 3x8x8; patches of 2, 4",
        ),
        ((*IMAGES, "--codec", "pca", "--codec.components", 49), "has only 48 components, not 49"),
        ((*IMAGES, "--codec", "autoencoder-kl"), "name the folder of an autoencoder (--codec.path FOLDER)"),
        (("--codec", "pac"), "did you mean 'patch' or 'pca'?"),
    ],
)
def test_train_refuses_what_does_not_fit(run: Run, arguments: tuple[object, ...], words: str) -> None:
    outcome = run("train", *arguments, "--steps", 1, "--out", "r")
    assert (outcome.code, words in outcome.error) == (2, True), outcome.err
    assert not Path("r").exists()


def test_patches_and_pixels_start_at_the_same_loss(run: Run) -> None:
    """The network predicts 0 at first, and patches hold the same numbers in another order."""
    losses = []
    for name in ("none", "patch"):
        ok(run("train", *IMAGES, "--codec", name, "--steps", 1, "--lr", 1e-9, "--out", name))
        losses.append(json.loads(Path(name, "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # the noise is not the same


def test_train_and_info_say_what_the_latents_are(run: Run) -> None:
    begun = ok(run("train", *IMAGES, "--codec", "pca", "--codec.components", 48, "--steps", 1, "--out", "r"))
    (line,) = (line for line in begun.err.splitlines() if "unet (" in line)
    assert re.search(r" / pca \(latents of 48x2x2, loses \d\S* % of the deviation\) / cosine ", line)
    (row,) = (line for line in ok(run("info", "r")).out.splitlines() if line.startswith("latents"))
    assert row.split() == ["latents", "48", "2", "2"]
    assert json.loads(ok(run("info", "r/model.safetensors", "--json")).out)["latents"] == [48, 2, 2]
    plain = ok(run("train", *IMAGES, "--dry-run", "--json"))
    assert json.loads(plain.out)["latents"] is None
    assert "latents" not in plain.err


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome
