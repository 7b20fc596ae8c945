"""Conditions on the side of the data: columns of samples, batches, facts and `--condition`."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from torch import Tensor

import difftool
from difftool import PIXELS, Condition, ConditionSpec, Dataset, DatasetContext, DifftoolError, Samples
from difftool.data.batches import Batch, Batches
from difftool.data.columns import COLUMNS as COLUMNS_OF
from difftool.data.facts import DataFacts
from difftool.data.memory import Memory
from difftool.data.samples import fingerprint
from difftool.data.splitting import split
from difftool.paths import without_paths
from difftool.plugins.build import load_samples
from difftool.testing import datasets as laws
from difftool.testing.laws import Skipped
from difftool_plugins.datasets.columns import conditions
from difftool_plugins.datasets.image_folder import ImageFolder

N, SHAPE = 11, (3, 4, 6)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator())


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator(), dtype=torch.uint8)


VECTORS = randn(N, 2) * torch.tensor([5.0, 0.1]) + torch.tensor([3.0, -20.0])
COLUMNS: dict[str, Tensor] = {
    "vectors": VECTORS,
    "images": pixels(N, 2, 4, 6),
    "tokens": randn(N, 3, 5),
    "noise": randn(N, *SHAPE),
}


class Source:
    """Rows that are read one at a time."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return self.rows[i]


def samples(source: Callable[[Tensor], Any] = lambda rows: rows, **changes: Any) -> Samples:
    """Return images with every condition, each column in memory or a source."""
    columns = {name: source(rows) for name, rows in COLUMNS.items()}
    items = source(pixels(N, *SHAPE))
    return Samples(**{"items": items, "shape": SHAPE, "labels": torch.arange(N) % 3, **columns, **PIXELS, **changes})


def gray(items: Tensor, _: torch.Generator) -> Tensor:
    return items.float().mean(1, keepdim=True).to(torch.uint8)


def speckled(items: Tensor, random: torch.Generator) -> Tensor:
    return items * (torch.rand(items.shape, generator=random, device=items.device) < 0.5)


def same(a: Batch, b: Batch) -> bool:
    """Compare batches to the last bit."""
    pairs = [(a.items, b.items), (a.noise, b.noise)]
    assert (a.condition is None) == (b.condition is None)
    if a.condition is not None and b.condition is not None:
        assert a.condition.tensors().keys() == b.condition.tensors().keys()
        pairs += [(field, b.condition.tensors()[name]) for name, field in a.condition.tensors().items()]
    return all(x is y if x is None or y is None else x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


# --- columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [lambda rows: rows, Source], ids=["memory", "source"])
def test_an_item_comes_with_its_conditions_and_its_noise(source: Callable[[Tensor], Any]) -> None:
    made = samples(source)
    items, condition = made.take([4, 9])
    noise = made.take_noise([4, 9])
    assert condition is not None
    assert noise is not None
    assert torch.equal(items, pixels(N, *SHAPE)[[4, 9]])
    assert torch.equal(noise, COLUMNS["noise"][[4, 9]])
    for field, name in (("vector", "vectors"), ("image", "images"), ("tokens", "tokens")):
        assert torch.equal(condition.tensors()[field], COLUMNS[name][[4, 9]])
    assert condition.label is not None
    assert condition.label.tolist() == [1, 0]
    assert not condition.hidden.any()
    assert made.conditions == ("label", "vector", "image", "tokens")


def test_columns_are_taken_from_numpy() -> None:
    made = samples(vectors=VECTORS.double().numpy(), images=COLUMNS["images"].numpy(), tokens=np.ones((N, 1, 1), "<i2"))
    condition = made.take([3])[1]
    assert condition is not None
    assert condition.vector is not None
    assert torch.equal(condition.vector, VECTORS[3:4].double())
    assert DataFacts.of(made).condition == ConditionSpec(classes=3, vector=2, image=(2, 4, 6), tokens=(1, 1))


def test_what_is_held_out_keeps_its_conditions() -> None:
    for source in (lambda rows: rows, Source):
        whole = samples(source)
        parts = split(whole, 4)
        ids = {bytes(item.numpy()): i for i, item in enumerate(pixels(N, *SHAPE))}
        for part in parts:
            assert part is not None
            items, condition = part.take(range(len(part)))
            rows = [ids[bytes(item.numpy())] for item in items]
            expected = whole.take(rows)
            assert condition is not None
            assert same(
                Batch(items, condition, part.take_noise(range(len(part)))), Batch(*expected, whole.take_noise(rows))
            )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too few vectors": ({"vectors": randn(3, 2)}, "3 vectors for 11 items"),
    "vectors of one axis": ({"vectors": randn(N)}, r"vectors must have the shape \(N, D\)"),
    "vectors of no numbers": ({"vectors": torch.zeros(N, 0)}, r"vectors must have the shape \(N, D\)"),
    "a single vector": ({"vectors": torch.tensor(3.0)}, "vectors must have a row for each item"),
    "NaN in vectors": ({"vectors": torch.full((N, 2), math.nan)}, r"vectors hold NaN .* \(first in item 0\)"),
    "vectors far from 0": ({"vectors": 1e9 + 100 * randn(N, 1)}, "channel 0 of the vectors deviates"),
    "huge vectors": ({"vectors": 1e35 * randn(N, 1)}, "no model file could describe"),
    "long vectors": ({"vectors": torch.zeros(N, 2**14 + 1)}, "larger than 16384"),
    "texts": ({"vectors": np.array([["a"]] * N)}, "vectors must be numbers"),
    "an object": ({"tokens": object()}, "tokens must be a tensor, a NumPy array or a source"),
    "tokens of two axes": ({"tokens": randn(N, 2)}, r"tokens must have the shape \(N, L, D\)"),
    "images of two axes": ({"images": pixels(N, 4, 6)}, r"images must have the shape \(N, C, H, W\)"),
    "images of another size": ({"images": pixels(N, 1, 4, 4)}, r"as high and wide as the items: the items are \(3, 4,"),
    "images of points": ({"items": randn(N, 2), "shape": (2,), "form": None, "noise": None}, "as high and wide as"),
    "integers as images": ({"images": pixels(N, 1, 4, 6).long()}, "images must be uint8 pixels, or floats"),
    "other images": (
        {"images": lambda items, random: items[:, :, :2]},
        r"images\(\) of the dataset: images must be as",
    ),
    "images that fail": ({"images": lambda items, random: 1 / 0}, r"images\(\) of the dataset failed: ZeroDivision"),
    "no images": ({"images": lambda items, random: None}, r"images\(\) of the dataset: must return a tensor"),
    "one image": ({"images": lambda items, random: pixels(2, 1, 4, 6)}, "made 2 images of 1 items"),
    "noise of another shape": ({"noise": randn(N, 3, 4, 5)}, r"noise must be floats of the shape of an item, \(3, 4"),
    "whole numbers as noise": ({"noise": pixels(N, *SHAPE)}, "noise must be floats"),
    "a source of another shape": ({"vectors": Source(randn(N))}, r"vectors must have the shape \(N, D\)"),
    "a source of lists": (
        {"vectors": [[1.0]] * N},
        "the entry of vectors for item 0 is not a tensor",
    ),
}


