"""Data that a Python script holds in memory, as a dataset. Importing this module imports nothing heavy."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from difftool.components import Dataset
from difftool.options import option

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from difftool.data.samples import DatasetContext, Samples


class Memory(Dataset, name="memory"):
    """Data that a script held in memory, which a run knows by their fingerprint alone."""

    fingerprint: str = option(default="", help="fingerprint of the data")

    @classmethod
    def of(cls, samples: Samples) -> Memory:
        """Return the dataset of samples. Floats count in their fingerprint, since no options can make them anew."""
        import torch

        from difftool.data.samples import fingerprint

        if not samples.fingerprint and isinstance(samples.items, torch.Tensor):
            sha = hashlib.sha256()
            for column in (samples.items, *(column for name, column in samples.columns.items() if name != "label")):
                if isinstance(column, torch.Tensor):
                    sha.update(column.contiguous().view(-1).view(torch.uint8).numpy().data)
            samples = replace(samples, fingerprint=sha.hexdigest())
        made = cls(fingerprint=fingerprint(samples))
        object.__setattr__(made, "samples", samples)
        return made

    def load(self, context: DatasetContext) -> Samples:
        samples: Samples | None = getattr(self, "samples", None)
        if samples is None:
            raise ValueError(
                f"the data ({self.fingerprint}) were in the memory of a script, and no file holds them; resume the run "
                "from Python: difftool.train(resume=RUN, dataset=DATA)"
            )
        return samples

    def suggested_backbone(self) -> str:
        """Return `unet` for images, series, sound and films, and else `mlp`."""
        from difftool.data.forms import backbone_of, form_of

        samples: Samples | None = getattr(self, "samples", None)
        return self.default_backbone if samples is None else backbone_of(form_of(samples.form, samples.shape), "mlp")


def samples_of(data: Samples | Tensor | np.ndarray[Any, Any] | list[Any]) -> Samples:
    """Return samples of items (N, D) or (N, C, ...), scaled to mean 0 and standard deviation 1 in each channel.

    Samples stay as they are. Raises `TypeError` for a list that is no array of numbers, and `ValueError` for data that
    cannot be trained on.
    """
    from difftool.data.samples import Samples
    from difftool.data.scaling import moments
    from difftool.data.tensors import check_finite, tensor_of

    if isinstance(data, Samples):
        return data
    items = tensor_of(_stacked(data) if isinstance(data, list) else data)
    if items.ndim < 2 or items.numel() == 0:
        raise ValueError(
            f"data must be an array of items (N, D) or (N, C, ...), not of shape {tuple(items.shape)}; single numbers "
            "have the shape (N, 1)"
        )
    check_finite(items)
    shift, scale = moments(items)
    return Samples(items=items, shape=tuple(items.shape[1:]), shift=shift, scale=scale)


def _stacked(items: list[Any]) -> Any:
    """Return a list of numbers, of lists or of arrays as one array. Raises `TypeError`."""
    import numpy as np
    import torch

    try:
        if items and all(isinstance(item, torch.Tensor) for item in items):
            return torch.stack(items)
        array = np.asarray(items)
    except (ValueError, TypeError, RuntimeError):
        raise TypeError("a dataset that is a list must hold numbers, or items of one shape") from None
    if array.dtype.kind not in "biufc":
        raise TypeError(f"a dataset that is a list must hold numbers, not {type(items[0]).__name__}")
    return array
