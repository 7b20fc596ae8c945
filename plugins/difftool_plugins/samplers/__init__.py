"""Built-in samplers and spacings."""

from difftool import Sampler, Spacing, hookimpl
from difftool_plugins.samplers.dpmpp import DPMpp2M, DPMpp2MSDE
from difftool_plugins.samplers.heun import Heun, Restart
from difftool_plugins.samplers.multistep import LMS, DPMpp3M, UniPC
from difftool_plugins.samplers.single_step import DDIM, DDPM, Euler, EulerAncestral
from difftool_plugins.samplers.spacings import Karras, Leading, Linspace, LogSNR, Trailing


@hookimpl
def difftool_samplers() -> list[type[Sampler]]:
    return [DDPM, DDIM, Euler, EulerAncestral, Heun, Restart, DPMpp2M, DPMpp2MSDE, DPMpp3M, UniPC, LMS]


@hookimpl
def difftool_spacings() -> list[type[Spacing]]:
    return [Trailing, Leading, Linspace, Karras, LogSNR]
