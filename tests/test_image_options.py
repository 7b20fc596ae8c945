"""image-folder: transparency, 16 bits, crops, captions, and several folders."""

from __future__ import annotations

import pickle
import struct
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from test_datasets import folder, plain, png
from torch import Tensor

import difftool
from difftool.data.batches import Batches
from difftool.data.samples import DatasetContext, Samples, fingerprint
from difftool.data.splitting import split
from difftool.errors import DifftoolError
from difftool.testing import check_component
from difftool_plugins.datasets import ImageFolder
from difftool_plugins.datasets.columns.captions import PLACE, WORD, tokens_of, words_of

CONTEXT = DatasetContext(seed=3)


def load(path: Path, **options: Any) -> Samples:
    return ImageFolder(path=path, **{"size": (4,), **options}).load(CONTEXT)


def items(samples: Samples) -> Tensor:
    return samples.take(range(len(samples)))[0]


def noisy(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8).squeeze()


# -- transparency ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, 0.0])
def test_colours_and_transparency_come_back_as_they_are(tmp_path: Path, memory: float | None) -> None:
    pixels = noisy(6, 4, 4)
    pixels[..., 3] |= 1
    pixels[0, 0, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pixels[0, 0] = 0  # what is hidden is black
    for size, part in (((6, 4), pixels), ((4,), pixels[1:5])):
        assert np.array_equal(items(load(tmp_path, channels=4, size=size, memory=memory))[0].permute(1, 2, 0), part)


def test_gray_and_transparency(tmp_path: Path) -> None:
    pixels = noisy(4, 4, 2)
    pixels[..., 1] |= 1
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(items(load(tmp_path, channels=2))[0].permute(1, 2, 0), pixels)


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (plain((10, 20, 30)), ".png", (10, 20, 30, 255)),
        (plain(77, "L"), ".png", (77, 77, 77, 255)),
        (plain(1, "1"), ".png", (255, 255, 255, 255)),
        (plain((9, 51), "LA"), ".png", (9, 9, 9, 51)),
        (plain((9, 51), "LA"), ".tif", (9, 9, 9, 51)),
        (plain((10, 20, 30, 51), "RGBA"), ".tif", (10, 20, 30, 51)),
        (plain((10, 20, 30, 0), "RGBA"), ".png", (0, 0, 0, 0)),
        (plain((10, 20, 30, 51), "RGBA"), ".webp", (10, 20, 30, 51)),
        (plain((10, 20, 30, 51), "RGBA").convert("PA"), ".tif", (10, 20, 30, 51)),
        (plain((0, 255, 255, 0), "CMYK"), ".tif", (255, 0, 0, 255)),
        (Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)), ".png", (100, 100, 100, 255)),
    ],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_every_mode_with_its_transparency(
    tmp_path: Path, image: Image.Image, suffix: str, expected: tuple[int, ...], bits: int
) -> None:
    image.save(tmp_path / f"a{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    (got,) = items(load(tmp_path, channels=4, bits=bits))
    colour = 4 if suffix == ".webp" or image.mode == "PA" else 0  # a palette, or a codec, that rounds
    assert (got - torch.tensor(expected)[:, None, None]).abs().max() <= max(colour, 1e-4)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 4])
def test_hidden_colours_do_not_leak_where_images_are_scaled(tmp_path: Path, bits: int, channels: int) -> None:
    """A white disc whose hidden surroundings are black has no gray rim, as colours blend by their transparency."""
    y, x = np.indices((64, 64)) - 31.5
    disc = np.where(np.hypot(y, x)[..., None] < 20, [255, 255, 255, 255], [0, 0, 0, 0]).astype(np.uint8)
    Image.fromarray(disc).save(tmp_path / "a.png")
    (got,) = items(load(tmp_path, size=(16,), channels=channels, bits=bits)).float()
    assert int(((got[-1] > 10) & (got[-1] < 245)).sum()) > 0  # a soft edge
    assert (got[:-1, got[-1] > 10] > 250).all()
    assert (got[:-1, got[-1] == 0] == 0).all()


