"""The records of guidance: the denoisers that it combines, and the samples that it guides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from difftool.data.condition import Condition
    from difftool.data.scaling import Scaling
    from difftool.diffusion.estimate import Denoise
    from difftool.diffusion.schedule import Schedule


class Predictions(Protocol):
    """The denoisers that a guidance combines, made for one batch of samples.

    They run on the device and in the precision of the command. Each call of one is a network call, and is counted.
    """

    def __call__(
        self,
        *,
        hidden: bool = False,
        condition: Condition | None = None,
        run: Path | None = None,
        weights: str = "ema",
        gradients: bool = False,
    ) -> Denoise:
        """Return a new denoiser: by default that of the model, under the condition that the user gave.

        `hidden` leaves out every condition, and `condition` takes the place of the user's, in the units of the network.
        `run` is a run folder or a model file with data of the same shape, and `weights` chooses its weights as
        `--weights` does. It is opened once, and called at its own level of the same signal-to-noise ratio. Its
        estimates are in the model units of this model.

        With `gradients`, estimates keep the graph that leads back to x. The denoiser that the guidance returns is then
        called with gradients on, and its estimate is detached: `x.detach().requires_grad_()` and `torch.autograd.grad`
        are all that it needs.

        Raises `UsageError` where there is no condition to hide, for a model that was trained with every condition, and
        for a run that does not fit.
        """


@dataclass(frozen=True, kw_only=True)
class GuidanceSpec:
    """The samples that a guidance guides. Fields may be added."""

    shape: tuple[int, ...]
    """The shape of x for one sample, channels (or coordinates) first."""
    schedule: Schedule
    sigma_data: float = 1.0
    """Standard deviation of the data in model units."""
    bounds: tuple[float, float] | None = None
    """The range of the data in model units, or None for unbounded data."""
    is_image: bool = False
    """True if the data are images."""
    condition: Condition | None = None
    """The condition that the user gave, in the units of the network, or None."""
    count: int
    """Number of samples in the batch."""
    first: int = 0
    """Number of the first of them."""
    decode: Callable[[Tensor], Tensor]
    """Return the data (B, ...) in model units that x_0 (B, *shape) stands for; x_0 itself without a codec.

    Gradients lead through it.
    """
    scaling: Scaling
    """The conversion between data units and model units of the data."""
    device: torch.device