class Loaded(Dataset, name="loaded"):
    """Data made by a function."""

    def load(self, context: DatasetContext) -> Samples:
        made: Samples = self.make()  # type: ignore[attr-defined]
        return made


def dataset(make: Callable[[], Samples]) -> Dataset:
    return type("Loaded", (Loaded,), {"make": staticmethod(make), "__doc__": "Data."}, name="loaded")()


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    data = dataset(lambda: samples(**changes))
    with pytest.raises(DifftoolError, match=words) as caught:
        difftool.train(dataset=data, steps=1, device="cpu", out=tmp_path / "r")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_data_are_known_by_their_conditions() -> None:
    """Whole numbers count in the fingerprint of data from outside, and floats too in that of data in memory."""
    made = samples()
    others = [replace(made, images=made.take([*range(N)])[1].image.flip(0)), replace(made, labels=None)]  # type: ignore
    assert len({fingerprint(one) for one in (made, *others)}) == 3
    moved = replace(made, vectors=VECTORS + 1)
    assert fingerprint(moved) == fingerprint(made)
    assert Memory.of(moved).fingerprint != Memory.of(made).fingerprint


# --- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_sources_give_the_batches_of_memory(workers: int) -> None:
    """Also if only one of the columns is a source, all are read with the item."""
    straight = list(islice(Batches(samples(), 4, seed=0).start(2), 4))
    for lazy in (samples(Source), samples(tokens=Source(COLUMNS["tokens"])), samples(noise=Source(COLUMNS["noise"]))):
        batches = Batches(lazy, 4, seed=0, workers=workers).start(2)
        assert all(same(a, b) for a, b in zip(batches, straight, strict=False))
    indices = Batches(samples(), 4, seed=0).indices(2)
    assert same(straight[0], Batch(*samples().take(indices.tolist()), samples().take_noise(indices.tolist())))


def flipped(items: Tensor, random: torch.Generator, images: Tensor) -> tuple[Tensor, Tensor]:
    heads = (torch.rand(len(items), generator=random) < 0.5).view(-1, 1, 1, 1)
    return torch.where(heads, items.flip(-1), items), torch.where(heads, images.flip(-1), images)


@pytest.mark.parametrize("source", [lambda rows: rows, Source], ids=["memory", "source"])
def test_items_and_stored_images_are_augmented_alike(source: Callable[[Tensor], Any]) -> None:
    items = pixels(N, *SHAPE)
    made = samples(source, images=source(items[:, :1]), augment=flipped)
    turned = 0
    for batch in islice(Batches(made, 4, seed=0).start(0, block=3), 4):
        assert batch.condition is not None
        assert batch.condition.image is not None
        assert torch.equal(batch.items[:, :1], batch.condition.image)
        turned += sum(not any(torch.equal(item, one) for one in items) for item in batch.items)
    assert turned > 0


