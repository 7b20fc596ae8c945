"""Built-in samplers and level grids."""

from difftool import Sampler, Spacing, hookimpl
from difftool_plugins.samplers.ancestral import DDIM, DDPM, EulerAncestral
from difftool_plugins.samplers.multistep import LMS, DPMpp2M, DPMpp2MSDE, DPMpp3M, UniPC
from difftool_plugins.samplers.ode import Euler, Heun, Restart
from difftool_plugins.samplers.spacings import Karras, Leading, Linspace, LogSNR, Trailing


@hookimpl
def difftool_samplers() -> list[type[Sampler]]:
    return [DDPM, DDIM, Euler, EulerAncestral, Heun, Restart, DPMpp2M, DPMpp2MSDE, DPMpp3M, UniPC, LMS]


@hookimpl
def difftool_spacings() -> list[type[Spacing]]:
    return [Trailing, Leading, Linspace, Karras, LogSNR]
