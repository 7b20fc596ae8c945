"""Built-in samplers and spacings."""

from difftool import Sampler, Spacing, hookimpl
from difftool_plugins.samplers.ddim import DDIM
from difftool_plugins.samplers.ddpm import DDPM
from difftool_plugins.samplers.dpmpp import DPMpp2M, DPMpp2MSDE, DPMpp3M
from difftool_plugins.samplers.euler import Euler, EulerAncestral
from difftool_plugins.samplers.heun import Heun, Restart
from difftool_plugins.samplers.lms import LMS
from difftool_plugins.samplers.spacings import Karras, Leading, Linspace, LogSNR, Trailing
from difftool_plugins.samplers.unipc import UniPC


@hookimpl
def difftool_samplers() -> list[type[Sampler]]:
    return [DDPM, DDIM, Euler, EulerAncestral, Heun, Restart, DPMpp2M, DPMpp2MSDE, DPMpp3M, UniPC, LMS]


@hookimpl
def difftool_spacings() -> list[type[Spacing]]:
    return [Trailing, Leading, Linspace, Karras, LogSNR]
