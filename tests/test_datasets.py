"""The built-in datasets: closed forms, rules of conversion, and bad files. The laws are checked in test_testing."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difftool.components import Dataset
from difftool.data.batches import Batches
from difftool.data.images import BadImage, cover_box, opened, read_image
from difftool.data.samples import DatasetContext, Samples
from difftool.data.splitting import split
from difftool.errors import InvalidOption
from difftool.options import make
from difftool.plugins.registry import registry
from difftool_plugins.datasets import GaussianMixture, Gradients, ImageFolder, SwissRoll, TwoMoons

CONTEXT = DatasetContext(seed=3)
ALL = [SwissRoll(n=500), TwoMoons(n=500), GaussianMixture(n=500), Gradients(n=50)]


def tensor(samples: Samples) -> torch.Tensor:
    assert isinstance(samples.items, torch.Tensor)
    return samples.items


def folder(root: Path, **images: Image.Image) -> Path:
    """PNG files of these names ('__' stands for '/')."""
    for name, image in images.items():
        file = root / f"{name.replace('__', '/')}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    return root


def plain(colour: object, mode: str = "RGB", size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def png(width: int, height: int, depth: int, kind: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG file of raw rows, each behind its filter byte; Pillow writes only some depths and kinds itself."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    extra = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def only(root: Path, **options: object) -> torch.Tensor:
    """The only image of a folder, (C, H, W), as integers."""
    (item,) = tensor(ImageFolder(path=root, **{"size": (4,), **options}).load(CONTEXT))  # type: ignore[arg-type]
    return item.to(torch.int64)


# -- all of them -------------------------------------------------------------------------------------------------------


def test_registered_under_their_names() -> None:
    names = {c.name for p in registry().plugins if p.identity == "difftool:datasets" for c in p.components}
    assert names == {
        *("swiss-roll", "two-moons", "gaussian-mixture", "gradients", "image-folder", "sound-folder", "array"),
        *("hf", "webdataset"),
    }
    assert [p.problems for p in registry().plugins if p.identity == "difftool:datasets"] == [[]]


def test_import_is_light() -> None:
    code = (
        "import sys, difftool_plugins.datasets; "
        "print([m for m in ('torch', 'numpy', 'PIL', 'pydantic', 'sklearn') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("dataset", ALL, ids=lambda d: d.name)
def test_another_seed_gives_other_data(dataset: Dataset) -> None:
    first, second = (tensor(dataset.load(DatasetContext(seed=seed))) for seed in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dataset", ALL, ids=lambda d: d.name)
def test_the_options_fix_the_item_shape(dataset: Dataset) -> None:
    assert dataset.item_shape() == dataset.load(CONTEXT).shape


# -- points ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [SwissRoll(), TwoMoons(), GaussianMixture(radius=7.0)], ids=lambda d: d.name)
def test_points_are_scaled(dataset: Dataset) -> None:
    samples = dataset.load(CONTEXT)
    model = samples.scaling.to_model(tensor(samples)).double()
    assert model.mean(0).abs().max() < 1e-5
    assert (model.std(0) - 1).abs().max() < 1e-4
    assert samples.bounds is None
    assert samples.labels is None
    assert dataset.default_backbone == "mlp"


def test_swiss_roll_closed_form() -> None:
    roll = tensor(SwissRoll(n=20_000).load(CONTEXT)).double()
    t = 10 * roll.norm(dim=1)
    assert t.min() >= 1.5 * math.pi - 1e-5
    assert t.max() <= 4.5 * math.pi + 1e-5
    assert torch.allclose(roll, torch.stack([t * t.cos(), t * t.sin()], 1) / 10, atol=1e-5)
    u = (t / (1.5 * math.pi) - 1) / 2
    assert abs(u.mean() - 0.5) < 0.01  # uniform: mean 1/2, variance 1/12
    assert abs(u.var() - 1 / 12) < 0.003


def test_swiss_roll_noise_is_in_data_units() -> None:
    clean, noisy = (tensor(SwissRoll(n=20_000, noise=s).load(CONTEXT)) for s in (0.0, 0.2))
    difference = noisy - clean
    assert torch.allclose(difference.std(0), torch.tensor([0.2, 0.2]), atol=0.005)


def test_two_moons_closed_form() -> None:
    samples = TwoMoons(n=1000, noise=0.0, labels=True).load(CONTEXT)
    moons, labels = tensor(samples).double(), samples.labels
    assert labels is not None
    upper, lower = moons[labels == 0], moons[labels == 1]
    assert len(upper) == len(lower) == 500
    assert torch.allclose(upper.norm(dim=1), torch.ones(500).double(), atol=1e-6)
    assert torch.allclose((lower - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(500).double(), atol=1e-6)
    assert upper[:, 1].min() >= -1e-6
    assert lower[:, 1].max() <= 0.5 + 1e-6
    assert samples.class_names == ("upper", "lower")


def test_gaussian_mixture_means_and_spread() -> None:
    samples = GaussianMixture(n=40_000, components=5, radius=2.0, std=0.1, labels=True).load(CONTEXT)
    assert samples.labels is not None
    assert samples.class_names == ("0", "1", "2", "3", "4")
    for k in range(5):
        part = tensor(samples)[samples.labels == k].double()
        assert len(part) == 8000
        mean = torch.tensor([2 * math.cos(2 * math.pi * k / 5), 2 * math.sin(2 * math.pi * k / 5)])
        assert torch.allclose(part.mean(0), mean.double(), atol=0.01)
        assert torch.allclose(part.std(0), torch.tensor([0.1, 0.1]).double(), atol=0.005)


def test_one_point_is_enough() -> None:
    for dataset in (SwissRoll(n=1), TwoMoons(n=1), GaussianMixture(n=1)):
        assert torch.isfinite(tensor(dataset.load(CONTEXT))).all()


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5,), (4, 7), (7, 2), (1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize("channels", [1, 4])
def test_gradients_closed_form(size: tuple[int, ...], channels: int) -> None:
    samples = Gradients(n=40, size=size, channels=channels).load(CONTEXT)
    items = tensor(samples)
    H, W = size[0], size[-1]
    assert items.shape == (40, channels, H, W)
    assert items.dtype == torch.uint8
    x = items.double()
    first, second = x[:, :, 0, 0], x[:, :, -1, -1]
    g = torch.zeros(H, W, dtype=torch.float64)
    for i in range(H):
        for j in range(W):
            g[i, j] = ((j * W / (W - 1) if W > 1 else 0) + (i * H / (H - 1) if H > 1 else 0)) / (W + H)
    if H * W > 1:
        g = g / g.max()
        assert g[-1, -1] == 1
    expected = first[..., None, None] + (second - first)[..., None, None] * g
    assert (x - expected).abs().max() <= 0.5 + 1e-9
    rising = (second >= first)[..., None, None]
    assert torch.where(rising, x.diff(dim=-1) >= 0, x.diff(dim=-1) <= 0).all()
    assert torch.where(rising, x.diff(dim=-2) >= 0, x.diff(dim=-2) <= 0).all()


def test_gradient_ends_are_0_to_254() -> None:
    items = tensor(Gradients(n=20_000, size=(2,)).load(CONTEXT))
    for end in (items[:, :, 0, 0], items[:, :, 1, 1]):
        assert end.unique().tolist() == list(range(255))
    assert abs(float(np.corrcoef(items[:, 0, 0, 0], items[:, 1, 0, 0])[0, 1])) < 0.03  # channels are independent


def test_gradients_in_blocks_equal_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tensor(Gradients(n=30, size=(8,)).load(CONTEXT))
    monkeypatch.setattr("difftool_plugins.datasets.gradients.BLOCK", 500)
    assert torch.equal(whole, tensor(Gradients(n=30, size=(8,)).load(CONTEXT)))


@pytest.mark.parametrize(
    ("record", "values", "field"),
    [
        (Gradients, {"size": []}, "size"),
        (Gradients, {"size": [1, 2, 3]}, "size"),
        (Gradients, {"size": [0]}, "size"),
        (Gradients, {"channels": 5}, "channels"),
        (Gradients, {"n": 10_000_000, "size": [4096]}, "n"),
        (ImageFolder, {"path": "x", "size": [4, -1]}, "size"),
        (ImageFolder, {"path": "x", "channels": 5}, "channels"),
        (ImageFolder, {}, "path"),
        (SwissRoll, {"n": 0}, "n"),
        (SwissRoll, {"noise": -0.1}, "noise"),
    ],
)
def test_errors_name_the_wrong_option(record: type[Dataset], values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        make(record, values)
    assert caught.value.field == field


# -- image-folder: conversion ------------------------------------------------------------------------------------------


def palette(*, transparent: bool) -> Image.Image:
    image = plain(1, "P")
    image.putpalette([255, 0, 0, 10, 20, 30])
    if transparent:
        image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (plain((10, 20, 30)), ".png", (10, 20, 30)),
        (plain(77, "L"), ".png", (77, 77, 77)),
        (plain(1, "1"), ".png", (255, 255, 255)),
        (plain(0, "1"), ".tif", (0, 0, 0)),
        (palette(transparent=False), ".png", (10, 20, 30)),
        (palette(transparent=False), ".gif", (10, 20, 30)),
        (palette(transparent=True), ".png", (255, 255, 255)),
        (palette(transparent=True), ".gif", (255, 255, 255)),
        (plain((10, 20, 30, 0)), ".png", (10, 20, 30)),
        (plain((10, 20, 30, 0), "RGBA"), ".png", (255, 255, 255)),
        (plain((10, 20, 30, 255), "RGBA"), ".png", (10, 20, 30)),
        (plain((0, 100, 255, 51), "RGBA"), ".png", (204, 224, 255)),  # alpha 1/5 over white
        (plain((0, 100, 255, 51), "RGBA"), ".webp", (204, 224, 255)),
        (plain((0, 51), "LA"), ".png", (204, 204, 204)),
        (plain((0, 255, 255, 0), "CMYK"), ".tif", (255, 0, 0)),
        (plain((10, 20, 30)), ".bmp", (10, 20, 30)),
        (plain((10, 20, 30)), ".TIFF", (10, 20, 30)),
        (Image.fromarray(np.full((4, 4), 65535, np.uint16)), ".png", (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)), ".png", (100, 100, 100)),
        (Image.fromarray(np.full((4, 4), 300, np.uint16)), ".tif", (1, 1, 1)),  # clipped it would be 255
        (Image.fromarray(np.full((4, 4), 257 * 40, np.int32)), ".tif", (40, 40, 40)),
        (Image.fromarray(np.full((4, 4), 257 * 40, ">u2")), ".tif", (40, 40, 40)),
        (plain((0, 51), "LA"), ".tif", (204, 204, 204)),
        (plain((0, 100, 255, 51), "RGBA"), ".tif", (204, 224, 255)),
        (plain((0, 100, 255, 51), "RGBA").convert("PA"), ".tif", (204, 224, 255)),
        (palette(transparent=False), ".bmp", (10, 20, 30)),
        (plain((76, 84, 255), "YCbCr"), ".tif", (254, 0, 0)),
    ],
)
def test_every_mode_by_its_rule(
    tmp_path: Path, image: Image.Image, suffix: str, expected: tuple[int, int, int]
) -> None:
    lossless = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    image.save(tmp_path / f"a{suffix}", **lossless)
    got = only(tmp_path)
    # a lossless WebP rounds twice at alpha 1/5, all else is exact
    assert (got - torch.tensor(expected)[:, None, None]).abs().max() <= (1 if suffix == ".webp" else 0)


@pytest.mark.parametrize(
    ("depth", "kind", "pixel", "chunks", "expected"),
    [
        (16, 2, (256 * 10 + 250, 256 * 20, 256 * 30), {}, (10, 20, 30)),  # the upper bytes
        (16, 4, (0, 65535 // 5), {}, (204, 204, 204)),
        (16, 6, (0, 257 * 100, 65535, 65535 // 5), {}, (204, 224, 255)),
        (16, 0, (25700,), {"tRNS": struct.pack(">H", 25700)}, (255, 255, 255)),
        (16, 0, (25700,), {"tRNS": struct.pack(">H", 25701)}, (100, 100, 100)),
        (8, 0, (77,), {"tRNS": struct.pack(">H", 77)}, (255, 255, 255)),
        (8, 3, (1,), {"PLTE": bytes([9, 9, 9, 10, 20, 30]), "tRNS": bytes([0, 51])}, (206, 208, 210)),
    ],
)
def test_every_kind_of_png(
    tmp_path: Path,
    depth: int,
    kind: int,
    pixel: tuple[int, ...],
    chunks: dict[str, bytes],
    expected: tuple[int, int, int],
) -> None:
    row = b"\0" + struct.pack(f">{len(pixel)}{'H' if depth == 16 else 'B'}", *pixel) * 4
    (tmp_path / "a.png").write_bytes(png(4, 4, depth, kind, row * 4, **chunks))
    assert (only(tmp_path) == torch.tensor(expected)[:, None, None]).all()


def test_the_content_decides_the_format_and_not_the_name(tmp_path: Path) -> None:
    plain((10, 20, 30)).save(tmp_path / "a.jpg", "PNG")
    plain((10, 20, 30)).save(tmp_path / "b.png", "BMP")
    plain((10, 20, 30)).save(tmp_path / "c.GIF", "TIFF", compression="tiff_lzw")
    items = tensor(ImageFolder(path=tmp_path, size=(4,)).load(CONTEXT))
    assert (items == torch.tensor([10, 20, 30])[:, None, None]).all()
    plain((10, 20, 30)).save(tmp_path / "d.png", "PPM")
    with pytest.raises(ValueError, match=r"d\.png: is not an image of the formats PNG"):
        ImageFolder(path=tmp_path, size=(4,)).load(CONTEXT)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    plain((0, 255, 255, 0), "CMYK", (16, 16)).save(tmp_path / "a.jpg", quality=100)
    assert (only(tmp_path)[:, 0, 0] - torch.tensor([255, 0, 0])).abs().max() <= 3


def test_transparent_key_colour(tmp_path: Path) -> None:
    plain((1, 2, 3)).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert only(tmp_path).unique().tolist() == [255]


def test_gray(tmp_path: Path) -> None:
    folder(tmp_path, a=plain((255, 0, 0)))
    assert only(tmp_path, channels=1).shape == (1, 4, 4)
    assert only(tmp_path, channels=1).unique().tolist() == [76]  # ITU-R 601: 0.299 red


@pytest.mark.parametrize("suffix", [".png", ".tif", ".lzw.tif", ".webp", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    if suffix == ".jpg":  # blocks that survive compression, and are shrunk while they are decoded
        upright = np.kron(upright, np.ones((64, 64), np.uint8))
    stored = {
        1: upright,
        2: np.fliplr(upright),
        3: np.rot90(upright, 2),
        4: np.flipud(upright),
        5: upright.T,
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".lzw.tif": {"compression": "tiff_lzw"}, ".webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a{suffix}", exif=exif, **options)
    image = only(tmp_path, size=(3, 4), channels=1)[0]
    if suffix == ".jpg":
        assert np.abs(image.numpy() - upright[::64, ::64]).max() <= 8
    else:
        assert np.array_equal(image, upright)
        assert np.array_equal(read_image(tmp_path / f"a{suffix}", channels=1)[0], upright)  # in its own size


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    plain((10, 20, 30)).save(tmp_path / "a.png", exif=b"Exif\0\0rubbish that is no TIFF")
    assert only(tmp_path)[:, 0, 0].tolist() == [10, 20, 30]


def test_the_first_frame_is_read(tmp_path: Path) -> None:
    plain((9, 9, 9)).save(tmp_path / "a.gif", save_all=True, append_images=[plain((200, 0, 0))])
    assert only(tmp_path).unique().tolist() == [9]


# -- image-folder: geometry --------------------------------------------------------------------------------------------


def test_pixels_that_are_not_scaled_stay_as_they_are(tmp_path: Path) -> None:
    values = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    folder(tmp_path, a=Image.fromarray(values.permute(1, 2, 0).contiguous().numpy()))
    assert torch.equal(only(tmp_path, size=(5, 7)), values.long())
    assert torch.equal(only(tmp_path, size=(5, 4)), values[:, :, 1:5].long())  # whole pixels, left of the middle
    assert torch.equal(only(tmp_path, size=(5,)), values[:, :, 1:6].long())


def test_covers_then_crops_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((40, 120), np.uint8)
    wide[:, 40:80] = 255  # white in the middle third alone
    folder(tmp_path / "wide", a=Image.fromarray(wide))
    folder(tmp_path / "tall", a=Image.fromarray(wide.T))
    for name in ("wide", "tall"):
        assert only(tmp_path / name, size=(40,)).min() == 255
        assert only(tmp_path / name, size=(10,))[:, 1:-1, 1:-1].min() >= 250
    assert only(tmp_path / "wide", size=(10, 30))[0, 5].tolist()[::29] == [0, 0]  # same aspect: nothing is cut


@pytest.mark.parametrize(("w", "h"), [(640, 427), (427, 640), (33, 32), (1, 1000), (1000, 1), (31, 97), (8, 8)])
@pytest.mark.parametrize(("width", "height"), [(32, 32), (48, 20), (20, 48), (1, 1), (300, 7)])
def test_cover_box(w: int, h: int, width: int, height: int) -> None:
    left, top, right, bottom = cover_box(w, h, width, height)
    assert 0 <= left < right <= w
    assert 0 <= top < bottom <= h
    assert left == 0 or top == 0
    scale = max(width / w, height / h)
    assert (right - left) * scale == pytest.approx(width)
    assert (bottom - top) * scale == pytest.approx(height)
    for near, far, length in ((left, right, w), (top, bottom, h)):  # central, to within a pixel where nothing is scaled
        assert length - far - near == pytest.approx(0, abs=1 if scale == 1 else 1e-6)
        assert scale != 1 or near == round(near)


def test_scaling_is_antialiased(tmp_path: Path) -> None:
    fine = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)  # a checkerboard of single pixels
    folder(tmp_path, a=Image.fromarray(fine))
    assert (only(tmp_path, size=(16,)) - 127).abs().max() <= 2


def test_real_photographs(tmp_path: Path) -> None:
    """Shrunk photographs agree with an exact average over each pixel's area, whatever the file format."""
    from skimage import data

    photographs = {"astronaut": data.astronaut(), "coffee": data.coffee(), "rocket": data.rocket()}
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    photographs |= {"china": china, "flower": flower}
    for name, photograph in photographs.items():
        for suffix in (".png", ".jpg"):
            file = tmp_path / name / f"a{suffix}"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(photograph).save(file, **({"quality": 95} if suffix == ".jpg" else {}))
        items = tensor(ImageFolder(path=tmp_path / name, size=(32,)).load(CONTEXT)).double()
        h, w, _ = photograph.shape
        side = min(h, w)
        square = photograph[(h - side) // 2 :][:side, (w - side) // 2 :][:, :side]
        area = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(square.copy()).permute(2, 0, 1).double(), 32)
        assert (items - area).abs().mean() < 6  # of 255; bicubic is a little sharper than an average
        assert (items.mean((2, 3)) - area.mean((1, 2))).abs().max() < 1.5
        assert (items[0] - items[1]).abs().mean() < 2  # JPEG against PNG


