"""The metrics agree with torch-fidelity, which gets the same features through an extractor registered with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import difftool
from difftool import FeaturesSpec, Samples, Sets
from difftool.data.samples import PIXELS
from difftool.rng import generator

pytestmark = pytest.mark.extras

COUNT, SIZE = 2_000, 8


def digits() -> tuple[Samples, Samples]:
    """Scans of digits and the same number of others, half of which are blurred: uint8 (2000, 3, 8, 8)."""
    from sklearn.datasets import load_digits

    scans = torch.tensor(load_digits().images).mul(15).round()
    order = torch.randperm(len(scans), generator=generator(0, "digits"))
    chosen = scans[order].repeat(3, 1, 1)[: 2 * COUNT]
    noise = torch.randn(chosen.shape, generator=generator(1, "digits"))
    shown = (chosen + 12 * noise).round().clamp(0, 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    a, b = shown[:COUNT].contiguous(), shown[COUNT:].contiguous()
    a[: COUNT // 2] = a[: COUNT // 2] // 2
    return Samples(items=a, shape=(3, SIZE, SIZE), **PIXELS), Samples(items=b, shape=(3, SIZE, SIZE), **PIXELS)


def pixels(samples: Samples) -> Tensor:
    spec = FeaturesSpec(shape=samples.shape, form="image", device=torch.device("cpu"))
    features: Any = difftool.component("features", "pixels")
    return features.build(spec, samples)(samples.items)


class Items(torch.utils.data.Dataset[Tensor]):
    """Images as torch-fidelity takes them."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Tensor:
        return self.samples.take_items([i])[0]


def measured(samples: Samples, data: Samples, name: str, **options: Any) -> dict[str, float]:
    metric: Any = difftool.component("metric", name, **options)
    scores = metric.measure(Sets(samples=pixels(samples), reference=pixels(data)))
    return {score.name: score.value for score in scores}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_distances_and_coverage_of_2000_digits(fidelity: Any) -> None:
    samples, data = digits()

    class Pixels(fidelity.feature_extractor_base.FeatureExtractorBase):  # type: ignore[misc, name-defined]
        get_provided_features_list = staticmethod(lambda: ("pixels",))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: "pixels")
        can_be_compiled = staticmethod(lambda: False)

        def __init__(self, name: str, features: list[str], **_settings: Any) -> None:
            super().__init__(name, features)

        def forward(self, items: Tensor) -> tuple[Tensor]:
            return (data.scaling.to_model(items).flatten(1),)

    fidelity.register_feature_extractor("difftool-pixels", Pixels)
    theirs = fidelity.calculate_metrics(
        input1=Items(samples),
        input2=Items(data),
        cuda=False,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="difftool-pixels",
        feature_extractor_compile=False,
        kid_subsets=1,
        kid_subset_size=COUNT,
        prc_neighborhood=5,
        cache=False,
        verbose=False,
    )
    ours = {k: v for name in ("fid", "kid", "prdc") for k, v in measured(samples, data, name).items()}
    assert ours["fid"] > 1.0
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-3)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-3)
