"""Handwritten digits as a difftool dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from difftool import Dataset, hookimpl, option

if TYPE_CHECKING:
    from difftool import DatasetContext, Samples

difftool_api = 2

SCANNED = 8
"""The side of the scans in pixels."""


class Digits(Dataset, name="digits"):
    """1,797 gray scans of handwritten digits, 8x8, labelled 0 to 9 (scikit-learn; Alpaydin & Kaynak, 1998)."""

    default_backbone = "unet"

    size: int = option(
        default=SCANNED, ge=SCANNED, le=256, help="side in pixels; scans are enlarged beyond 8 pixels (bicubic)"
    )

    def load(self, context: DatasetContext) -> Samples:
        import torch
        from sklearn.datasets import load_digits

        from difftool import PIXELS, Samples

        scans = load_digits()
        # values are from 0 (paper) to 16 (ink)
        items = torch.from_numpy(scans.images)[:, None] * (255 / 16)
        if self.size != SCANNED:
            items = torch.nn.functional.interpolate(items, size=(self.size, self.size), mode="bicubic")
        return Samples(
            items=items.round().clamp(0, 255).to(torch.uint8),
            shape=self.item_shape(),
            labels=torch.from_numpy(scans.target).to(torch.int64),
            class_names=tuple(str(name) for name in scans.target_names),
            **PIXELS,
        )

    def item_shape(self) -> tuple[int, int, int]:
        return (1, self.size, self.size)


@hookimpl
def difftool_datasets() -> list[type[Dataset]]:
    return [Digits]