# -- image-folder: which files -----------------------------------------------------------------------------------------


def test_order_extensions_and_hidden_files(tmp_path: Path) -> None:
    folder(tmp_path, b=plain(2, "L"), B=plain(1, "L"), a__z=plain(3, "L"), **{"a-": plain(4, "L")})
    plain(5, "L").save(tmp_path / "é.PNG")
    folder(tmp_path, **{".hidden": plain(9, "L"), ".thumbs__x": plain(9, "L")})
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    samples = ImageFolder(path=tmp_path, size=(4,)).load(CONTEXT)
    assert samples.item_ids == ["B.png", "a-.png", "a/z.png", "b.png", "é.PNG"]
    assert tensor(samples)[:, 0, 0, 0].tolist() == [1, 4, 3, 2, 5]


def test_strange_names(tmp_path: Path) -> None:
    names = [b"new\nline.png", b"bad\xff\xfe.png", b"-rf *.png", b"tab\t.png"]
    image = folder(tmp_path / "one", a=plain(7, "L")) / "a.png"
    (tmp_path / "many").mkdir()
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path / "many"), name), "wb") as file:
            file.write(image.read_bytes())
    samples = ImageFolder(path=tmp_path / "many", size=(4,), memory=0.0).load(DatasetContext(cache=tmp_path / "cache"))
    assert samples.item_ids is not None
    assert [os.fsencode(i) for i in samples.item_ids] == sorted(names)
    assert len(split(samples, 2)[0]) == 2  # the names can be hashed
    (tmp_path / "many" / "x\n\x1b[31m.png").write_bytes(b"")
    with pytest.raises(ValueError, match="empty") as caught:
        ImageFolder(path=tmp_path / "many", size=(4,)).load(CONTEXT)
    assert str(caught.value).isprintable()