def test_samples_of_four_channels_are_read_back(run: Run, tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    for i in range(4):
        pixels = noisy(8, 8, 4, seed=i)
        Image.fromarray(pixels).save(tmp_path / "seen" / f"{i}.png")
    network = ("--backbone", "unet", "--backbone.dim", 8, "--backbone.dim-mults", 1, "--backbone.groups", 4)
    data = ("--dataset", "image-folder", "--dataset.path", "seen", "--dataset.size", 8, "--dataset.channels", 4)
    settings = ("--steps", 2, "--batch-size", 4, "--preview-every", 0, "--threads", 1)
    assert run("train", *data, *network, *settings, "--out", "r").code == 0
    assert run("sample", "r", "-n", 2, "--out", "images/", "--steps", 2).code == 0
    files = sorted((tmp_path / "images").glob("*.png"))
    assert [Image.open(file).mode for file in files] == ["RGBA"] * 2
    assert items(load(tmp_path / "images", channels=4, size=(8,))).shape == (2, 4, 8, 8)
    assert run("sample", "r", "--init", "seen/0.png", "-n", 1, "--steps", 2, "--out", "near.png").code == 0


# -- 16 bits -----------------------------------------------------------------------------------------------------------


def test_gray_of_16_bits_keeps_every_value(tmp_path: Path) -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    for suffix in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
        got = difftool.read_image(tmp_path / f"a.{suffix}", channels=1, bits=16)[0]
        assert got.dtype == torch.float32
        assert np.array_equal((got.double() * 257).round(), values)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4)])
def test_colour_png_of_16_bits_keeps_every_value(tmp_path: Path, kind: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(1, 65536, (5, 7, channels))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    (tmp_path / "a.png").write_bytes(png(7, 5, 16, kind, rows))
    got = difftool.read_image(tmp_path / "a.png", channels=channels, bits=16, alpha="straight")
    error = np.abs(got.double().permute(1, 2, 0).numpy() * 257 - values)
    assert error.max() < (1e-2 if kind == 2 else 0.1)  # straight colours are multiplied and divided again


@pytest.mark.parametrize("order", ["<", ">"])
def test_colour_tiff_of_16_bits_keeps_every_value(tmp_path: Path, order: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3))
    (tmp_path / "a.tif").write_bytes(tiff(values, order))
    got = difftool.read_image(tmp_path / "a.tif", bits=16).double()
    assert np.array_equal((got * 257).round().permute(1, 2, 0), values)


def tiff(values: np.ndarray, order: str) -> bytes:
    """Return an uncompressed TIFF file of 16-bit RGB values (H, W, 3), which Pillow does not write."""
    height, width, _ = values.shape
    data = values.astype(f"{order}u2").tobytes()
    bits = struct.pack(f"{order}3H", 16, 16, 16)
    start = 8 + len(bits)
    tags = [
        *((256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, start)),
        *((277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(data)), (284, 3, 1, 1)),
    ]
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if (kind, count) == (3, 1) else struct.pack(f"{order}I", value))
        for tag, kind, count, value in tags
    )
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, start + len(data))
    return head + bits + data + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)


def test_a_key_colour_of_16_bits_is_compared_whole(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">6H", 1000, 2000, 3000, 1000, 2000, 3001)
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, row, tRNS=struct.pack(">3H", 1000, 2000, 3001)))
    got = difftool.read_image(tmp_path / "a.png", channels=4, bits=16)
    assert got[3, 0].tolist() == [255, 0]
    white = difftool.read_image(tmp_path / "a.png", bits=16)
    assert white[:, 0, 1].tolist() == [255, 255, 255]


def test_8_bit_files_are_the_same_in_16_bits(tmp_path: Path) -> None:
    Image.fromarray(noisy(12, 20)).save(tmp_path / "a.png")
    for channels in (1, 3):
        whole = [difftool.read_image(tmp_path / "a.png", channels=channels, bits=bits).float() for bits in (8, 16)]
        assert (whole[0] - whole[1]).abs().max() <= (0.51 if channels == 1 else 0)
        small = [
            difftool.read_image(tmp_path / "a.png", channels=channels, bits=bits, size=(6, 8)).float()
            for bits in (8, 16)
        ]
        assert (small[0] - small[1]).abs().max() <= 1.6


