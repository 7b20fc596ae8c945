"""Conditions on the side of the data: columns of samples, batches, facts and `--condition`."""

from __future__ import annotations

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
from torch import Tensor

import difftool
from difftool import PIXELS, Condition, ConditionSpec, Dataset, DatasetContext, DifftoolError, Samples
from difftool.data.batches import Batch, Batches
from difftool.data.facts import DataFacts
from difftool.data.memory import Memory
from difftool.data.samples import fingerprint, split
from difftool.plugins.build import load_samples

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


# --- columns ---------------------------------------------------------------------------------------------------------


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


# --- batches ---------------------------------------------------------------------------------------------------------


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


# --- facts -----------------------------------------------------------------------------------------------------------


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


# --- the choice ------------------------------------------------------------------------------------------------------


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


# --- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [lambda rows: rows, Source], ids=["memory", "source"])
def test_the_noise_of_an_item_is_the_noise_of_its_training(source: Callable[[Tensor], Any], tmp_path: Path) -> None:
    """Every input of training, and of the held-out loss, is a mix of an item and its own noise."""
    from difftool.runs.recipe import build_recipe
    from difftool.training.experiment import prepare
    from difftool.training.inputs import inputs_from

    data = dataset(lambda: Samples(items=source(randn(N, 2)), shape=(2,), noise=source(10 + randn(N, 2))))
    recipe = build_recipe({"training": {"batch_size": 4, "steps": 3}}, parts={"dataset": data})
    experiment = prepare(recipe, torch.device("cpu"))
    batches = Batches(experiment.train, 4, seed=0)
    for inputs in islice(inputs_from(0, batches, experiment.objective, recipe.training, torch.contiguous_format), 5):
        torch.testing.assert_close(inputs.eps, inputs.x_0 + 10)