def test_links(tmp_path: Path) -> None:
    root = folder(tmp_path / "root", cat__a=plain(1, "L"), z=plain(2, "L"))
    (root / "cat" / "up").symlink_to(root)
    (root / "twin").symlink_to(root / "cat")
    (root / "self").symlink_to("self")
    (root / "self.png").symlink_to("self.png")
    os.mkfifo(root / "pipe.png")
    with pytest.raises(ValueError, match=r"self\.png"):  # a link to nothing is named
        ImageFolder(path=root, size=(4,)).load(CONTEXT)
    (root / "self.png").unlink()
    assert ImageFolder(path=root, size=(4,)).load(CONTEXT).item_ids == ["cat/a.png", "z.png"]
    (root / "cat" / "up").unlink()
    elsewhere = tmp_path / "links"
    elsewhere.mkdir()
    (elsewhere / "dog").symlink_to(root / "cat")
    (elsewhere / "z.png").symlink_to(root / "z.png")
    assert ImageFolder(path=elsewhere, size=(4,)).load(CONTEXT).item_ids == ["dog/a.png", "z.png"]


def test_a_folder_keeps_its_own_name(tmp_path: Path) -> None:
    root = folder(tmp_path, cat__x=plain(1, "L"), dog__y=plain(2, "L"))
    (root / "cat" / "also").symlink_to(root / "dog")
    (root / "bird").symlink_to(root / "dog")
    samples = ImageFolder(path=root, size=(4,)).load(CONTEXT)
    assert samples.item_ids == ["cat/x.png", "dog/y.png"]
    assert samples.class_names == ("cat", "dog")


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = folder(tmp_path, a=plain(1, "L"), **{"no\nway__b": plain(1, "L")}), os.scandir

    def refuse(path: str) -> object:
        if "way" in path:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"no\\nway/: Permission denied$"):
        ImageFolder(path=root, size=(4,)).load(CONTEXT)


