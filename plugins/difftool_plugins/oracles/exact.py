"""Denoisers that minimise the training loss exactly, for the items of a dataset or for the distribution behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from difftool import Oracle, option

if TYPE_CHECKING:
    from torch import Tensor

    from difftool import Denoise, OracleSpec, Samples


class Ideal(Oracle, name="ideal"):
    """The exact minimiser for the items of a dataset: it samples these items, and nothing new."""

    # Karras et al. (2022), app. B.3: the mean of the items, weighted by how likely each is to have become x_t.

    comparison_defaults = {"items": 1_000}

    items: int | None = option(default=None, ge=1, le=10**8, help="items to use, picked at random", otherwise="all")

    def denoiser(self, samples: Samples, spec: OracleSpec) -> Denoise:
        import torch

        from difftool_plugins.oracles.mixture import MixtureDenoiser

        indices = indices_of(samples.labels, spec.label, len(samples))
        count = min(self.items or len(indices), len(indices))
        if count < len(indices):  # every so many would meet the same class again and again, where classes take turns
            order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))
            indices = indices[order[:count].sort().values]
        items = samples.take_items(indices.tolist())
        return MixtureDenoiser(in_model_units(items, samples).to(spec.device), torch.zeros(1, device=spec.device))


class ClosedForm(Oracle, name="closed-form"):
    """The exact minimiser for the distribution that the data are drawn from, if its formula is known."""

    def denoiser(self, samples: Samples, spec: OracleSpec) -> Denoise:
        import torch

        from difftool_plugins.oracles.mixture import MixtureDenoiser

        mixture = samples.mixture
        if mixture is None:
            raise ValueError("no formula is known of this dataset; take --oracle ideal, which needs only its items")
        means = mixture.means[indices_of(mixture.labels, spec.label, len(mixture.means))]
        std = mixture.std / torch.tensor(samples.scale, dtype=torch.float64)
        return MixtureDenoiser(in_model_units(means, samples).to(spec.device), std.to(spec.device))


def indices_of(labels: Tensor | None, label: int | None, n: int) -> Tensor:
    """Return the indices of the items with a label, of all n without one. Raises `ValueError` if there are none."""
    import torch

    if label is None:
        return torch.arange(n)
    if labels is None:
        raise ValueError("it has no classes")
    indices = (labels == label).nonzero().flatten()
    if len(indices) == 0:
        raise ValueError(f"class {label} has no items")
    return indices


def in_model_units(items: Tensor, samples: Samples) -> Tensor:
    """Return (item - shift) / scale for items (N, *shape) in data units; float64 if they are, else float32."""
    import torch

    dtype = torch.float64 if items.dtype == torch.float64 else torch.float32
    if items.dtype in (torch.int32, torch.int64):  # float32 would round large ones before they are shifted
        items = items.to(torch.float64)
    elif items.dtype != torch.float64:
        items = items.to(torch.float32)
    ends = (1,) * (items.ndim - 2)
    shift, scale = (torch.tensor(v, dtype=items.dtype).view(-1, *ends) for v in (samples.shift, samples.scale))
    return ((items - shift) / scale).to(dtype)