def test_files_whose_lower_bytes_cannot_be_had_are_refused(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">2H", 1000, 2000)
    (tmp_path / "a.png").write_bytes(png(1, 1, 16, 4, row))
    assert difftool.read_image(tmp_path / "a.png").shape == (3, 1, 1)
    with pytest.raises(difftool.BadImage, match=r"a\.png.*are read in 8 bits alone; leave out bits 16"):
        difftool.read_image(tmp_path / "a.png", bits=16)


@pytest.mark.parametrize("memory", [None, 0.0])
def test_a_folder_of_16_bits_passes_the_laws_and_has_a_fingerprint(tmp_path: Path, memory: float | None) -> None:
    for i in range(12):
        values = np.random.default_rng(i).integers(0, 65536, (9, 9)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    made = difftool.component(
        "dataset", "image-folder", path=tmp_path, size=8, bits=16, channels=1, memory=memory, augment=("flip",)
    )
    assert check_component(made)
    before = fingerprint(made.load(CONTEXT))
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes() + b"x")
    assert fingerprint(made.load(CONTEXT)) != before


@pytest.mark.parametrize("condition", ["gray", "mask", "shrink:2"])
def test_computed_condition_images_of_16_bits_are_pixels(tmp_path: Path, condition: str) -> None:
    folder(tmp_path, a=Image.fromarray(noisy(4, 4)))
    _, of_8 = load(tmp_path, condition=condition).take([0])
    _, of_16 = load(tmp_path, condition=condition, bits=16).take([0])
    assert of_16.image.dtype == torch.uint8  # type: ignore[union-attr]
    assert torch.equal(of_8.image, of_16.image)  # type: ignore[union-attr, arg-type]


# -- crops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "border"), [(1, (255,)), (3, (255,) * 3), (4, (0,) * 4), (2, (0, 0))])
@pytest.mark.parametrize("bits", [8, 16])
def test_pad_keeps_the_whole_image(tmp_path: Path, channels: int, border: tuple[int, ...], bits: int) -> None:
    folder(tmp_path, a=plain((10, 10, 10), size=(8, 4)))
    (got,) = items(load(tmp_path, crop="pad", size=(8,), channels=channels, bits=bits))
    assert (got[:, [0, 1, 6, 7]] == torch.tensor(border)[:, None, None]).all()
    assert (got[0, 2:6] - 10.0).abs().max() < 1e-4
    (small,) = items(load(tmp_path, crop="pad", size=(4,), channels=channels, bits=bits))
    assert (small[:, [0, 3]] == torch.tensor(border)[:, None, None]).all()


def ramp(root: Path) -> Path:
    """A folder of one image of 4 x 12 pixels, of which each column has a value of its own."""
    return folder(root, a=Image.fromarray(np.tile(np.arange(12, dtype=np.uint8) * 20, (4, 1))))