def test_class_names_are_text(tmp_path: Path) -> None:
    """They are stored with the weights, as JSON."""
    for name in (b"bad\xff", b"caf\xc3\xa9"):
        os.mkdir(os.path.join(os.fsencode(tmp_path), name))
        plain(1, "L").save(os.path.join(os.fsdecode(os.fsencode(tmp_path)), os.fsdecode(name), "a.png"))
    samples = ImageFolder(path=tmp_path, size=(4,)).load(CONTEXT)
    assert samples.class_names == ("bad\\xff", "caf\u00e9")
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1]


def test_class_folders(tmp_path: Path) -> None:
    root = folder(tmp_path, dog__b__x=plain(1, "L"), cat__a=plain(2, "L"), dog__a=plain(3, "L"))
    samples = ImageFolder(path=root, size=(4,)).load(CONTEXT)
    assert samples.class_names == ("cat", "dog")
    assert samples.labels is not None
    assert samples.labels.dtype == torch.int64
    assert list(zip(samples.item_ids or [], samples.labels.tolist(), strict=True)) == [
        ("cat/a.png", 0),
        ("dog/a.png", 1),
        ("dog/b/x.png", 1),
    ]
    assert ImageFolder(path=root, size=(4,), labels="none").load(CONTEXT).labels is None
    assert ImageFolder(path=root / "dog", size=(4,)).load(CONTEXT).labels is None  # one folder, and a file beside it
    (root / "cat" / "a.png").unlink()
    assert ImageFolder(path=root, size=(4,)).load(CONTEXT).class_names == ()  # one class is none
    folder(root, top=plain(1, "L"), cat__a=plain(2, "L"))
    assert ImageFolder(path=root, size=(4,)).load(CONTEXT).labels is None


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no images in .*\.png \.jpg"):
        ImageFolder(path=tmp_path).load(CONTEXT)
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        ImageFolder(path=tmp_path / "nowhere").load(CONTEXT)
    with pytest.raises(ValueError, match=r"notes\.txt is not a folder"):
        ImageFolder(path=tmp_path / "notes.txt").load(CONTEXT)