def test_images_are_computed_from_augmented_items() -> None:
    made = samples(images=gray, augment=lambda items, random: flipped(items, random, items)[0])
    for batch in islice(Batches(made, 4, seed=0).start(0, block=3), 2):
        assert batch.condition is not None
        assert torch.equal(batch.condition.image, gray(batch.items, generator()))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    "changes", [{}, {"images": speckled}, {"augment": flipped}, {"images": speckled, "augment": speckled}]
)
def test_each_process_gets_its_part_of_every_batch(in_memory: bool, changes: dict[str, Any]) -> None:
    """Random images and flips do not depend on the number of processes, or on the step at which one enters."""
    made = samples((lambda rows: rows) if in_memory else Source, **changes)
    whole = list(islice(Batches(made, 5, seed=0).start(2), 3))
    assert same(next(Batches(made, 5, seed=0).start(3)), whole[1])
    parts = [list(islice(Batches(made, 5, seed=0, part=slice(*ends)).start(2), 3)) for ends in ((0, 2), (2, 5))]
    for batch, *own in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part.items for part in own]), batch.items)
        for name, field in batch.condition.tensors().items():  # type: ignore[union-attr]
            assert torch.equal(torch.cat([part.condition.tensors()[name] for part in own]), field)  # type: ignore


def test_random_images_of_held_out_items_are_always_the_same() -> None:
    made = samples(images=speckled)
    whole = made.take(range(N))[1]
    assert whole is not None
    assert whole.image is not None
    for i in (0, 7):
        one = made.take([i])[1]
        assert one is not None
        assert torch.equal(one.image, whole.image[i : i + 1])


BAD_AUGMENTS: dict[str, tuple[Any, str]] = {
    "no images": (lambda items, random, images: items, r"must return \(items, images\)"),
    "smaller images": (lambda items, random, images: (items, images[:, :1]), r"made \(4, 1, 4, 6\) of \(4, 2, 4, 6\)"),
    "floats": (lambda items, random, images: (items, images / 255), "made torch.float32 of images of torch.uint8"),
}


@pytest.mark.parametrize(("augment", "words"), BAD_AUGMENTS.values(), ids=BAD_AUGMENTS)
def test_an_augmentation_keeps_the_form_of_images(augment: Any, words: str) -> None:
    with pytest.raises(DifftoolError, match=words):
        next(Batches(samples(augment=augment), 4, seed=0).start(0))


def test_rows_that_are_read_late_are_checked() -> None:
    for bad, words in ((torch.full((2,), math.nan), "vectors hold NaN"), (torch.zeros(3), "vectors differ in shape")):
        rows: list[Tensor] = [*VECTORS[:7], bad, *VECTORS[8:]]
        with pytest.raises(DifftoolError, match=rf"{words}.*\(item 7\)"):
            list(islice(Batches(samples(vectors=rows), 4, seed=0).start(0), 3))


# --- facts -------------------------------------------------------------------------------------------------------