def test_random_crops_are_windows_of_the_image(tmp_path: Path) -> None:
    samples = load(ramp(tmp_path), crop="random", channels=1)
    assert samples.take([0])[0][0, 0, 0].tolist() == [80, 100, 120, 140]  # outside training, the middle
    lefts = set()
    for batch in islice(Batches(samples, 8, seed=0).start(0), 20):
        for row in batch.items[:, 0, 0]:
            assert (row.int().diff() == 20).all()
            lefts.add(int(row[0]) // 20)
    assert lefts == set(range(9))


@pytest.mark.parametrize("workers", [0, 1])
def test_random_crops_are_a_function_of_the_step_alone(tmp_path: Path, workers: int) -> None:
    root = ramp(tmp_path)
    for i in range(4):
        Image.fromarray(noisy(20, 30, seed=i)).save(root / f"{i}.png")
    samples = load(root, crop="random", augment=("flip",))
    straight = [batch.items for batch in islice(Batches(samples, 4, seed=1).start(0), 6)]
    later = [batch.items for batch in islice(Batches(samples, 4, seed=1, workers=workers).start(2), 4)]
    assert all(map(torch.equal, straight[2:], later))
    parts = [next(Batches(samples, 4, seed=1, part=slice(*ends)).start(3)).items for ends in ((0, 3), (3, 4))]
    assert torch.equal(torch.cat(parts), straight[3])
    assert not torch.equal(straight[0], next(Batches(samples, 4, seed=2).start(0)).items)


def test_partners_are_cropped_at_the_same_place(tmp_path: Path) -> None:
    for i in range(6):
        image = Image.fromarray(noisy(12, 30, seed=i)[..., 0])
        folder(tmp_path / "items", **{f"{i}": image})
        folder(tmp_path / "edges", **{f"{i}": image})
    for crop in ("random", "pad"):
        samples = load(tmp_path / "items", crop=crop, channels=1, condition=str(tmp_path / "edges"), size=(12,))
        for held in split(samples, 2):
            assert held is not None
            for batch in islice(Batches(held, 4, seed=0).start(0), 3):
                assert torch.equal(batch.items, batch.condition.image)  # type: ignore[union-attr, arg-type]


def test_random_crops_pass_the_laws_and_can_be_pickled(tmp_path: Path) -> None:
    for i in range(8):
        folder(tmp_path, **{f"{i}": Image.fromarray(noisy(9, 20, seed=i))})
    made = difftool.component("dataset", "image-folder", path=tmp_path, size=8, crop="random")
    findings = {finding.law: finding.verdict for finding in check_component(made)}
    assert findings["reads the same item every time"] == "passed"
    source: Any = pickle.loads(pickle.dumps(made.load(CONTEXT).items))
    assert torch.equal(source.draw(3, 2**40 + 5), source.draw(3, 2**40 + 5))


def test_a_run_of_random_crops_resumes_bit_for_bit(run: Run, tmp_path: Path) -> None:
    for i in range(6):
        folder(tmp_path / "photos", **{f"{i}": Image.fromarray(noisy(9, 20, seed=i))})
    network = ("--backbone", "unet", "--backbone.dim", 8, "--backbone.dim-mults", 1, "--backbone.groups", 4)
    data = ("--dataset", "image-folder", "--dataset.path", "photos", "--dataset.size", 8, "--dataset.crop", "random")
    more = ("--dataset.augment", "flip,crop", "--workers", 0, "--batch-size", 4, "--preview-every", 0, "--threads", 1)
    options = (*data, *more, *network)
    assert run("train", *options, "--steps", 6, "--out", "whole").code == 0
    assert run("train", *options, "--steps", 3, "--out", "parts").code == 0
    assert run("train", "--resume", "parts", "--steps", 6).code == 0
    whole, parts = (difftool.load(tmp_path / name, device="cpu").network.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    changed = run("train", "--resume", "parts", "--steps", 8, "--dataset.crop", "pad")
    assert "--dataset.crop is random in the run, not pad" in changed.error


# -- captions ----------------------------------------------------------------------------------------------------------


def test_words_are_a_function_of_their_letters() -> None:
    assert words_of("A red  disc,\nÉté!") == ["a", "red", "disc", ",", "été", "!"]
    red, disc = tokens_of("red disc", 4)[:2]
    assert torch.equal(tokens_of("a RED", 2)[1, :WORD], red[:WORD])
    assert set(red[:WORD].tolist()) == {-1.0, 1.0}
    assert abs(float((red[:WORD] * disc[:WORD]).mean())) < 0.5
    assert tokens_of("red disc", 4)[2:].abs().max() == 0
    places = tokens_of(" ".join("a" * 40).strip(), 40)[:, WORD:]
    assert torch.cdist(places, places).add(torch.eye(40)).min() > 0.1  # the same word at another place differs
    assert places.shape[1] == PLACE


@pytest.mark.parametrize("memory", [None, 0.0])
def test_captions_come_with_their_images(tmp_path: Path, memory: float | None) -> None:
    for name in ("cat/a", "dog/b"):
        folder(tmp_path, **{name.replace("/", "__"): plain((1, 2, 3))})
        (tmp_path / f"{name}.txt").write_text(f"\ufeffa {name[:3]}" if name[0] == "c" else "", encoding="utf-8")
    samples = load(tmp_path, captions="txt", words=3, memory=memory)
    _, condition = samples.take([0, 1])
    assert torch.equal(condition.tokens, torch.stack([tokens_of("a cat", 3), torch.zeros(3, WORD + PLACE)]))  # type: ignore
    before = fingerprint(samples)
    (tmp_path / "dog/b.txt").write_text("a dog and a cat")
    with pytest.warns(UserWarning, match=r"1 of 2 captions have more than 3 words.*the longest has 5"):
        assert fingerprint(load(tmp_path, captions="txt", words=3, memory=memory)) != before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"captions: .*a\.png has no caption; a\.txt must lie beside it"),
        (b"\xff\xfe\x00", r"captions: .*a\.txt is not UTF-8 text"),
        (b"x" * 70_000, r"captions: .*a\.txt has more than 64 KiB"),
    ],
)
def test_captions_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    folder(tmp_path, a=plain((1, 2, 3)))
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        load(tmp_path, captions="txt", words=3)