# -- image-folder: bad files -------------------------------------------------------------------------------------------


def huge_png(side: int) -> bytes:
    """A valid PNG of side x side 1-bit pixels whose data are missing: a few bytes that claim gigabytes."""
    return png(side, side, 1, 0, b"")


def bad_files() -> dict[str, tuple[bytes, str]]:
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = {}
    for kind in ("PNG", "JPEG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(noise.numpy()).save(buffer, kind)
        whole[kind] = buffer.getvalue()
    return {
        "empty.png": (b"", "the file is empty"),
        "text.png": (b"Dear diary, ...", "is not an image"),
        "vector.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        "cut.png": (whole["PNG"][:3000], "cannot be decoded"),
        "cut.jpg": (whole["JPEG"][:1500], "truncated"),
        "cut.tif": (whole["TIFF"][:3000], ""),
        "bomb.png": (huge_png(9_500), "more than 89 million pixels"),
        "bomb2.png": (huge_png(12_000), "more than 89 million pixels"),
        "bomb3.png": (huge_png(100_000), "more than 89 million pixels"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_bad_file_is_named(tmp_path: Path, name: str) -> None:
    content, reason = bad_files()[name]
    folder(tmp_path, a=plain(1, "L"), z=plain(2, "L"))
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError) as caught:
            ImageFolder(path=tmp_path, size=(4,)).load(CONTEXT)
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert reason in message
    assert "--dataset.skip-bad" in message
    assert "\n" not in message
    for memory in (2.0, 0.0):
        with pytest.warns(UserWarning, match=f"left out 1 of 3 image files: .*{name}") as record:
            samples = ImageFolder(path=tmp_path, size=(4,), skip_bad=True, memory=memory).load(CONTEXT)
        assert len(record) == 1
        assert samples.item_ids == ["a.png", "z.png"]
        assert samples.take([0, 1])[0][:, 0, 0, 0].tolist() == [1, 2]


def tiff_gray(bits: int, photometric: int, rows: bytes) -> bytes:
    """An uncompressed gray TIFF of 4 x 4 pixels."""
    tags = {256: 4, 257: 4, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 4, 279: len(rows)}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    file.write_bytes(tiff_gray(16, 1, struct.pack("<H", 257 * 40) * 16))
    assert only(tmp_path).unique().tolist() == [40]
    for image in (
        plain(0.5, "F"),
        plain((50, 128, 128), "LAB"),
        tiff_gray(12, 1, b"\xff" * 24),
        tiff_gray(16, 0, b"0" * 32),
    ):
        if isinstance(image, bytes):
            file.write_bytes(image)
        else:
            image.save(file)
        for memory in (2.0, 0.0):  # known from the header, so also before images are decoded as they are needed
            with pytest.raises(ValueError, match=r"a\.tif: .* not supported"):
                ImageFolder(path=tmp_path, size=(4,), memory=memory).load(CONTEXT)
    for value in (70_000, -1):
        Image.fromarray(np.full((4, 4), value, np.int32)).save(file)
        with pytest.raises(ValueError, match=r"a\.tif: .*do not fit 16 bits"):
            ImageFolder(path=tmp_path, size=(4,)).load(CONTEXT)


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_cut_file_never_becomes_another_picture(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    noise = torch.randint(0, 256, (24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    buffer, file, refused = io.BytesIO(), tmp_path / "a.png", 0
    Image.fromarray(noise.numpy()).save(buffer, kind, **options)
    file.write_bytes(buffer.getvalue())
    whole = read_image(file)
    for length in {*range(0, len(buffer.getvalue()), 61), *range(40), len(buffer.getvalue()) - 1}:
        file.write_bytes(buffer.getvalue()[:length])
        try:
            assert torch.equal(read_image(file), whole), length  # what was lost said nothing of the pixels
        except BadImage:
            refused += 1
    assert refused >= len(buffer.getvalue()) // 61


def test_a_file_cut_while_it_is_read(tmp_path: Path) -> None:
    """A file that is mapped into memory would end the process."""
    file = tmp_path / "a.tif"
    plain(7, "L", (500, 500)).save(file)

    def read() -> None:
        with opened(str(file)) as image:
            os.truncate(file, 1000)
            image.load()

    with pytest.raises(BadImage, match=r"a\.tif: .*truncated"):
        read()


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match=r"pipe\.png: not a regular file"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="Is a directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("memory", [2.0, 0.0])
def test_a_file_that_disappears_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: float
) -> None:
    folder(tmp_path, a=plain(1, "L"), b=plain(2, "L"))
    monkeypatch.setattr("difftool_plugins.datasets.image_folder.list_images", lambda root: ["a.png", "b.png", "c.png"])
    with pytest.raises(ValueError, match=r"c\.png: No such file or directory; use --dataset\.skip-bad"):
        ImageFolder(path=tmp_path, size=(4,), memory=memory).load(CONTEXT)
    with pytest.warns(UserWarning, match=r"left out 1 of 3 .*c\.png: No such file"):
        samples = ImageFolder(path=tmp_path, size=(4,), memory=memory, skip_bad=True).load(CONTEXT)
    assert samples.item_ids == ["a.png", "b.png"]


def test_bad_files_only(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 image files .*a\.png: the file is empty"):
        ImageFolder(path=tmp_path, skip_bad=True).load(CONTEXT)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    folder(tmp_path, z=plain(1, "L"))
    for i in range(25):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out 25 of 26 .*; and 15 more$"):
        ImageFolder(path=tmp_path, size=(4,), skip_bad=True).load(CONTEXT)


# -- image-folder: in memory, or not -----------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    from skimage import data

    root = tmp_path / "photographs"
    for i, photograph in enumerate([data.astronaut(), data.camera(), data.coffee(), data.chelsea(), data.coins()]):
        for angle in (0, 5, 10):
            file = root / f"{i % 2}" / f"{i}-{angle}.{'png' if angle else 'jpg'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph).resize((90, 70)).rotate(angle).save(file)
    return root


def test_streamed_equals_in_memory(photographs: Path) -> None:
    held = ImageFolder(path=photographs, size=(24, 16)).load(CONTEXT)
    streamed = ImageFolder(path=photographs, size=(24, 16), memory=0.0).load(CONTEXT)
    assert not isinstance(streamed.items, torch.Tensor)
    assert streamed.shape == held.shape == (3, 24, 16)
    assert streamed.item_ids == held.item_ids
    everything = range(len(held))
    assert torch.equal(held.take(everything)[0], streamed.take(everything)[0])
    assert torch.equal(held.take(everything)[1].label, streamed.take(everything)[1].label)  # type: ignore[union-attr, arg-type]
    again = pickle.loads(pickle.dumps(streamed.items))
    assert torch.equal(again[3], held.items[3])


def test_workers_change_nothing(photographs: Path) -> None:
    batches = {}
    for memory, workers in ((2.0, 0), (0.0, 0), (0.0, 2)):
        samples = ImageFolder(path=photographs, size=(16,), memory=memory, augment=("flip",)).load(CONTEXT)
        stream = Batches(samples, 4, seed=5, workers=workers).start(2)
        batches[memory, workers] = [next(stream) for _ in range(5)]
        stream.close()
    first = batches.pop((2.0, 0))
    for other in batches.values():
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a.items, b.items)
            assert torch.equal(a.condition.label, b.condition.label)  # type: ignore[arg-type]


def test_good_files_are_remembered_until_they_change(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from difftool_plugins.datasets.images.files import ImageFiles

    opened: list[str] = []
    check = ImageFiles.check
    monkeypatch.setattr(ImageFiles, "check", lambda self, i: (opened.append(self.names[i]), check(self, i)))
    dataset, context = ImageFolder(path=photographs, memory=0.0), DatasetContext(cache=tmp_path / "cache")
    dataset.load(context)
    assert len(opened) == 15
    opened.clear()
    dataset.load(context)
    assert opened == []
    plain((1, 2, 3)).save(photographs / "0" / "0-5.png")
    dataset.load(context)
    assert opened == ["0/0-5.png"]
    opened.clear()
    for rubbish in ("{", "[1]", json.dumps({"0/0-5.png": []})):  # a damaged index costs time, nothing else
        (index,) = (tmp_path / "cache").iterdir()
        index.write_text(rubbish)
        dataset.load(context)
        assert len(opened) == 15
        opened.clear()
    (photographs / "0" / "0-5.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"0-5\.png"):
        dataset.load(context)


def test_bad_files_are_left_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run leaves out the same files, and the good ones need no second look."""
    from difftool_plugins.datasets.images.files import ImageFiles

    root, context = folder(tmp_path / "images", a=plain(1, "L"), b=plain(2, "L")), DatasetContext(cache=tmp_path / "c")
    dataset = ImageFolder(path=root, size=(4,), memory=0.0, skip_bad=True)
    alone = dataset.load(context).fingerprint
    (root / "aa.png").write_bytes((root / "a.png").read_bytes()[:50])
    decoded: list[str] = []
    read = ImageFiles.__getitem__
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda self, i: (decoded.append(self.names[i]), read(self, i))[1])
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"left out 1 of 3 .*aa\.png"):
            samples = dataset.load(context)
        assert samples.item_ids == ["a.png", "b.png"]
        assert samples.fingerprint == alone
        assert samples.take([0, 1])[0][:, 0, 0, 0].tolist() == [1, 2]
        assert decoded == ["aa.png", "a.png", "b.png"]
        decoded.clear()


def test_many_images_are_not_decoded_beforehand(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from difftool_plugins.datasets.images.files import ImageFiles

    small = ImageFolder(path=photographs, size=(16,)).load(CONTEXT)
    assert isinstance(small.items, torch.Tensor)
    monkeypatch.setattr("difftool_plugins.datasets.options.IMAGES_IN_MEMORY", 14)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFiles, "__getitem__", lambda self, i: pytest.fail("decoded"))
        many = ImageFolder(path=photographs, size=(16,)).load(CONTEXT)
    assert torch.equal(many.take(range(15))[0], small.items)
    requested = ImageFolder(path=photographs, size=(16,), memory=2.0).load(CONTEXT)  # a given size wins
    assert torch.equal(tensor(requested), small.items)


def test_images_that_do_not_fit_into_memory(tmp_path: Path) -> None:
    from difftool_plugins.datasets.images.files import ImageFiles, read_all

    with pytest.raises(ValueError, match=r"2793967\.7 GiB of images do not fit into memory; set a lower"):
        read_all(ImageFiles(root="", names=[""] * 10**6, channels=3, size=(10**6, 10**3), skip_bad=False))


def test_fingerprint(photographs: Path, tmp_path: Path) -> None:
    def fingerprint(root: Path, **options: object) -> str:
        return ImageFolder(path=root, size=(8,), memory=0.0, **options).load(CONTEXT).fingerprint  # type: ignore[arg-type]

    assert ImageFolder(path=photographs, size=(8,)).load(CONTEXT).fingerprint == ""  # the pixels speak for themselves
    first = fingerprint(photographs)
    assert len(first) == 64
    copy = tmp_path / "copy"
    shutil.copytree(photographs, copy, copy_function=shutil.copyfile)  # new times
    assert fingerprint(copy) == first
    (copy / "0" / "0-5.png").rename(copy / "0" / "0-6.png")
    assert fingerprint(copy) != first
    (copy / "0" / "0-6.png").rename(copy / "0" / "0-5.png")
    assert fingerprint(copy) == first
    with (copy / "0" / "0-5.png").open("ab") as file:
        file.write(b"x")
    assert fingerprint(copy) != first


def test_images_are_not_flipped_by_default(photographs: Path) -> None:
    assert ImageFolder(path=photographs).load(CONTEXT).augment is None


# -- examples ----------------------------------------------------------------------------------------------------------

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_digits_tutorial_makes_a_folder_of_ten_classes(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    script, target = EXAMPLES / "tutorials" / "digits.py", tmp_path / "digits"
    run = subprocess.run([sys.executable, script, target, "--size", "8"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"{target}\n")
    samples = ImageFolder(path=target, size=(8,), channels=1).load(CONTEXT)
    assert len(samples) == 1797
    assert samples.class_names == tuple("0123456789")
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = sorted(range(1797), key=lambda i: (digits.target[i], i))
    assert np.array_equal((tensor(samples)[:, 0].double() * 16 / 255).round(), digits.images[order])
    again = subprocess.run([sys.executable, script, target], capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (1, "")
    assert "not empty" in again.stderr
