"""A plugin as people write them for version 2 of the API. It stays as it is, to show that a later difftool loads it."""

import contextlib
from itertools import pairwise

from difftool import Backbone, Callback, Loss, NoiseSchedule, Sampler, Stop, Weighting, hookimpl, option

difftool_api = 2


class Power(NoiseSchedule, name="old-power"):
    """alpha-bar = 1 - u^p."""

    p: float = option(default=2.0, ge=0.5, le=3, help="exponent of the noise's share of the variance")

    def build(self, timesteps):
        import torch

        from difftool import Schedule

        u = (torch.arange(timesteps, dtype=torch.float64) + 1) / timesteps
        return Schedule.from_alpha_bars(1 - 0.9999 * u**self.p)


class Linear(Backbone, name="old-linear"):
    """One linear map of x_t and t."""

    def build(self, spec):
        import torch

        size = spec.shape[0]

        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.map = torch.nn.Linear(size + 1, spec.out_channels)

            def forward(self, x, t, cond=None):
                return self.map(torch.cat([x, t[:, None] / 1000], dim=1))

        return Network()


class Ddim(Sampler, name="old-ddim"):
    """DDIM without noise."""

    def sample(self, denoise, x, levels, noise):
        from difftool import Step

        for t, s in pairwise(levels):
            estimate = denoise(x, t)
            x = s.alpha * estimate.x_0 + s.sigma * estimate.eps
            yield Step(x, s, estimate)


class Quartic(Loss, name="old-quartic"):
    """The mean fourth power of the error."""

    def loss(self, predict, batch, auxiliary):
        return (predict(batch.x_t, batch.t, batch.cond) - batch.target).flatten(1).pow(4).mean(dim=1)


class Truncated(Weighting, name="old-truncated"):
    """max(snr, 1) in x_0 space."""

    def weight(self, native, spec):
        return spec.schedule.snr.clamp(min=1.0)


class Watch(Callback, name="old-watch"):
    """A number in each row, and the end at the second."""

    @contextlib.contextmanager
    def open(self, run):
        seen = len(run.rows)

        def see(progress):
            nonlocal seen
            seen += 1
            return Stop("seen enough") if seen == 2 else {"seen": float(seen)}

        yield see


@hookimpl
def difftool_schedules():
    return [Power]


@hookimpl
def difftool_backbones():
    return [Linear]


@hookimpl
def difftool_samplers():
    return [Ddim]


@hookimpl
def difftool_losses():
    return [Quartic]


@hookimpl
def difftool_weightings():
    return [Truncated]


@hookimpl
def difftool_callbacks():
    return [Watch]