# -- several folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, 0.0])
def test_several_folders_with_weights(tmp_path: Path, memory: float | None) -> None:
    one = folder(tmp_path / "one", cat__a=plain(1, "L"), dog__b=plain(2, "L"))
    two = folder(tmp_path / "two", cat__a=plain(3, "L"), eel__c=plain(4, "L"))
    samples = load(one, more=(two,), weights=(1, 3), channels=1, memory=memory)
    assert samples.item_ids == ["cat/a.png", "dog/b.png", "1:cat/a.png", "1:eel/c.png"]
    assert samples.class_names == ("cat", "dog", "eel")
    assert items(samples)[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert samples.labels.tolist() == [0, 1, 0, 2]  # type: ignore[union-attr]
    assert samples.epoch_length == 8
    (batch,) = islice(Batches(samples, 8, seed=0).start(0, block=1), 1)
    assert torch.bincount(batch.items[:, 0, 0, 0].long()).tolist() == [0, 1, 1, 3, 3]
    others = [load(one, more=(two,), channels=1, memory=memory, **more) for more in ({}, {"weights": (1, 2)})]
    assert len({fingerprint(made) for made in (samples, *others)}) == 3


def test_good_files_of_several_folders_are_remembered_apart(tmp_path: Path) -> None:
    one, two = (folder(tmp_path / name, a=plain(1, "L")) for name in ("one", "two"))
    dataset = ImageFolder(path=one, more=(two,), size=(4,), memory=0.0)
    context = DatasetContext(cache=tmp_path / "cache")
    dataset.load(context)
    (two / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"two/a\.png"):
        dataset.load(context)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("one", "is named twice"),
        ("one/in", r"lies in .*one, so its images would come twice"),
        ("none", "does not exist"),
    ],
)
def test_folders_that_do_not_go_together_are_refused(tmp_path: Path, more: str, reason: str) -> None:
    one = folder(tmp_path / "one", a=plain(1, "L"), in__b=plain(2, "L"))
    with pytest.raises(ValueError, match=reason):
        load(one, more=(tmp_path / more,))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bits": 12}, "bits: must be 8 or 16, not 12"),
        ({"weights": (1, 2)}, "weights: must be a number for each folder, so 1, not 2"),
        ({"weights": (0,)}, "weights: must be greater than or equal to 1"),
        ({"crop": "left"}, "crop: must be 'center', 'random' or 'pad'"),
        ({"augment": ("flip", "flip")}, "augment: flip is named twice"),
        ({"augment": ("mirror",)}, "augment: must be 'flip', 'crop' or 'rotate'"),
        ({"captions": "txt", "tokens": "x.npy"}, "captions: give either captions or tokens"),
        ({"words": 0}, "words: must be greater than or equal to 1"),
    ],
)
def test_options_that_mean_nothing_are_refused_at_once(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(DifftoolError, match=reason):
        difftool.component("dataset", "image-folder", path="photos", **options)
