"""Random changes of images that datasets share: each change against its definition, and images moved with items."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor

import difftool
from difftool.data.batches import Batches
from difftool.data.samples import DatasetContext, Samples
from difftool.testing import check_component
from difftool_plugins.datasets.images.augment import Augmentation, Change, crop, flip, rotate

COUNT = 1000


def distinct(height: int, width: int) -> Tensor:
    """Images (COUNT, 1, height, width) whose values all differ."""
    return torch.arange(COUNT * height * width).view(COUNT, 1, height, width)


def random(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matches(x: Tensor, variants: list[Tensor]) -> list[int]:
    """Return how many images equal each of the variants; every image must equal exactly one."""
    equal = torch.stack([(x == variant).flatten(1).all(1) for variant in variants])
    assert (equal.sum(0) == 1).all()
    return equal.sum(1).tolist()


def test_flip_mirrors_each_image_with_probability_one_half() -> None:
    x = distinct(3, 4)
    (flipped,) = flip([x], random())
    assert all(440 < count < 560 for count in matches(flipped, [x, x.flip(-1)]))
    assert torch.equal(flipped, flip([x], random())[0])
    assert not torch.equal(flipped, flip([x], random(2))[0])


def test_rotate_turns_squares_by_quarters_and_others_by_halves() -> None:
    x = distinct(4, 4)
    counts = matches(rotate([x], random())[0], [torch.rot90(x, k, (2, 3)) for k in range(4)])
    assert all(200 < count < 300 for count in counts)
    x = distinct(3, 4)
    assert all(440 < count < 560 for count in matches(rotate([x], random())[0], [x, torch.rot90(x, 2, (2, 3))]))


def test_crop_is_a_window_of_the_image_with_a_mirrored_border() -> None:
    x = distinct(16, 8)
    padded = torch.nn.functional.pad(x.float(), (1, 1, 2, 2), mode="reflect").long()
    windows = [padded[:, :, top : top + 16, left : left + 8] for top in range(5) for left in range(3)]
    counts = matches(crop([x], random())[0], windows)
    assert all(30 < count < 110 for count in counts)  # all 15 shifts are as likely


def test_an_image_too_small_to_be_shifted_stays() -> None:
    x = distinct(7, 7)
    assert torch.equal(crop([x], random())[0], x)
    assert torch.equal(crop([distinct(1, 1)], random())[0], distinct(1, 1))


@pytest.mark.parametrize("changes", [("flip",), ("crop",), ("rotate",), ("rotate", "flip", "crop")])
def test_images_move_with_their_items(changes: tuple[Change, ...]) -> None:
    x = distinct(16, 16)
    augment = Augmentation(changes)
    moved, images = augment(x, random(), x.expand(-1, 3, -1, -1) + 1)
    assert torch.equal(moved, augment(x, random()))
    assert torch.equal(images, moved.expand(-1, 3, -1, -1) + 1)
    assert not torch.equal(moved, x)


def test_the_order_of_the_names_does_not_matter() -> None:
    x = distinct(8, 8)
    assert torch.equal(Augmentation(("rotate", "flip"))(x, random()), Augmentation(("flip", "rotate"))(x, random()))
    assert Augmentation.of(()) is None


@pytest.mark.parametrize("block", [1, 4])
def test_augmented_batches_are_a_function_of_the_step(block: int) -> None:
    def batches(start: int) -> Batches:
        dataset = difftool.component("dataset", "gradients", n=30, size=8, augment=("flip", "crop", "rotate"))
        return Batches(dataset.load(DatasetContext()), 4, seed=3)

    straight = torch.cat([batch.items for batch in islice(batches(0).start(0, block=1), 9)])
    entered = torch.cat([batch.items for batch in islice(batches(0).start(5, block=block), 4)])
    assert torch.equal(entered[:16], straight[20:36])


def test_all_images_of_a_dataset_pass_the_laws() -> None:
    made = difftool.component("dataset", "gradients", n=200, size=16, augment=("rotate", "crop", "flip"))
    findings = {finding.law: finding.verdict for finding in check_component(made)}
    assert findings["augments reproducibly"] == "passed"


# -- items that an epoch visits several times --------------------------------------------------------------------------


def test_an_epoch_visits_each_item_as_often_as_it_says() -> None:
    samples = Samples(items=torch.arange(4)[:, None], shape=(1,), repeats=torch.tensor([1, 3, 1, 2]))
    batches = Batches(samples, 7, seed=0)
    for epoch in range(3):
        assert torch.bincount(batches.indices(epoch)).tolist() == [1, 3, 1, 2]
    assert batches.indices(0).tolist() != batches.indices(1).tolist()
    whole = torch.cat([batches.indices(step) for step in range(4)])
    assert torch.equal(Batches(samples, 7, seed=0).indices(1, 3), whole[7:])


@pytest.mark.parametrize("repeats", [[1, 0], [1.0, 2.0], [1], [[1, 2]]])
def test_repeats_that_say_nothing_are_refused(repeats: list[object]) -> None:
    with pytest.raises(ValueError, match="repeats must be whole numbers from 1 on, one for each of the 2 items"):
        Samples(items=torch.zeros(2, 1), shape=(1,), repeats=torch.tensor(repeats))