def test_the_network_gets_vectors_of_unit_variance_and_images_in_model_units() -> None:
    made = samples()
    facts = DataFacts.of(made)
    raw = made.take(range(N))[1]
    condition = facts.model_condition(raw)
    assert condition is not None
    assert condition.vector is not None
    torch.testing.assert_close(condition.vector.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(condition.vector.std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(condition.image, COLUMNS["images"] / 127.5 - 1)
    assert {field.dtype for name, field in condition.tensors().items() if name not in ("label", "hidden")} == {
        torch.float32
    }
    assert torch.equal(condition.tokens, COLUMNS["tokens"])  # type: ignore[arg-type]
    floats = facts.model_condition(Condition(image=randn(2, 2, 4, 6).double(), hidden=torch.zeros(2).bool()))
    assert floats is not None
    torch.testing.assert_close(floats.image, randn(2, 2, 4, 6))


def test_vectors_far_from_0_keep_their_digits() -> None:
    times = 1.7e9 + torch.arange(N, dtype=torch.float64).view(-1, 1)
    facts = DataFacts.of(samples(vectors=times))
    condition = facts.model_condition(samples(vectors=times).take(range(N))[1])
    assert condition is not None
    expected = (torch.arange(N) - 5) / math.sqrt(10)
    torch.testing.assert_close(condition.vector, expected.view(-1, 1), atol=1e-6, rtol=0)


def test_facts_of_conditions_are_read_back() -> None:
    facts = DataFacts.of(samples())
    assert facts.condition == ConditionSpec(classes=3, vector=2, image=(2, 4, 6), tokens=(3, 5))
    assert DataFacts.read(json.loads(json.dumps(facts.document()))) == facts
    assert DataFacts.of(samples(Source)) == facts


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a vector of 0": lambda d: d["condition"].update(vector=0),
    "a vector of text": lambda d: d["condition"].update(vector="2"),
    "a vector of true": lambda d: d["condition"].update(vector=True),
    "a huge vector": lambda d: d["condition"].update(vector=10**9),
    "a vector without a scale": lambda d: d.pop("vector_scale"),
    "a scale without a vector": lambda d: d["condition"].pop("vector"),
    "a shift of another length": lambda d: d["vector_shift"].append(0.0),
    "a scale of 0": lambda d: d.update(vector_scale=[1.0, 0.0]),
    "a negative scale": lambda d: d.update(vector_scale=[1.0, -1.0]),
    "an infinite shift": lambda d: d.update(vector_shift=[1e300, 0.0]),
    "an image of two axes": lambda d: d["condition"].update(image=[4, 6]),
    "an image of another size": lambda d: d["condition"].update(image=[2, 4, 7]),
    "an image of a million channels": lambda d: d["condition"].update(image=[10**6, 4, 6]),
    "tokens of one axis": lambda d: d["condition"].update(tokens=[3]),
    "too many tokens": lambda d: d["condition"].update(tokens=[2**16, 2**14]),
    "a condition that is a list": lambda d: d.update(condition=[1]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_facts_are_refused(damage: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(json.dumps(DataFacts.of(samples()).document()))
    damage(document)
    with pytest.raises(ValueError, match=r"condition|vector"):
        DataFacts.read(document)


# --- the choice --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [("none",), ("label",), ("vector", "tokens"), ("image",)])
def test_a_choice_leaves_the_others_out(chosen: tuple[str, ...]) -> None:
    made = load_samples(dataset(samples), 0, chosen)
    fields = () if chosen == ("none",) else chosen
    assert made.conditions == fields
    batch = next(Batches(made, 4, seed=0).start(0))
    assert set(batch.condition.tensors() if batch.condition else ()) - {"hidden"} == set(fields)
    assert tuple(DataFacts.of(made).condition.shapes) == fields
    assert batch.noise is not None


def test_items_are_augmented_as_before_without_their_images() -> None:
    made = samples(augment=flipped)
    whole, without = (next(Batches(one, 4, seed=0).start(0)) for one in (made, made.select(["label"])))
    assert torch.equal(whole.items, without.items)


def test_a_condition_that_the_data_do_not_bring_is_refused(run: Run) -> None:
    outcome = run("train", "--dataset", "two-moons", "--dataset.labels", "--condition", "vector", "--steps", 1)
    assert outcome.code == 2
    assert "--condition: dataset two-moons brings no vector; it brings label" in outcome.error
    outcome = run("train", "--condition", "label", "--steps", 1)
    assert "--condition: dataset swiss-roll brings no label; it brings no condition" in outcome.error
    for value, words in (("none,label", "must be none, or names"), ("angle", "must be 'none', 'label'")):
        outcome = run("train", "--condition", value, "--steps", 1)
        assert outcome.code == 2
        assert f"--condition: {words}" in outcome.error


def test_a_run_without_its_labels_is_one_without_classes(run: Run, tmp_path: Path) -> None:
    base = ("--dataset", "two-moons", "--dataset.labels", "--dataset.n", 100, "--backbone.width", 8, "--steps", 2)
    assert run("train", *base, "--preview-every", 1, "--condition", "none", "--out", "r").code == 0
    model = difftool.load(tmp_path / "r", device="cpu")
    assert model.data.condition == ConditionSpec()
    assert model.load_samples().conditions == ()
    assert run("reconstruct", "r", "--out", "x.png").code == 0


# --- noise -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [lambda rows: rows, Source], ids=["memory", "source"])
def test_the_noise_of_an_item_is_the_noise_of_its_training(source: Callable[[Tensor], Any], tmp_path: Path) -> None:
    """Every input of training, and of the held-out loss, is a mix of an item and its own noise."""
    from difftool.runs.recipe import build_recipe
    from difftool.training.inputs import inputs_from
    from difftool.training.prepare import prepare

    data = dataset(lambda: Samples(items=source(randn(N, 2)), shape=(2,), noise=source(10 + randn(N, 2))))
    recipe = build_recipe({"training": {"batch_size": 4, "steps": 3}}, parts={"dataset": data})
    experiment = prepare(recipe, torch.device("cpu"))
    batches = Batches(experiment.train, 4, seed=0)
    for inputs in islice(inputs_from(0, batches, experiment.objective, recipe.training, torch.contiguous_format), 5):
        torch.testing.assert_close(inputs.eps, inputs.x_0 + 10)


# --- built-in data -------------------------------------------------------------------------------------------------


def test_the_angle_of_a_roll_and_the_mean_of_a_gaussian_are_vectors() -> None:
    roll = load_samples(difftool.component("dataset", "swiss-roll", n=200, condition="angle"), 0)
    t = roll.columns["vector"][:]
    expected = torch.cat([t * t.cos(), t * t.sin()], dim=1) / 10  # type: ignore[union-attr]
    torch.testing.assert_close(roll.take_items(range(200)).float(), expected, atol=1e-5, rtol=0)
    options: dict[str, Any] = {"n": 90, "components": 3, "std": 0.01, "condition": "mean"}
    gaussians = load_samples(difftool.component("dataset", "gaussian-mixture", **options), 0)
    distance = (gaussians.take_items(range(90)) - gaussians.columns["vector"][:]).norm(dim=1)
    assert distance.max() < 0.06
    assert len({tuple(mean) for mean in gaussians.columns["vector"][:].tolist()}) == 3
    assert gaussians.mixture is not None


@pytest.mark.parametrize(("name", "value"), [("swiss-roll", "angle"), ("gaussian-mixture", "mean")])
def test_points_with_vectors_train(name: str, value: str, run: Run, tmp_path: Path) -> None:
    base = ("--dataset", name, "--dataset.n", 100, "--backbone.width", 8, "--steps", 2, "--held-out", 10)
    assert run("train", *base, "--dataset.condition", value, "--out", "r").code == 0
    model = difftool.load(tmp_path / "r", device="cpu")
    assert model.data.condition == ConditionSpec(vector=1 if value == "angle" else 2)
    plain = load_samples(difftool.component("dataset", name, n=100), 0)
    assert torch.equal(model.load_samples().take_items(range(100)), plain.take_items(range(100)))


def test_gray_is_the_gray_of_pillow() -> None:
    items = pixels(4, 3, 64, 64)
    expected = [np.asarray(Image.fromarray(item.permute(1, 2, 0).numpy()).convert("L")) for item in items]
    assert np.array_equal(conditions.gray(items, generator())[:, 0].numpy(), np.stack(expected))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_shrinking_again_gives_the_small_image(factor: int) -> None:
    items = pixels(4, 3, 12, 24)
    images = conditions.shrunk(items, generator(), factor)
    small = images[..., ::factor, ::factor]
    assert (images.dtype, images.shape) == (torch.uint8, items.shape)
    means = items.float().view(4, 3, 12 // factor, factor, 24 // factor, factor).mean((3, 5))
    assert (small - means).abs().max() <= 0.5001
    assert torch.equal(conditions.shrunk(images, generator(), factor), images)
    up = [Image.fromarray(one.permute(1, 2, 0).numpy()).resize((24, 12), Image.Resampling.NEAREST) for one in small]
    assert np.array_equal(np.stack([np.asarray(image) for image in up]), images.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_hides_some_of_each_image(channels: int, tmp_path: Path) -> None:
    """The condition is what `read_image` makes of a PNG that is transparent where the image is hidden."""
    items = pixels(64, channels, 16, 24)
    images = conditions.masked(items, generator())
    seen = images[:, -1:]
    assert set(seen.unique().tolist()) == {0, 255}
    assert torch.equal(images[:, :-1], items * (seen // 255))
    share = (seen == 0).float().mean((1, 2, 3))
    assert share.min() > 0
    assert share.max() < 1
    assert 0.1 < share.mean() < 0.6
    assert len({bytes(one.numpy()) for one in seen}) == 64
    assert torch.equal(conditions.masked(items, generator()), images)
    straight = torch.cat([items[0], seen[0]]).permute(1, 2, 0).numpy()
    Image.fromarray(straight, "LA" if channels == 1 else "RGBA").save(tmp_path / "x.png")
    assert torch.equal(difftool.read_image(tmp_path / "x.png", channels=channels + 1), images[0])


TRANSPARENT: dict[str, Callable[[Path], object]] = {
    "a palette": lambda path: palette().save(path, transparency=3),
    "gray of 16 bits": lambda path: Image.fromarray(np.array([[0, 7], [65535, 7]], "<u2")).save(path, transparency=7),
    "no transparency": lambda path: Image.new("RGB", (2, 2), (1, 2, 3)).save(path),
    "half transparent": lambda path: Image.new("RGBA", (2, 2), (100, 200, 255, 128)).save(path),
    "large": lambda path: Image.new("RGBA", (1030, 1025), (100, 200, 255, 128)).save(path),
}


def palette() -> Image.Image:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 9, 8, 7, 0, 0, 0, 50, 60, 70])
    image.putpixel((1, 0), 3)
    return image


@pytest.mark.parametrize("what", TRANSPARENT)
def test_images_are_read_with_their_transparency(what: str, tmp_path: Path) -> None:
    TRANSPARENT[what](tmp_path / "x.png")
    colour, gray = (difftool.read_image(tmp_path / "x.png", channels=channels) for channels in (4, 2))
    first = {
        "a palette": ([9, 8, 7, 255], [0, 0, 0, 0]),
        "gray of 16 bits": ([0, 0, 0, 255], [0, 0, 0, 0]),
        "no transparency": ([1, 2, 3, 255], [1, 2, 3, 255]),
        "half transparent": ([50, 100, 128, 128], [50, 100, 128, 128]),
        "large": ([50, 100, 128, 128], [50, 100, 128, 128]),
    }[what]
    assert (colour[:, 0, 0].tolist(), colour[:, 0, 1].tolist()) == first
    assert torch.equal(gray[1], colour[3])
    assert gray[0].max() <= colour[:3].amax()


# --- folders of images ---------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder `items` of nine images of 24x16 pixels, and `edges` with gray ones of half the size, as JPEG."""
    for name in [f"{kind}/{i}" for kind in ("cat", "dog", "eel") for i in range(3)]:
        image = Image.fromarray(np.random.default_rng(len(name) + ord(name[-1])).integers(0, 256, (24, 16, 3), "u1"))
        for folder, suffix in (("items", "png"), ("edges", "jpg")):
            path = tmp_path / folder / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            (image if folder == "items" else image.convert("L").resize((8, 12))).save(path)
    return tmp_path


def folder(path: Path, **options: Any) -> Samples:
    chosen = {"path": path / "items", "size": (12, 8), **options}
    return load_samples(difftool.component("dataset", "image-folder", **chosen), 0)


@pytest.mark.parametrize("memory", [None, 0.0])
def test_a_folder_of_aligned_images_is_read_with_the_items(memory: float | None, pairs: Path) -> None:
    np.save(pairs / "tokens.npy", np.arange(9 * 2 * 3, dtype=np.float64).reshape(9, 2, 3))
    made = folder(pairs, condition=str(pairs / "edges"), tokens=pairs / "tokens.npy", memory=memory)
    assert made.in_memory == (memory is None)
    assert DataFacts.of(made).condition == ConditionSpec(classes=3, image=(1, 12, 8), tokens=(2, 3))
    items, condition = made.take(range(9))
    assert made.item_ids is not None
    assert condition is not None
    for k, name in enumerate(made.item_ids):
        edge = difftool.read_image(pairs / "edges" / name.replace(".png", ".jpg"), channels=1, size=(12, 8))
        assert torch.equal(condition.image[k], edge)  # type: ignore[index]
        assert torch.equal(items[k], difftool.read_image(pairs / "items" / name, size=(12, 8)))
    assert torch.equal(condition.tokens, torch.arange(54.0).view(9, 2, 3))  # type: ignore[arg-type]
    batches = list(islice(Batches(made, 4, seed=0, workers=1).start(0), 3))
    straight = Batches(folder(pairs, condition=str(pairs / "edges"), tokens=pairs / "tokens.npy"), 4, seed=0).start(0)
    assert all(same(a, b) for a, b in zip(batches, straight, strict=False))


def broken(pairs: Path, change: str) -> dict[str, Any]:
    """Damage the pairs, and return the options of the dataset."""
    edge = pairs / "edges/dog/1.jpg"
    options: dict[str, Any] = {"condition": str(pairs / "edges")}
    match change:
        case "missing":
            edge.unlink()
        case "twice":
            Image.new("L", (8, 12)).save(edge.with_suffix(".png"))
            Image.new("L", (8, 12)).save(edge.with_suffix(".bmp"))
            edge.unlink()
        case "turned":
            Image.new("L", (12, 8)).save(edge)
        case "wide":
            Image.new("L", (9, 12)).save(edge)
        case "damaged":
            edge.write_bytes(b"no image")
        case "nowhere":
            options["condition"] = str(pairs / "nowhere")
        case "itself":
            options["condition"] = str(pairs / "items/cat")
        case "of no images":
            (pairs / "empty").mkdir()
            options["condition"] = str(pairs / "empty")
    return options


BROKEN = {
    "missing": r"edges has no image for dog/1.png",
    "turned": r"edges/dog/1.jpg is 12x8 pixels, and .*items/dog/1.png 16x24; aligned images have the same proportions",
    "wide": r"edges/dog/1.jpg is 9x12 pixels",
    "damaged": r"edges/dog/1.jpg: is not an image .* use --dataset.skip-bad",
    "nowhere": r"nowhere does not exist; choose gray, mask, shrink:N, or a folder of images",
    "itself": r"items/cat lies in the folder of images itself",
    "of no images": r"no images in .*empty",
}


@pytest.mark.parametrize("memory", [None, 0.0])
@pytest.mark.parametrize("change", BROKEN)
def test_pairs_that_do_not_fit_are_refused(change: str, memory: float | None, pairs: Path) -> None:
    options = broken(pairs, change)
    with pytest.raises(DifftoolError, match=BROKEN[change]) as caught:
        folder(pairs, memory=memory, **options)
    assert "\n" not in str(caught.value)


def test_two_images_for_one_are_refused(pairs: Path) -> None:
    """An image of just the same name is taken; of others there must be one."""
    options = broken(pairs, "twice")
    assert torch.equal(folder(pairs, **options).take([4])[1].image, torch.zeros(1, 1, 12, 8).byte())  # type: ignore
    (pairs / "edges/dog/1.png").rename(pairs / "edges/dog/1.tiff")
    with pytest.raises(DifftoolError, match=r"edges has both dog/1.bmp and dog/1.tiff for dog/1.png"):
        folder(pairs, **options)


@pytest.mark.parametrize("memory", [None, 0.0])
@pytest.mark.parametrize("change", ["wide", "damaged"])
def test_bad_pairs_can_be_left_out(change: str, memory: float | None, pairs: Path) -> None:
    np.save(pairs / "tokens.npy", np.arange(9.0).reshape(9, 1, 1))
    options = broken(pairs, change)
    (pairs / "items/eel/0.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"left out 2 of 9 image files: .*(eel/0.png.*dog/1.jpg|dog/1.jpg.*eel/0.png)"):
        made = folder(pairs, memory=memory, skip_bad=True, tokens=pairs / "tokens.npy", **options)
    assert len(made) == 7
    assert made.take(range(7))[1].tokens.flatten().tolist() == [0, 1, 2, 3, 5, 7, 8]  # type: ignore[union-attr]


def test_partners_are_in_colour_if_one_of_the_first_is(pairs: Path) -> None:
    Image.new("RGB", (8, 12), (9, 8, 7)).save(pairs / "edges/dog/1.jpg")
    made = folder(pairs, condition=str(pairs / "edges"))
    assert DataFacts.of(made).condition.image == (3, 12, 8)


def test_partners_are_turned_as_their_exif_data_say(pairs: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (12, 8)).save(pairs / "edges/dog/1.jpg", exif=exif)
    assert len(folder(pairs, condition=str(pairs / "edges"), memory=0.0)) == 9


TOKENS: dict[str, tuple[Callable[[Path], object], str]] = {
    "too few rows": (lambda path: np.save(path, np.zeros((8, 1, 2))), "has 8 rows for 9 images"),
    "two axes": (lambda path: np.save(path, np.zeros((9, 2))), r"must hold numbers \(N, L, D\).* not float64 \(9, 2\)"),
    "objects": (lambda path: np.save(path, np.array([[[None]]] * 9), allow_pickle=True), "is not a .npy file of numb"),
    "texts": (lambda path: np.save(path, np.array([[["a"]]] * 9)), "must hold numbers"),
    "an image": (lambda path: Image.new("L", (1, 1)).save(path, "PNG"), "is not a .npy file of numbers"),
    "nothing": (lambda path: path.touch(), "is not a .npy file of numbers"),
    "a folder": (lambda path: path.mkdir(), "is not a file"),
    "no file": (lambda path: None, "does not exist"),
    "NaN": (lambda path: np.save(path, np.full((9, 1, 1), math.nan)), "tokens hold NaN or infinite"),
}


@pytest.mark.parametrize(("write", "words"), TOKENS.values(), ids=TOKENS)
def test_tokens_that_do_not_fit_are_refused(write: Callable[[Path], object], words: str, pairs: Path) -> None:
    write(pairs / "tokens.npy")
    with pytest.raises((DifftoolError, ValueError), match=f"tokens.*{words}|{words}"):
        DataFacts.of(folder(pairs, tokens=pairs / "tokens.npy"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"condition": "gray", "channels": 1}, "condition: gray images are a condition of colour images"),
        ({"condition": "shrink"}, "condition: must be shrink:N with a whole number"),
        ({"condition": "shrink:x"}, "condition: must be shrink:N with a whole number"),
        ({"condition": "shrink:1"}, "condition: must be shrink:N with a whole number"),
        ({"condition": "shrink:3"}, "condition: squares of 3 pixels do not divide images of 12x8"),
    ],
)
def test_conditions_that_misfit_the_size_are_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DifftoolError, match=words):
        difftool.component("dataset", "image-folder", path="items", size=(12, 8), **options)


def test_a_run_knows_its_condition_by_its_fingerprint(pairs: Path) -> None:
    """Paths are not compared when a run resumes, so another condition has to be other data."""
    np.save(pairs / "tokens.npy", np.zeros((9, 1, 1)))
    made = [
        {},
        *({"condition": word} for word in ("gray", "mask", "shrink:2", "shrink:4", str(pairs / "edges"))),
        {"tokens": pairs / "tokens.npy"},
    ]
    for memory in (None, 0.0):
        assert len({fingerprint(folder(pairs, memory=memory, **options)) for options in made}) == len(made)


def test_a_run_of_pairs_goes_on_elsewhere(pairs: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is absolute in the run, and no file of weights names it."""
    network = ("--backbone", "unet", "--backbone.dim", 8, "--backbone.dim-mults", 1, "--backbone.groups", 4)
    data = ("--dataset", "image-folder", "--dataset.path", "items", "--dataset.size", 8, "--dataset.augment", "flip")
    settings = ("--steps", 2, "--batch-size", 4, "--preview-every", 0, "--threads", 1, "--held-out", 2)
    for name, more in (("r", ()), ("none", ("--condition", "none"))):
        options = (*data, "--dataset.condition", "edges", *network, *settings, *more)
        assert run("train", *options, "--out", name).code == 0
    assert difftool.load(pairs / "none", device="cpu").data.condition == ConditionSpec()
    assert str(pairs) not in (pairs / "r/model.safetensors").read_bytes().decode("latin-1")
    (pairs / "else").mkdir()
    monkeypatch.chdir(pairs / "else")
    assert run("train", "--resume", "../r", "--steps", 3).code == 0
    outcome = run("train", "--resume", "../r", "--steps", 4, "--dataset.condition", "gray")
    assert "its data have changed since the run was trained" in outcome.error


# --- from Python, and the laws ---------------------------------------------------------------------------------------

UNET: dict[str, Any] = {"dim": 8, "dim_mults": (1, 2), "groups": 4, "heads": 2, "head_dim": 4}


@pytest.mark.parametrize("source", [lambda rows: rows, Source], ids=["memory", "source"])
def test_samples_with_every_condition_train_from_python(source: Callable[[Tensor], Any], tmp_path: Path) -> None:
    """Vectors, images, tokens and noise train from memory and from sources, to the same weights."""
    network = difftool.component("backbone", "unet", **UNET)
    models = []
    for name, made in (("eager", samples()), ("either", samples(source, fingerprint="x"))):
        options = {"steps": 2, "batch_size": 4, "held_out": 3, "workers": 0, "device": "cpu", "progress": False}
        models.append(difftool.train(dataset=made, backbone=network, out=tmp_path / name, **options))
    model = difftool.load(tmp_path / "either", device="cpu")
    assert model.data == DataFacts.of(samples(source))
    eager, either = (one.network.state_dict() for one in models)
    assert all(torch.equal(eager[name], either[name]) for name in eager)


@pytest.mark.parametrize("conditions", ["label", "vector", "image", "tokens"])
def test_each_condition_changes_what_is_learnt(conditions: str, tmp_path: Path) -> None:
    network = difftool.component("backbone", "unet", **UNET)
    options: dict[str, Any] = {"steps": 2, "batch_size": 4, "device": "cpu", "progress": False, "backbone": network}
    one, other = (
        difftool.train(dataset=made, condition=(conditions,), out=tmp_path / f"{k}", condition_dropout=0.0, **options)
        for k, made in enumerate((samples(), changed(conditions)))
    )
    a, b = (model.network.state_dict() for model in (one, other))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def changed(condition: str) -> Samples:
    """Return the samples with another value of one of their conditions."""
    made = samples()
    column = made.columns[condition]
    assert isinstance(column, Tensor)
    return replace(made, **{COLUMNS_OF[condition]: column.flip(0)})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swiss-roll", {"condition": "angle", "n": 500}),
        ("gaussian-mixture", {"condition": "mean", "n": 500, "labels": True}),
        ("image-folder", {"condition": "edges", "augment": ("flip",), "tokens": "tokens.npy"}),
        ("image-folder", {"condition": "edges", "augment": ("flip",), "tokens": "tokens.npy", "memory": 0.0}),
        *(("image-folder", {"condition": word, "augment": ("flip",)}) for word in ("gray", "mask", "shrink:4")),
    ],
)
def test_built_in_data_with_conditions_pass_their_laws(
    name: str, options: dict[str, Any], pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pairs)
    np.save(pairs / "tokens.npy", np.random.default_rng(0).normal(size=(9, 2, 4)))
    more = {"path": "items", "size": (8, 8)} if name == "image-folder" else {}
    case = laws.Case(difftool.component("dataset", name, **more, **options))
    for law in laws.LAWS:
        if law is not laws.labels_items_by_class:
            with contextlib.suppress(Skipped):
                law(case)


def test_a_user_may_give_an_image_of_any_size_to_sharpen(tmp_path: Path) -> None:
    """A large image is shrunk as those of training are, also for a model file by itself, which holds the word."""
    large = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(large).save(tmp_path / "large.png")
    small = large.reshape(4, 4, 4, 4, 3).astype(float).mean((1, 3)).round().astype(np.uint8)
    Image.fromarray(small).save(tmp_path / "small.png")
    folder, spec = ImageFolder(path=tmp_path, size=(16,), condition="shrink:4"), ConditionSpec(image=(3, 16, 16))
    one, other = (folder.read_condition("image", str(tmp_path / f"{name}.png"), spec) for name in ("small", "large"))
    assert one is not None
    assert other is not None
    assert torch.equal(one[:, ::4, ::4], torch.from_numpy(small).permute(2, 0, 1))
    assert torch.equal(one, one[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2))
    assert (one.int() - other.int()).abs().max() <= 64  # the filter that scales images is not a plain mean
    both = folder.read_condition("image", str(tmp_path), spec)
    assert both is not None
    assert torch.equal(both, torch.stack([other, one]))
    assert without_paths(ImageFolder, {"condition": "shrink:4"}) == {"condition": "shrink:4"}
    assert without_paths(ImageFolder, {"condition": str(tmp_path)}) == {}
    assert ImageFolder(path=tmp_path, condition="gray").read_condition("image", str(tmp_path), spec) is None
